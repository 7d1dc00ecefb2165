"""What the variances of a probabilistic entry tell: measured after a test, drawn in the report."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from zoo.callbacks.collected import CollectedEmbeddings, scored
from zoo.callbacks.measures import Measures
from zoo.callbacks.report_bars import Bars, bar_chart
from zoo.callbacks.report_page import sheet
from zoo.callbacks.vectors import embed_items
from zoo.data.damage import damaged_pairs
from zoo.errors import RecipeError
from zoo.metrics.probabilistic import Score, UncertaintyReport, match_calibration, total_variance, uncertainty_report
from zoo.metrics.uncertainty import Bins
from zoo.types import Embedding, Item, RetrievalTask

_COLUMNS = ("task", "metric", "rho of ambiguity", "95 % interval", "trend", "calibration error")
_NOTE = (
    "Uncertainty is the trace of a query's covariance. Rho: Spearman's, of uncertainty and the number of right answers, "
    "with a bootstrap interval. Trend: Spearman's rho of the bins' place and value; -1 = every bin is worse than the more "
    "certain one before it. Calibration error: between the probability of a match and how often pairs match, over all "
    "pairs; few of them match, and an error near their share says little. Half taken away: how many items became less "
    "certain without half of their width or words, and the median ratio of variances."
)
_HISTOGRAM = 20  # bars
_MOST_DAMAGED = 500  # items of a kind in the controlled test (ours)


class UncertaintyEvaluation(CollectedEmbeddings):
    """Measures of every test task: are ambiguous queries the uncertain ones, is what is uncertain retrieved worse, are
    probabilities calibrated; and of all items: does uncertainty rise when a part is taken away.

    The last is a controlled test: pictures lose half of their width, texts the later half of their words. Logs
    `test/<task>/uncertainty/ambiguity`, `.../trend` and `.../calibration_error`, and `test/uncertainty/damaged_pictures` and
    `.../damaged_texts`, the share of items that became more uncertain. The report shows a histogram, the metric in bins of
    uncertainty, and sheets of the most certain and the least certain queries.

    Ranking and probabilities are those of the objective (`pair_scores`, `match_log_probability`); without scores of its own,
    cosines of the means, and without probabilities no calibration.

    Args:
        bins: of queries, from the most certain to the least.
        shown: queries on each sheet.
        most_items: see `CollectedEmbeddings`.

    Raises:
        RecipeError: the entry gives no variances.
    """

    def __init__(self, bins: int = 10, shown: int = 12, most_items: int = 20_000) -> None:
        super().__init__(most_items)
        self.bins, self.shown = bins, shown
        self._items: dict[str, Item] = {}

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        super().on_test_epoch_start(trainer, pl_module)
        self._items = {}

    def measure_task(
        self,
        trainer: Trainer,
        module: LightningModule,
        task: RetrievalTask,
        queries: Embedding,
        candidates: Embedding,
    ) -> None:
        """One line of the table, two charts and two sheets."""
        if queries.log_var is None or candidates.log_var is None:
            raise RecipeError(
                "UncertaintyEvaluation: this entry gives no variances; use a GaussianHead, or leave the callback out"
            )
        metric = "map@r" if "map@r" in task.metrics else task.metrics[0]
        report = uncertainty_report(
            _score(module, "pair_scores", task) or _cosine,
            queries,
            candidates,
            task.relevant,
            (metric,),
            self.bins,
            uncertainty=_spread(module, queries),
            name=f"task '{task.name}'",
        )
        values = {"ambiguity": report.ambiguity.value, "trend": report.values[metric].trend()}
        if probability := _score(module, "match_log_probability", task):
            values["calibration_error"] = match_calibration(probability, queries, candidates, task.relevant).error()
        for name, value in values.items():
            module.log(f"test/{task.name}/uncertainty/{name}", value, batch_size=1, sync_dist=True)
        table = self.measures.setdefault("test", Measures("Uncertainty (test)", _COLUMNS, note=_NOTE))
        several = len({len(set(right)) for right in task.relevant}) > 1
        table.rows.append((task.name, metric, *_cells(report if several else None, values)))
        spread = [_spread(module, side).cpu() for side in (queries, candidates)]
        table.figures += [_histogram(task.name, *spread), _by_bin(task.name, metric, report.values[metric])]
        table.sheets += _sheets(task, spread[0], self.shown)
        self._items |= {repr(item): item for item in (*task.queries, *task.candidates)}

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure every task, then the controlled test on their items."""
        super().on_test_epoch_end(trainer, pl_module)
        for kind in ("pictures", "texts"):
            pairs = damaged_pairs(list(self._items.values()), kind, _MOST_DAMAGED)
            if pairs:
                self._controlled(trainer, pl_module, kind, pairs)

    def _controlled(
        self, trainer: Trainer, module: LightningModule, kind: str, pairs: Sequence[tuple[Item, Item]]
    ) -> None:
        whole, damaged = (
            _spread(module, embed_items(trainer, module, items, f"{state} {kind}")).double()
            for state, items in zip(("whole", "damaged"), zip(*pairs, strict=True), strict=True)
        )
        share = float((damaged > whole).double().mean())
        error = (share * (1 - share) / len(pairs)) ** 0.5
        module.log(f"test/uncertainty/damaged_{kind}", share, batch_size=1, sync_dist=True)
        ratio = f"variance x {float((damaged / whole).median()):.3f}"
        row = (f"{kind}, half taken away", "less certain", f"{100 * share:.1f} %", f"± {100 * error:.1f}", "", ratio)
        self.measures["test"].rows.append(row)


