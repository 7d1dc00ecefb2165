"""What is measured of embeddings that are distributions: ranking by any similarity, uncertainty, calibration.

Q queries, C candidates, E width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.metrics.calibration import Calibration, Reliability
from zoo.metrics.correlation import Interval, spearman_interval
from zoo.metrics.ranking import Indexes, Ranks, checked_indexes, full_precision, rank_scores
from zoo.metrics.retrieval import measure
from zoo.metrics.uncertainty import Bins, by_uncertainty
from zoo.similarity.similarity import gaussian
from zoo.types import Embedding

Score = Callable[[Embedding, Embedding], Tensor]
"""(queries, candidates) -> (Q, C), larger = more alike: any part of `zoo.similarity`, or an objective's own score."""

_BLOCK_SCORES = 1 << 22  # scores held at a time: 16 MiB in fp32


@dataclass(frozen=True, slots=True)
class UncertaintyReport:
    """What the uncertainty of queries tells.

    values: metric -> bins of it (see `by_uncertainty`).
    ambiguity: Spearman's rho of a query's uncertainty and of how many candidates are relevant to it, with its interval.
    """

    values: dict[str, Bins]
    ambiguity: Interval


def total_variance(embedding: Embedding) -> Tensor:
    """The uncertainty of each row, (R,): the trace of its covariance. Raises RecipeError if there is no log_var."""
    return gaussian(embedding)[1].exp().sum(1)


def similarity_ranks(
    similarity: Score,
    queries: Embedding,
    candidates: Embedding,
    relevant: Indexes,
    pools: Indexes | None = None,
    *,
    name: str = "task",
) -> Ranks:
    """`zoo.metrics.ranking.rank` by a similarity of distributions; see there for the inputs and what it raises.

    Scores of the same pair may round differently in different places, so equal items need not tie.
    """

    def scores(rows: slice) -> Tensor:
        with full_precision(queries.vector.device):
            return similarity(_rows(queries, rows), candidates)

    size = len(queries.vector), len(candidates.vector)
    return rank_scores(scores, size, relevant, pools, name=name)


def uncertainty_report(
    similarity: Score,
    queries: Embedding,
    candidates: Embedding,
    relevant: Indexes,
    metrics: tuple[str, ...] = ("recall@1", "map@r"),
    bins: int = 10,
    *,
    uncertainty: Tensor | None = None,
    name: str = "task",
) -> UncertaintyReport:
    """Metrics of the queries in bins of their uncertainty, and whether ambiguous queries are the uncertain ones.

    Args:
        similarity: what to rank by.
        queries: Q rows with log_var.
        candidates: C rows, with log_var where the similarity asks for it.
        relevant: per query the indexes of its relevant candidates, at least one.
        metrics: names of `zoo.metrics.retrieval`.
        bins: how many.
        uncertainty: (Q,) of the queries; None = their total variance.
        name: what error messages call the data.
    """
    found = measure(similarity_ranks(similarity, queries, candidates, relevant, name=name), metrics)
    uncertainty = (total_variance(queries) if uncertainty is None else uncertainty).detach().cpu()
    counts = torch.tensor([len(set(entry)) for entry in relevant])
    return UncertaintyReport(
        values={metric: by_uncertainty(uncertainty, values, bins) for metric, values in found.items()},
        ambiguity=spearman_interval(uncertainty, counts),
    )


def match_calibration(
    log_probability: Score,
    queries: Embedding,
    candidates: Embedding,
    relevant: Indexes,
    bins: int = 15,
    *,
    name: str = "task",
) -> Reliability:
    """Calibration of the probability that a query and a candidate match, over all pairs of them.

    Args:
        log_probability: such as `zoo.similarity.match_probability.MatchProbability`.
        queries: Q rows.
        candidates: C rows.
        relevant: per query the indexes of its relevant candidates; every other pair is no match.
        bins: how many.
        name: what error messages call the data.
    """
    right, _ = checked_indexes(len(queries.vector), len(candidates.vector), relevant, None, name)
    collected = Calibration(bins)
    step = max(1, _BLOCK_SCORES // len(candidates.vector))
    for start in range(0, len(queries.vector), step):
        rows = slice(start, min(start + step, len(queries.vector)))
        with full_precision(queries.vector.device):
            probabilities = log_probability(_rows(queries, rows), candidates).exp()
        matches = torch.zeros(probabilities.shape)
        for place, entry in enumerate(right[rows]):
            matches[place, entry] = 1.0
        collected.add(probabilities, matches)
    return collected.result()


def _rows(embedding: Embedding, rows: slice) -> Embedding:
    return Embedding(embedding.vector[rows], None if embedding.log_var is None else embedding.log_var[rows])
