"""Whole embeddings of the test items (variances and tokens, too), for callbacks that look at more than vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from zoo.callbacks.measures import Measures, measures_table
from zoo.callbacks.terminal import show
from zoo.callbacks.vectors import KINDS, parsed
from zoo.distributed import gather_objects
from zoo.errors import RecipeError, SampleError
from zoo.types import Batch, Embedding, RetrievalTask

_CELLS = 1 << 25  # values that one block of scores may take: 128 MiB (ours)
_FIELDS = ("vector", "log_var", "tokens", "mask", "norm")

Rows = list[tuple[Tensor, Embedding]]
Score = Callable[[Embedding, Embedding], Tensor]
"""(pictures, texts) -> (r, C): how an objective scores pairs."""


class CollectedEmbeddings(Callback):
    """Keeps all embeddings of a test on the CPU, and has every task measured when the test is over.

    Tasks of prompt ensembles, and large ones, are left out; of the latter a line says so. `measures` is what the report
    shows (see `zoo.callbacks.measures.Measured`).

    Args:
        most_items: tasks with more queries and candidates than this are left out.
    """

    def __init__(self, most_items: int = 20_000) -> None:
        self.most_items = most_items
        self.measures: dict[str, Measures] = {}
        self._rows: dict[int, dict[str, Rows]] = {}

    def measure_task(
        self,
        trainer: Trainer,
        module: LightningModule,
        task: RetrievalTask,
        queries: Embedding,
        candidates: Embedding,
    ) -> None:
        """Called on every rank for each task that is kept, its embeddings in order on the module's device."""
        raise NotImplementedError

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what an interrupted round left."""
        self._rows, self.measures = {}, {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the rows of this batch."""
        if not self._wanted(_tasks(trainer)[dataloader_idx]):
            return
        (embedding,) = outputs.values()
        kinds, numbers = zip(*(parsed(name) for name in batch.ids), strict=True)
        for kind in sorted(set(kinds)):
            chosen = torch.tensor([row for row, one in enumerate(kinds) if one == kind])
            kept = rows_of(_map(embedding, lambda values: values.detach().cpu()), chosen)
            rows = self._rows.setdefault(dataloader_idx, {}).setdefault(kind, [])
            rows.append((torch.tensor(numbers)[chosen], kept))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure every task."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # sees single batches
            return
        for number, task in enumerate(_tasks(trainer)):
            if not self._wanted(task):
                show(trainer, f"{type(self).__name__} leaves out the task '{task.name}': {self._reason(task)}")
                continue
            sides = (self._joined(number, kind, task) for kind in KINDS)
            queries, candidates = (_map(side, lambda values: values.to(pl_module.device)) for side in sides)
            self.measure_task(trainer, pl_module, task, queries, candidates)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the table."""
        if self.measures.get("test") and self.measures["test"].rows:
            show(trainer, measures_table(self.measures["test"]))

    def _wanted(self, task: RetrievalTask) -> bool:
        return task.groups is None and len(task.queries) + len(task.candidates) <= self.most_items

    def _reason(self, task: RetrievalTask) -> str:
        return "its classes have several prompts" if task.groups else f"it has more than {self.most_items:,} items"

    def _joined(self, number: int, kind: str, task: RetrievalTask) -> Embedding:
        """All queries or candidates of all ranks, in order."""
        rows = [part for share in gather_objects(self._rows.get(number, {}).get(kind, [])) for part in share]
        place = {int(one): (n, row) for n, (numbers, _) in enumerate(rows) for row, one in enumerate(numbers)}
        count = len(task.queries if kind == "q" else task.candidates)
        if len(place) != count:
            raise SampleError(f"task '{task.name}': {len(place)} of {count} {KINDS[kind]} were embedded")
        whole = _stacked([embedding for _, embedding in rows])
        starts = torch.tensor([0, *(len(numbers) for numbers, _ in rows)]).cumsum(0)
        order = torch.tensor([int(starts[n]) + row for n, row in (place[i] for i in range(count))])
        return rows_of(whole, order)


def scored(score: Score, task: RetrievalTask) -> Callable[[Embedding, Embedding], Tensor]:
    """The score of pictures and texts as one of the task's (queries, candidates), whichever side the pictures are on.

    It takes blocks of queries of any size and works through them in small ones, as tokens may be large.

    Raises:
        RecipeError: the task compares like with like, where the score has no two sides.
    """
    pictures_first, pictures_last = (_pictures(items) for items in (task.queries, task.candidates))
    if pictures_first == pictures_last:
        raise RecipeError(f"task '{task.name}' has no pictures on one side and texts on the other, as the score needs")

    @torch.no_grad()
    def by_sides(queries: Embedding, candidates: Embedding) -> Tensor:
        step = max(1, _CELLS // (len(candidates.vector) * _length(candidates) * _length(queries)))
        starts = range(0, len(queries.vector), step)
        parts = [rows_of(queries, slice(start, start + step)) for start in starts]
        return torch.cat([score(p, candidates) if pictures_first else score(candidates, p).T for p in parts])

    return by_sides


def rows_of(embedding: Embedding, chosen: Tensor | slice) -> Embedding:
    """Some rows, with all that is known of them."""
    return _map(embedding, lambda values: values[chosen])


def _pictures(items: Sequence[Any]) -> bool:
    return bool(items[0].images)


def _length(embedding: Embedding) -> int:
    return 1 if embedding.tokens is None else embedding.tokens.shape[1]


def _stacked(parts: Iterable[Embedding]) -> Embedding:
    """One after the other; tokens are padded to the longest."""
    parts = list(parts)
    longest = max(map(_length, parts))
    padded = []
    for part in parts:
        missing = longest - _length(part)
        tokens = None if part.tokens is None else F.pad(part.tokens, (0, 0, 0, missing))
        mask = None if part.mask is None else F.pad(part.mask, (0, missing))
        padded.append(replace(part, tokens=tokens, mask=mask))
    columns = {name: [getattr(part, name) for part in padded] for name in _FIELDS}
    return Embedding(**{name: torch.cat(column) for name, column in columns.items() if column[0] is not None})


def _map(embedding: Embedding, change: Callable[[Tensor], Tensor]) -> Embedding:
    values = ((name, getattr(embedding, name)) for name in _FIELDS)
    return Embedding(**{name: change(value) for name, value in values if value is not None})


def _tasks(trainer: Trainer) -> list[RetrievalTask]:
    found: list[RetrievalTask] = trainer.datamodule.tasks("test")  # type: ignore[attr-defined]
    return found