def _score(module: LightningModule, name: str, task: RetrievalTask) -> Score | None:
    """A score of the objective as one of queries and candidates."""
    score = getattr(getattr(module, "objective", None), name, None)
    return None if score is None else scored(score, task)


def _spread(module: LightningModule, embedding: Embedding) -> Tensor:
    """(R,) total variance of what the objective takes the rows for (see `PCME.distribution`)."""
    distribution = getattr(getattr(module, "objective", None), "distribution", None)
    return total_variance(embedding if distribution is None else distribution(embedding))


def _cosine(queries: Embedding, candidates: Embedding) -> Tensor:
    return queries.vector @ candidates.vector.T


def _cells(report: UncertaintyReport | None, values: dict[str, float]) -> tuple[str, ...]:
    """`report`: None where all queries are equally ambiguous."""
    rho, interval, error = "-", "-", values.get("calibration_error")
    if report is not None:
        found = report.ambiguity
        rho, interval = f"{found.value:+.3f}", f"{found.low:+.2f} to {found.high:+.2f}"
    return rho, interval, f"{values['trend']:+.2f}", "-" if error is None else f"{error:.4f}"


def _histogram(task: str, queries: Tensor, candidates: Tensor) -> str:
    everything = torch.cat([queries, candidates]).double()
    low, high = float(everything.min()), float(everything.max())
    edges = torch.linspace(low, high if high > low else low + 1, _HISTOGRAM + 1, dtype=torch.float64)
    groups = []
    for name, side in (("queries", queries), ("candidates", candidates)):
        place = (torch.bucketize(side.double(), edges, right=True) - 1).clamp(0, _HISTOGRAM - 1)
        share = torch.bincount(place, minlength=_HISTOGRAM).double() / len(side)
        groups.append(Bars(name, (100 * share).tolist()))
    names = [f"{edge:.3g}" for edge in edges[:-1].tolist()]
    return bar_chart(f"{task}: how uncertain items are", names, groups, "total variance, from", "% of the items")


def _by_bin(task: str, metric: str, bins: Bins) -> str:
    names = [f"{value:.3g}" for value in bins.uncertainty.tolist()]
    bars = Bars(metric, (100 * bins.value).tolist(), (100 * bins.error).tolist())
    return bar_chart(f"{task}: {metric} by uncertainty", names, [bars], "mean total variance of the bin", "%")


def _sheets(task: RetrievalTask, uncertainty: Tensor, shown: int) -> list[str]:
    order = uncertainty.argsort(stable=True).tolist()
    chosen = {"most certain": order[:shown], "least certain": order[::-1][:shown]}
    return [
        sheet(
            f"{task.name}: the {which} queries",
            [(task.queries[i], f"{uncertainty[i]:.4g}, {len(set(task.relevant[i]))} right") for i in numbers],
        )
        for which, numbers in chosen.items()
    ]
