"""Retrieval by the score that a model was trained with, where that is not the cosine of two vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
from zoo.metrics.ranking import rank_scores
from zoo.metrics.retrieval import chance, measure, summary
from zoo.types import Batch, Embedding, RetrievalTask

_CELLS = 1 << 25  # values that one block of scores may take: 128 MiB (ours)
_FIELDS = ("vector", "log_var", "tokens", "mask")

Rows = list[tuple[Tensor, Embedding]]


class ScoreEvaluation(Callback):
    """Ranks every candidate of the test tasks by the objective's `pair_scores`, beside the ranking by vectors.

    DVSA, multiple-instance scores and FLAIR compare parts of a picture with a text; vectors are a first guess there. Every
    pair is scored, and all tokens are held on the CPU, so large tasks are left out with a line that says so. Values are
    logged as `test/<task>/score/<metric>` and stand in the report.

    Args:
        most_items: tasks with more queries and candidates than this are left out.

    Raises:
        RecipeError: the objective scores no pairs, or a task compares like with like, where the score has no two sides.
    """

    def __init__(self, most_items: int = 20_000) -> None:
        self.most_items = most_items
        self.measures: dict[str, Measures] = {}
        self._rows: dict[int, dict[str, Rows]] = {}

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
        """Keep all that the score may look at."""
        if not self._wanted(_tasks(trainer)[dataloader_idx]):
            return
        (embedding,) = outputs.values()
        kinds, numbers = zip(*(parsed(name) for name in batch.ids), strict=True)
        for kind in sorted(set(kinds)):
            chosen = torch.tensor([row for row, one in enumerate(kinds) if one == kind])
            kept = _rows(_map(embedding, lambda values: values.detach().cpu()), chosen)
            rows = self._rows.setdefault(dataloader_idx, {}).setdefault(kind, [])
            rows.append((torch.tensor(numbers)[chosen], kept))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure every task."""
        score = getattr(getattr(pl_module, "objective", None), "pair_scores", None)
        if score is None:
            raise RecipeError("ScoreEvaluation: this objective scores no pairs; leave the callback out")
        columns = ("task", "metric", "value", "chance")
        table = self.measures["test"] = Measures("By the model's own score (test)", columns)
        for number, task in enumerate(_tasks(trainer)):
            if not self._wanted(task):
                show(trainer, f"task '{task.name}' is left out of ScoreEvaluation: more than {self.most_items:,} items")
                continue
            sides = (self._joined(number, kind, task) for kind in KINDS)
            queries, candidates = (_map(side, lambda values: values.to(pl_module.device)) for side in sides)
            values = _measured(score, task, queries, candidates)
            for metric, value in values.items():
                pl_module.log(f"test/{task.name}/score/{metric}", value, batch_size=1, sync_dist=True)
                table.rows.append((task.name, metric, _percent(value), _percent(chance(task)[metric])))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the table."""
        if self.measures.get("test") and self.measures["test"].rows:
            show(trainer, measures_table(self.measures["test"]))

    def _wanted(self, task: RetrievalTask) -> bool:
        return task.groups is None and len(task.queries) + len(task.candidates) <= self.most_items

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
        return _map(whole, lambda values: values[order])


def _measured(
    score: Callable[[Embedding, Embedding], Tensor], task: RetrievalTask, queries: Embedding, candidates: Embedding
) -> dict[str, float]:
    shown = [_pictures(items) for items in (task.queries, task.candidates)]
    if shown[0] == shown[1]:
        raise RecipeError(f"task '{task.name}' has no pictures on one side and texts on the other, as the score needs")
    size = len(queries.vector), len(candidates.vector)
    cells = candidates.vector.shape[0] * _length(candidates) * _length(queries)

    @torch.no_grad()
    def block(rows: slice) -> Tensor:
        step = max(1, _CELLS // cells)
        starts = range(rows.start, min(rows.stop, size[0]), step)
        parts = [_rows(queries, slice(start, min(start + step, rows.stop))) for start in starts]
        found = [score(part, candidates) if shown[0] else score(candidates, part).T for part in parts]
        return torch.cat(found)

    ranks = rank_scores(block, size, task.relevant, task.pools, name=f"task '{task.name}'")
    return summary(measure(ranks, task.metrics))


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
        padded.append(Embedding(part.vector, part.log_var, tokens, mask))
    columns = ([getattr(part, name) for part in padded] for name in _FIELDS)
    vector, *others = (None if column[0] is None else torch.cat(column) for column in columns)
    assert vector is not None  # every embedding has one
    return Embedding(vector, *others)


def _map(embedding: Embedding, change: Callable[[Tensor], Tensor]) -> Embedding:
    vector, *others = (None if v is None else change(v) for v in (getattr(embedding, name) for name in _FIELDS))
    assert vector is not None
    return Embedding(vector, *others)


def _rows(embedding: Embedding, chosen: Tensor | slice) -> Embedding:
    return _map(embedding, lambda values: values[chosen])


def _tasks(trainer: Trainer) -> list[RetrievalTask]:
    found: list[RetrievalTask] = trainer.datamodule.tasks("test")  # type: ignore[attr-defined]
    return found


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
