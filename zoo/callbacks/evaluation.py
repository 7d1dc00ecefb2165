"""Retrieval metrics while fitting and in `zoo validate|test`; the same for every family, from embeddings alone."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from zoo.callbacks.measures import Measures, measure_further, measures_table
from zoo.callbacks.terminal import results_table, show
from zoo.callbacks.vectors import Parts, ordered, parsed
from zoo.distributed import gather_objects
from zoo.errors import RecipeError, SampleError
from zoo.metrics.classification import by_class, class_vectors
from zoo.metrics.ranking import best, rank
from zoo.metrics.retrieval import Ties, chance, measure, standard_errors, summary
from zoo.types import Batch, Embedding, RetrievalTask

TOP = 5  # candidates kept per example
_PRIMARY = "recall@10"
_RSUM = ("recall@1", "recall@5", "recall@10")


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
    it does not measure that (`test/...` likewise); tasks with an `rsum` add up to `val/<rsum>/rsum`. `results` keeps what
    was measured last, by stage. Callbacks that are a `TaskMeasure` are given the vectors of every task.

    Args:
        examples: how many queries per task are kept with what was found for them: evenly spread from the best ranked to
            the worst, so that they show the whole range.
        ties: how equal scores count, see `zoo.metrics.retrieval`.
    """

    def __init__(self, examples: int = 6, ties: Ties = "expected") -> None:
        self.examples = examples
        self.ties = ties
        self.results: dict[str, list[Result]] = {}
        self.measures: dict[str, Measures] = {}
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
            rows[parsed(name)[0]].append(row)
        for kind, chosen in rows.items():
            numbers = torch.tensor([parsed(batch.ids[row])[1] for row in chosen])
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
            queries, candidates = (vectors.to(module.device) for vectors in self._joined(number, task))
            for part in (task, *task.also):
                _check_same(part, task)
                results.append(self._measure(part, queries, candidates, step))
            measure_further(trainer, module, stage, *_ranked(task, candidates), queries)
        self.results[stage] = results
        self._log(module, stage, results)
        if results and trainer.is_global_zero:
            show(trainer, results_table(results, stage, brief=trainer.state.fn == "fit"))
            if stage in self.measures:
                show(trainer, measures_table(self.measures[stage]))

    def _log(self, module: LightningModule, stage: str, results: list[Result]) -> None:
        values = {f"{r.task.name}/{metric}": value for r in results for metric, value in r.values.items()}
        if results:
            values["primary"] = sum(r.values[r.primary] for r in results) / len(results)
        self.measures.pop(stage, None)
        if sums := _rsums(results):
            rows = [(name, f"{value:.1f}", f"{base:.1f}", f"{most}") for name, (value, base, most) in sums.items()]
            self.measures[stage] = Measures("RSUM (recall @1, @5, @10)", ("", "value", "chance", "of"), [*rows])
            values |= {f"{name}/rsum": value for name, (value, _, _) in sums.items()}
        for name, value in values.items():
            module.log(f"{stage}/{name}", value, batch_size=1, sync_dist=True)

    def _measure(self, task: RetrievalTask, queries: Tensor, candidates: Tensor, step: int | None) -> Result:
        where = f"task '{task.name}'"
        task, candidates = _ranked(task, candidates)
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
            ordered([rows[kind] for rows in everyone if kind in rows], kind, len(items), task.name)
            for kind, items in (("q", task.queries), ("c", task.candidates))
        )
        return queries, candidates


def _tasks(trainer: Trainer, stage: str) -> list[RetrievalTask]:
    tasks = getattr(getattr(trainer, "datamodule", None), "tasks", None)
    if tasks is None:
        raise RecipeError("evaluation needs a datamodule with tasks(stage), e.g. EmbeddingData")
    found: list[RetrievalTask] = tasks(stage)
    return found


def _ranked(task: RetrievalTask, candidates: Tensor) -> tuple[RetrievalTask, Tensor]:
    """The task and vectors that are ranked: classes in the place of their prompts, if there are any."""
    if task.groups is None:
        return task, candidates
    return by_class(task), class_vectors(candidates, task.groups, f"task '{task.name}'")


def _check_same(part: RetrievalTask, task: RetrievalTask) -> None:
    if part.queries is not task.queries or part.candidates is not task.candidates:
        raise SampleError(f"task '{part.name}' is in `also` of '{task.name}', but its items are not those of that task")


def _rsums(results: list[Result]) -> dict[str, tuple[float, float, int]]:
    """Name -> the sum of recalls in percent, what chance gives, and the most it could be."""
    sums: dict[str, tuple[float, float, int]] = {}
    for r in results:
        if name := r.task.rsum:
            if missing := [metric for metric in _RSUM if metric not in r.values]:
                raise RecipeError(
                    f"task '{r.task.name}' is part of the RSUM '{name}' but does not measure {missing[0]}"
                )
            value, base, most = sums.get(name, (0.0, 0.0, 0))
            value, base = (old + 100 * sum(x[m] for m in _RSUM) for old, x in ((value, r.values), (base, r.chance)))
            sums[name] = value, base, most + 100 * len(_RSUM)
    return sums
