"""Retrieval by the score that a model was trained with, where that is not the cosine of two vectors."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer

from zoo.callbacks.collected import CollectedEmbeddings, rows_of, scored
from zoo.callbacks.measures import Measures
from zoo.errors import RecipeError
from zoo.metrics.ranking import rank_scores
from zoo.metrics.retrieval import chance, measure, summary
from zoo.types import Embedding, RetrievalTask

_COLUMNS = ("task", "metric", "value", "chance")


class ScoreEvaluation(CollectedEmbeddings):
    """Ranks every candidate of the test tasks by the objective's `pair_scores`, beside the ranking by vectors.

    DVSA, multiple-instance scores and FLAIR compare parts of a picture with a text; vectors are a first guess there. Every
    pair is scored. Values are logged as `test/<task>/score/<metric>` and stand in the report.

    Args:
        most_items: see `CollectedEmbeddings`.

    Raises:
        RecipeError: the objective scores no pairs, or a task compares like with like, where the score has no two sides.
    """

    def measure_task(
        self,
        trainer: Trainer,
        module: LightningModule,
        task: RetrievalTask,
        queries: Embedding,
        candidates: Embedding,
    ) -> None:
        """Rank, log, and add to the table."""
        score = getattr(getattr(module, "objective", None), "pair_scores", None)
        if score is None:
            raise RecipeError("ScoreEvaluation: this objective scores no pairs; leave the callback out")
        table = self.measures.setdefault("test", Measures("By the model's own score (test)", _COLUMNS))
        by_sides, size = scored(score, task), (len(queries.vector), len(candidates.vector))
        ranks = rank_scores(
            lambda rows: by_sides(rows_of(queries, rows), candidates),
            size,
            task.relevant,
            task.pools,
            name=f"task '{task.name}'",
        )
        for metric, value in summary(measure(ranks, task.metrics)).items():
            module.log(f"test/{task.name}/score/{metric}", value, batch_size=1, sync_dist=True)
            table.rows.append((task.name, metric, _percent(value), _percent(chance(task)[metric])))


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
