"""What is measured beside ranking: who may ask for a task's vectors, and the tables that come of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from lightning.pytorch import LightningModule, Trainer
from rich.table import Table
from rich.text import Text
from torch import Tensor

from zoo.types import RetrievalTask


@runtime_checkable
class TaskMeasure(Protocol):
    """A callback that measures something of its own on the vectors that `RetrievalEvaluation` has collected."""

    def on_task_vectors(
        self,
        trainer: Trainer,
        module: LightningModule,
        stage: str,
        task: RetrievalTask,
        queries: Tensor,
        candidates: Tensor,
    ) -> None:
        """Called on every rank, at the end of a validation or test, with all vectors in the order of the task.

        A task of prompt ensembles comes as it is ranked: one candidate per class. The vectors are on the module's device,
        or on the CPU if that knows no fp64.
        """
        ...


def measure_further(
    trainer: Trainer, module: LightningModule, stage: str, task: RetrievalTask, candidates: Tensor, queries: Tensor
) -> None:
    """Hand the vectors of a task to every callback that is a `TaskMeasure`."""
    if candidates.device.type == "mps":
        candidates, queries = candidates.cpu(), queries.cpu()
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, TaskMeasure):
            callback.on_task_vectors(trainer, module, stage, task, queries, candidates)


@dataclass(slots=True)
class Measures:
    """A table of values as they are shown: the first column names the row.

    `note` explains it in the report; `figures` and `sheets` are HTML that stands below it there: charts side by side, and
    what takes the whole width.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[Sequence[str]] = field(default_factory=list)
    note: str = ""
    figures: list[str] = field(default_factory=list)
    sheets: list[str] = field(default_factory=list)


@runtime_checkable
class Measured(Protocol):
    """A callback whose tables the report shows, by stage."""

    measures: dict[str, Measures]


def measures_table(measures: Measures) -> Table:
    """For the terminal."""
    table = Table(title=measures.title, title_justify="left", title_style="bold")
    for number, column in enumerate(measures.columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold", no_wrap=number > 0)
    for row in measures.rows:
        table.add_row(*map(Text, row))
    return table
