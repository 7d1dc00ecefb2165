"""Retrieval metrics while fitting and in `zoo validate|test`; the same for every family, from embeddings alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from zoo.distributed import gather_objects
from zoo.errors import ZooError
from zoo.metrics.retrieval import chance, retrieval_metrics, summary
from zoo.types import Batch, Embedding, RetrievalTask

TOP = 5  # candidates kept per example


@dataclass(frozen=True, slots=True)
class Example:
    """One query and what was found for it: indexes into the task's candidates, best first."""

    query: int
    found: list[int]
    rank: int


@dataclass(frozen=True, slots=True)
class Result:
    """The measures of one task, what constant embeddings would score, and some examples."""

    task: RetrievalTask
    values: dict[str, float]
    chance: dict[str, float]
    examples: list[Example]


class RetrievalEvaluation(Callback):
    """Collects the embeddings of every evaluation task and measures them, in fp32, ties counted in expectation.

    Logs `val/<task>/<metric>` and their mean over tasks of recall@10 (or of a task's first metric) as `val/primary`
    (`test/...` likewise), and prints one table with chance beside every value.

    Args:
        examples: how many queries per task are kept with what was found for them, spread evenly over the queries.
    """

    def __init__(self, examples: int = 8) -> None:
        self.examples = examples
        self.results: dict[str, list[Result]] = {}
        self._rows: dict[int, dict[str, Tensor]] = {}

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Keep the vectors by the id of their item."""
        self._keep(outputs, batch, dataloader_idx)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Keep the vectors by the id of their item."""
        self._keep(outputs, batch, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, unless this is Lightning's sanity check, which sees only the first batches."""
        if trainer.sanity_checking:
            self._rows.clear()
        else:
            self._measure(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure."""
        self._measure(trainer, pl_module, "test")

    def _keep(self, outputs: dict[str, Embedding], batch: Batch, number: int) -> None:
        rows = self._rows.setdefault(number, {})
        for embedding in outputs.values():
            rows.update(zip(batch.ids, embedding.vector.detach().float().cpu(), strict=True))

    def _measure(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        tasks: list[RetrievalTask] = trainer.datamodule.tasks(stage)  # type: ignore[attr-defined]
        self.results[stage] = []
        for number, task in enumerate(tasks):
            rows: dict[str, Tensor] = {}
            for part in gather_objects(self._rows.pop(number, {})):
                rows |= part
            queries = _stack(rows, "q", len(task.queries), task.name)
            candidates = _stack(rows, "c", len(task.candidates), task.name)
            per_query = retrieval_metrics(queries, candidates, task.relevant, task.pools, task.metrics, name=task.name)
            result = Result(task, summary(per_query), chance(task), self._examples(task, queries, candidates))
            self.results[stage].append(result)
            for metric, value in result.values.items():
                pl_module.log(f"{stage}/{task.name}/{metric}", value, rank_zero_only=False)
        if tasks:
            firsts = [r.values.get("recall@10", next(iter(r.values.values()))) for r in self.results[stage]]
            pl_module.log(f"{stage}/primary", sum(firsts) / len(firsts))
        if trainer.is_global_zero:
            print_table(self.results[stage], f"{stage}, step {trainer.global_step}")

    def _examples(self, task: RetrievalTask, queries: Tensor, candidates: Tensor) -> list[Example]:
        step = max(1, len(queries) // self.examples)
        kept = []
        for query in range(0, len(queries), step)[: self.examples]:
            scores = queries[query] @ candidates.T
            if task.pools is not None:
                outside = torch.ones_like(scores, dtype=torch.bool)
                outside[list(task.pools[query])] = False
                scores = scores.masked_fill(outside, -torch.inf)
            order = scores.argsort(descending=True).tolist()
            right = set(task.relevant[query])
            rank = next(place for place, candidate in enumerate(order, 1) if candidate in right)
            kept.append(Example(query, order[:TOP], rank))
        return kept


def _stack(rows: dict[str, Tensor], kind: str, count: int, task: str) -> Tensor:
    missing = [f"{kind}:{i}" for i in range(count) if f"{kind}:{i}" not in rows]
    if missing:
        raise ZooError(
            f"task '{task}': {len(missing)} of {count} items were not embedded, first {missing[0]}; metrics need all of "
            "them, so run without limit_val_batches / limit_test_batches"
        )
    return torch.stack([rows[f"{kind}:{i}"] for i in range(count)])


def print_table(results: list[Result], title: str) -> None:
    """Values in percent, and how many times chance they are."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("task")
    for heading in ("queries", "candidates", "metric", "value %", "chance %", "times chance"):
        table.add_column(heading, justify="right")
    for result in results:
        sizes = [str(len(result.task.queries)), str(len(result.task.candidates))]
        for i, (metric, value) in enumerate(result.values.items()):
            base = result.chance[metric]
            head = [result.task.name, *sizes] if i == 0 else ["", "", ""]
            table.add_row(*head, metric, f"{100 * value:.1f}", f"{100 * base:.2f}", f"{value / base:.1f}")
    Console().print(table)
