"""Retrieval metrics while fitting and in `zoo validate|test`; the same for every family, from embeddings alone."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from zoo.callbacks.terminal import results_table, show
from zoo.distributed import gather_objects
from zoo.errors import RecipeError, SampleError
from zoo.metrics.ranking import best, rank
from zoo.metrics.retrieval import Ties, chance, measure, standard_errors, summary
from zoo.types import Batch, Embedding, RetrievalTask

TOP = 5  # candidates kept per example
_KINDS = {"q": "query", "c": "candidate"}
_PRIMARY = "recall@10"

Parts = list[tuple[Tensor, Tensor]]  # (R,) numbers and (R, E) fp32 vectors, on the CPU


@dataclass(frozen=True, slots=True)
class Example:
    """One query and what was found for it.

    query: its index. rank: expected position of its best relevant candidate, from 1. right: which candidate that is.
    found: (candidate, score), best first.
    """

    query: int
    rank: float
    right: int
    found: list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Result:
    """The measures of one task; `step` is that of the fit which it was a part of, None for `zoo validate|test`.

    Each dict goes from metric to value: `values`; their standard `errors` (NaN where there is none); what constant
    embeddings score (`chance`, where ties are counted in expectation). primary: the metric that stands for the task.
    """

    task: RetrievalTask
    step: int | None
    values: dict[str, float]
    errors: dict[str, float]
    chance: dict[str, float]
    primary: str
    examples: list[Example]


class RetrievalEvaluation(Callback):
    """Collects the embeddings of every evaluation task, measures them in fp32, logs and prints the values.

    Needs a datamodule with `tasks("val" | "test")` and one dataloader per task, in that order, whose batches have one
    view and the ids "q:<index>" or "c:<index>". Vectors of all ranks are joined by id; an item that came twice
    (samplers pad) counts once, and one that did not come at all is an error.

    Logs `val/<task>/<metric>`, and as `val/primary` the mean over tasks of recall@10, or of a task's first metric where
    it does not measure that (`test/...` likewise). `results` keeps what was measured last, by stage.

    Args:
        examples: how many queries per task are kept with what was found for them: evenly spread from the best ranked to
            the worst, so that they show the whole range.
        ties: how equal scores count, see `zoo.metrics.retrieval`.
    """

    def __init__(self, examples: int = 6, ties: Ties = "expected") -> None:
        self.examples = examples
        self.ties = ties
        self.results: dict[str, list[Result]] = {}
        self._parts: dict[int, dict[str, Parts]] = {}

    # ---- collecting ---------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what an interrupted round left."""
        self._parts = {}

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what an interrupted round left."""
        self._parts = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the vectors of this batch."""
        if not trainer.sanity_checking:
            self._keep(outputs, batch, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the vectors of this batch."""
        self._keep(outputs, batch, dataloader_idx)

    def _keep(self, outputs: dict[str, Embedding], batch: Batch, number: int) -> None:
        if len(outputs) != 1:
            raise SampleError(f"an evaluation batch has one view, this one ({batch.ids[0]}...) has {sorted(outputs)}")
        vectors = next(iter(outputs.values())).vector.detach().float().cpu()
        if len(vectors) != len(batch.ids):
            raise SampleError(f"a batch of {len(batch.ids)} items ({batch.ids[0]}...) gave {len(vectors)} embeddings")
        rows: dict[str, list[int]] = defaultdict(list)
        for row, name in enumerate(batch.ids):
            rows[_parsed(name)[0]].append(row)
        for kind, chosen in rows.items():
            numbers = torch.tensor([_parsed(batch.ids[row])[1] for row in chosen])
            self._parts.setdefault(number, {}).setdefault(kind, []).append((numbers, vectors[chosen]))

    # ---- measuring ----------------------------------------------------------------------------------------------

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, unless this is Lightning's sanity check, which sees only the first batches."""
        if not trainer.sanity_checking:
            self._measure_all(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure."""
        self._measure_all(trainer, pl_module, "test")

    def _measure_all(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # sees single batches: nothing to rank against
            return
        step = trainer.global_step if trainer.state.fn == "fit" else None  # weights from elsewhere have no step here
        results = []
        for number, task in enumerate(_tasks(trainer, stage)):
            queries, candidates = self._joined(number, task)
            results.append(self._measure(task, queries.to(module.device), candidates.to(module.device), step))
            for metric, value in results[-1].values.items():
                module.log(f"{stage}/{task.name}/{metric}", value, batch_size=1, sync_dist=True)
        self.results[stage] = results
        if results:
            primary = sum(r.values[r.primary] for r in results) / len(results)
            module.log(f"{stage}/primary", primary, batch_size=1, sync_dist=True)
        if results and trainer.is_global_zero:
            show(trainer, results_table(results, stage, brief=trainer.state.fn == "fit"))

    def _measure(self, task: RetrievalTask, queries: Tensor, candidates: Tensor, step: int | None) -> Result:
        where = f"task '{task.name}'"
        ranks = rank(queries, candidates, task.relevant, task.pools, name=where)
        per_query = measure(ranks, task.metrics, self.ties)
        positions = measure(ranks, ("mean_rank",), self.ties)["mean_rank"]
        return Result(
            task=task,
            step=step,
            values=summary(per_query),
            errors=standard_errors(per_query),
            chance=chance(task),
            primary=_PRIMARY if _PRIMARY in task.metrics else task.metrics[0],
            examples=self._chosen(task, queries, candidates, positions),
        )

    def _chosen(self, task: RetrievalTask, queries: Tensor, candidates: Tensor, positions: Tensor) -> list[Example]:
        # shuffled first, or queries of equal rank would always be those that stand first in the task
        shuffled = torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))
        order = shuffled[positions[shuffled].argsort(stable=True)].tolist()
        count = min(self.examples, len(order))
        chosen = [order[i * (len(order) - 1) // max(1, count - 1)] for i in range(count)]
        examples = []
        for query in chosen:
            pool = None if task.pools is None else task.pools[query]
            found = best(queries[query], candidates, pool, TOP)
            right = best(queries[query], candidates, task.relevant[query], 1)[0][0]
            examples.append(Example(query, float(positions[query]), right, found))
        return examples

    def _joined(self, number: int, task: RetrievalTask) -> tuple[Tensor, Tensor]:
        """Queries (Q, E) and candidates (C, E) of all ranks, in the order of the task."""
        mine = {
            kind: (torch.cat([n for n, _ in parts]), torch.cat([v for _, v in parts]))
            for kind, parts in self._parts.pop(number, {}).items()
        }
        everyone = gather_objects(mine)
        queries, candidates = (
            _ordered([rows[kind] for rows in everyone if kind in rows], kind, len(items), task.name)
            for kind, items in (("q", task.queries), ("c", task.candidates))
        )
        return queries, candidates


def _tasks(trainer: Trainer, stage: str) -> list[RetrievalTask]:
    tasks = getattr(getattr(trainer, "datamodule", None), "tasks", None)
    if tasks is None:
        raise RecipeError("evaluation needs a datamodule with tasks(stage), e.g. EmbeddingData")
    found: list[RetrievalTask] = tasks(stage)
    return found


def _parsed(name: str) -> tuple[str, int]:
    kind, _, number = name.partition(":")
    if kind not in _KINDS or not number.isdecimal():
        raise SampleError(f"evaluation id '{name}' is neither 'q:<index>' nor 'c:<index>'")
    return kind, int(number)


def _ordered(parts: Parts, kind: str, count: int, task: str) -> Tensor:
    """Every item's vector, in order. Raises SampleError if one is missing or is none of the task."""
    word = {"q": "queries", "c": "candidates"}[kind]
    numbers = torch.cat([n for n, _ in parts]) if parts else torch.zeros(0, dtype=torch.int64)
    if len(numbers) and int(numbers.max()) >= count:
        raise SampleError(f"task '{task}': {kind}:{int(numbers.max())} was embedded, but there are {count} {word}")
    row_of = torch.full((count,), len(numbers)).scatter_reduce(0, numbers, torch.arange(len(numbers)), "amin")
    missing = (row_of == len(numbers)).nonzero().flatten().tolist()
    if missing:
        raise SampleError(
            f"task '{task}': {len(missing)} of {count} {word} were not embedded, first {kind}:{missing[0]}; ranking "
            "needs them all, so leave limit_val_batches and limit_test_batches alone and take smaller tasks instead"
        )
    return torch.cat([v for _, v in parts])[row_of]
