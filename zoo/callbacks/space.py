"""How queries and candidates of the evaluation tasks lie in the embedding space."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from zoo.callbacks.measures import Measures, measures_table
from zoo.callbacks.terminal import show
from zoo.metrics.space import space_metrics
from zoo.types import RetrievalTask

_NOTE = (
    "Gap: distance of the mean query from the mean candidate. Alignment: mean squared distance of right pairs. Uniformity "
    "(queries, candidates, across): log mean exp(-2 d²) of pairs that do not belong together; 0 = all in one point, lower "
    "= better spread. Separable: how often a linear classifier tells queries from candidates; 50 % = no gap."
)


class SpaceDiagnostics(Callback):
    """Logs `val/<task>/modality_gap` and the other values of `zoo.metrics.space` after every validation (and test).

    Works on the vectors that `RetrievalEvaluation` collects, so it costs no embedding. Tables are printed by
    `zoo validate|test` and stand in the report.

    Args:
        tasks: the names of the tasks to look at; None = all.
        rows: see `zoo.metrics.space.space_metrics`.
    """

    def __init__(self, tasks: Sequence[str] | None = None, rows: int = 20_000) -> None:
        self.tasks, self.rows = tasks, rows
        self.measures: dict[str, Measures] = {}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A new table."""
        self.measures.pop("val", None)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A new table."""
        self.measures.pop("test", None)

    def on_task_vectors(
        self,
        trainer: Trainer,
        module: LightningModule,
        stage: str,
        task: RetrievalTask,
        queries: Tensor,
        candidates: Tensor,
    ) -> None:
        """Measure one task."""
        if self.tasks is not None and task.name not in self.tasks:
            return
        values = space_metrics(queries, candidates, task.relevant, rows=self.rows, name=f"task '{task.name}'")
        for name, value in values.items():
            if not math.isnan(value):  # too few vectors for it
                module.log(f"{stage}/{task.name}/{name}", value, batch_size=1, sync_dist=True)
        columns = ("task", "gap", "alignment", "cosine", "uniformity", "across", "separable")
        table = self.measures.setdefault(stage, Measures(f"Embedding space ({stage})", columns, note=_NOTE))
        table.rows.append((task.name, *_cells(values)))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the table, unless fitting goes on."""
        if trainer.state.fn != "fit" and "val" in self.measures:
            show(trainer, measures_table(self.measures["val"]))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the table."""
        if "test" in self.measures:
            show(trainer, measures_table(self.measures["test"]))


def _cells(values: dict[str, float]) -> tuple[str, ...]:
    uniform = ", ".join(_number(values[f"uniformity_{side}"]) for side in ("queries", "candidates"))
    first = (_number(values[name]) for name in ("modality_gap", "alignment", "positive_cosine"))
    separable = values["separability"]
    share = "-" if math.isnan(separable) else f"{100 * separable:.1f} %"
    return (*first, uniform, _number(values["cross_uniformity"]), share)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
