"""Retrieval metrics in closed form from where the relevant candidates stand.

Names:
    recall@k: 1 if any relevant candidate is among the first k, as CLIP's papers and M-BEIR count it.
    precision@k: share of the first k that is relevant; `precision@1` over a query's own list is MMEB's score.
    mrr, mrr@k: 1 / position of the first relevant one.
    ndcg, ndcg@k: binary gains, discount 1 / log2(position + 1).
    r_precision: share of relevant ones among the first R, R = how many are relevant.
    map@r: mean over the first R positions of precision at the position where that is a relevant one's, else 0
        (arXiv:2003.08505, equation 7); for several right answers, as in ECCV Caption.
    mean_rank, median_rank: position of the first relevant one.

Ties, for every metric:
    expected: the exact expectation over all orders of the tied candidates. Constant embeddings then score what guessing
        scores (`chance`), neither better nor worse.
    wrong: tied candidates that are not relevant stand above those that are; the least that any order could give.
    right: the other way round; the most that any order could give. This is MMEB's official score: `argmax` over a list
        whose first entry is the right one. Under it a model that maps everything to one point scores 100 %.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from zoo.errors import UnknownNameError
from zoo.metrics.classification import by_class
from zoo.metrics.ranking import Indexes, Ranks, checked_indexes, rank
from zoo.types import RetrievalTask

Ties = Literal["expected", "wrong", "right"]

KNOWN = (
    "recall@10",
    "precision@1",
    "mrr",
    "mrr@10",
    "ndcg",
    "ndcg@10",
    "map@r",
    "r_precision",
    "mean_rank",
    "median_rank",
)
"""One example of every kind of name."""

_NAME = re.compile(r"(recall|precision|mrr|ndcg)@([1-9]\d*)|(mrr|ndcg|mean_rank|median_rank|r_precision|map@r)")


def retrieval_metrics(
    queries: Tensor,
    candidates: Tensor,
    relevant: Indexes,
    pools: Indexes | None = None,
    metrics: Sequence[str] = ("recall@1", "recall@10", "mrr", "ndcg@10"),
    ties: Ties = "expected",
    name: str = "task",
) -> dict[str, Tensor]:
    """Per-query values (Q,) float64 of every metric. See `zoo.metrics.ranking.rank` for the inputs and what it raises.

    Raises:
        UnknownNameError: a metric that there is not.
    """
    check_metrics(metrics)
    return measure(rank(queries, candidates, relevant, pools, name=name), metrics, ties)


def measure(ranks: Ranks, metrics: Sequence[str], ties: Ties = "expected") -> dict[str, Tensor]:
    """Per-query values (Q,) float64 of every metric."""
    groups = _resolved(ranks, ties)
    return {metric: _one(groups, *parse_metric(metric)) for metric in metrics}


def summary(values: dict[str, Tensor]) -> dict[str, float]:
    """Over all queries: the (lower) median for `median_rank`, the mean for every other metric."""
    return {metric: float(v.median() if metric == "median_rank" else v.mean()) for metric, v in values.items()}


def standard_errors(values: dict[str, Tensor]) -> dict[str, float]:
    """Of the means of `summary`, taking queries as independent; NaN for the median and for a single query."""
    return {
        metric: float("nan") if metric == "median_rank" or len(v) < 2 else float(v.std() / len(v) ** 0.5)
        for metric, v in values.items()
    }


def chance(task: RetrievalTask) -> dict[str, float]:
    """What constant embeddings score on the task, which is the expectation of guessing."""
    check_metrics(task.metrics)
    task = by_class(task)
    relevant, pools = checked_indexes(
        len(task.queries), len(task.candidates), task.relevant, task.pools, f"task '{task.name}'"
    )
    right = torch.tensor([len(entry) for entry in relevant])
    pool = torch.tensor([len(task.candidates)] * len(relevant) if pools is None else [len(entry) for entry in pools])
    mask = torch.arange(int(right.max())) < right[:, None]
    tied, tied_relevant = (counts[:, None].expand_as(mask) * mask for counts in (pool, right))
    return summary(measure(Ranks(torch.zeros_like(tied), tied, tied_relevant, mask), task.metrics))


def better_is_lower(metric: str) -> bool:
    """Whether small values are the good ones."""
    return metric.endswith("_rank")


def check_metrics(metrics: Iterable[str]) -> None:
    """Raises UnknownNameError for a metric that there is not."""
    for metric in metrics:
        parse_metric(metric)


def parse_metric(metric: str) -> tuple[str, int | None]:
    """`recall@10` -> ("recall", 10); `mrr` -> ("mrr", None). Raises UnknownNameError."""
    match = _NAME.fullmatch(metric)
    if match is None:
        raise UnknownNameError("metric", metric, KNOWN, f"(there are {', '.join(KNOWN)}, with any number after the @)")
    return (match[1], int(match[2])) if match[1] else (match[3], None)


# ---- closed forms ----------------------------------------------------------------------------------------------------


def _resolved(ranks: Ranks, ties: Ties) -> Ranks:
    """The same ranks with ties decided; what is left tied is all relevant, so its order does not matter."""
    if ties == "expected":
        return ranks
    if ties not in ("wrong", "right"):
        raise UnknownNameError("way to count ties", ties, ("expected", "wrong", "right"))
    others = ranks.tied - ranks.tied_relevant if ties == "wrong" else 0
    return Ranks(ranks.above + others, ranks.tied_relevant, ranks.tied_relevant, ranks.mask)


def _one(ranks: Ranks, kind: str, k: int | None) -> Tensor:
    if kind == "ndcg":
        return _ndcg(ranks, k)
    if kind == "precision":
        assert k is not None  # the pattern of names has no bare `precision`
        return _precision(ranks, torch.full((len(ranks.mask),), k))
    if kind == "r_precision":
        return _precision(ranks, ranks.mask.sum(1))
    if kind == "map@r":
        return _map_at_r(ranks)
    above, tied, relevant = _first(ranks)
    if kind == "recall":
        assert k is not None
        return 1 - _none_among(tied, relevant, (k - above).clamp(min=0))
    if kind == "mrr":
        return _mrr(above, tied, relevant, k)
    return above + (tied + 1) / (relevant + 1).double()  # of r among m shuffled, the first stands at (m + 1) / (r + 1)


def _first(ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
    """above, tied, tied_relevant (Q,) of the group that holds the best relevant candidate."""
    column = ranks.above.masked_fill(~ranks.mask, torch.iinfo(torch.int64).max).argmin(1, keepdim=True)
    above, tied, relevant = (t.gather(1, column).squeeze(1) for t in (ranks.above, ranks.tied, ranks.tied_relevant))
    return above, tied, relevant


def _none_among(tied: Tensor, relevant: Tensor, first: Tensor) -> Tensor:
    """(Q,) P(no relevant one among the `first` of `tied` shuffled candidates) = C(m - r, i) / C(m, i)."""
    none = torch.ones(len(tied), dtype=torch.float64)
    for i in range(min(int(first.max()), int(tied.max()))):
        step = (tied - relevant - i).clamp(min=0) / (tied - i).clamp(min=1).double()
        none = torch.where(i < first, none * step, none)
        if not bool(((i + 1 < first) & (none > 0)).any()):
            break
    return none


def _mrr(above: Tensor, tied: Tensor, relevant: Tensor, k: int | None) -> Tensor:
    """Sum over positions of P(the first relevant one stands there) / position."""
    k = k or int((above + tied).max())
    result = (above < k) / (above + 1).double()  # right where nothing is left to chance
    open_rows = (tied > relevant).nonzero().flatten()
    cases, case_of = torch.unique(torch.stack([above, tied, relevant], 1)[open_rows], dim=0, return_inverse=True)
    for number, (a, m, r) in enumerate(cases.tolist()):  # few: most ties are the same tie
        i = torch.arange(m - r + 1, dtype=torch.float64)  # that many others of the group before it
        keep = torch.cat([torch.ones(1, dtype=torch.float64), (m - r - i[:-1]) / (m - i[:-1])]).cumprod(0)
        first_here = keep * r / (m - i)
        position = a + i + 1
        result[open_rows[case_of == number]] = (first_here / position)[position <= k].sum()
    return result


def _precision(ranks: Ranks, k: Tensor) -> Tensor:
    """Each relevant candidate is among the first k (Q,) with the share of its group that fits there."""
    fitting = torch.minimum((k[:, None] - ranks.above).clamp(min=0), ranks.tied)
    return (fitting / ranks.tied.clamp(min=1).double() * ranks.mask).sum(1) / k


def _map_at_r(ranks: Ranks) -> Tensor:
    """Sum over the positions p <= R of P(a relevant one stands there) E(precision at p | it does) / R.

    Of a group of m tied candidates, r of them relevant, behind a others, h of them relevant, position a + i holds a relevant
    one with probability r / m, and then h + 1 + (i - 1) (r - 1) / (m - 1) relevant ones stand up to it.
    """
    count = ranks.mask.sum(1)
    hidden = ranks.above.masked_fill(~ranks.mask, torch.iinfo(torch.int64).max)
    ahead = torch.searchsorted(hidden.sort(1).values, hidden).double()
    m, r, a = (t.clamp(min=1).double() for t in (ranks.tied, ranks.tied_relevant, ranks.above + 1))
    a = a - 1
    total = torch.zeros(hidden.shape, dtype=torch.float64)
    for i in range(1, int(torch.minimum(ranks.tied, count[:, None])[ranks.mask].max()) + 1):
        inside = (i <= m) & (a + i <= count[:, None]) & ranks.mask
        up_to = ahead + 1 + (i - 1) * (r - 1) / (m - 1).clamp(min=1)
        total += torch.where(inside, up_to / (m * (a + i)), 0.0)  # each of the r columns of a group carries its share
    return total.sum(1) / count


def _ndcg(ranks: Ranks, k: int | None) -> Tensor:
    """Each relevant candidate gets the mean discount of its group's positions."""
    last = int((ranks.above + ranks.tied).max())
    discounts = 1 / torch.arange(2, max(last, ranks.mask.shape[1]) + 2, dtype=torch.float64).log2()
    if k is not None:
        discounts[k:] = 0
    total = torch.cat([torch.zeros(1, dtype=torch.float64), discounts.cumsum(0)])
    gains = (total[ranks.above + ranks.tied] - total[ranks.above]) / ranks.tied.clamp(min=1)
    return (gains * ranks.mask).sum(1) / total[ranks.mask.sum(1)]
