"""How two sides of a task lie in the embedding space: gap, alignment, uniformity, separability.

Shapes: Q queries, C candidates, E width, P pairs (a query and one of its relevant candidates).

Sources: modality gap, Liang et al. (arXiv:2203.02053), section 2; alignment and uniformity, Wang & Isola
(arXiv:2005.10242), section 4.1; cross-uniformity and separability, Fahim et al. (arXiv:2405.18570), section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.errors import SampleError
from zoo.metrics.probes import fit_logistic
from zoo.metrics.ranking import Indexes, checked_indexes, checked_vectors, full_precision

_BLOCK_SCORES = 1 << 24  # distances held at a time: 64 MiB in fp32 (ours)
_PAIRS = 1 << 14  # positive pairs at a time
_SCALE = 2.0  # of squared distances in the kernel: t of Wang & Isola
_L2 = 1e-4  # of the separating plane (ours)

NAMES = (
    "modality_gap",
    "alignment",
    "positive_cosine",
    "uniformity_queries",
    "uniformity_candidates",
    "cross_uniformity",
    "separability",
)


def space_metrics(
    queries: Tensor,
    candidates: Tensor,
    relevant: Indexes,
    *,
    rows: int = 20_000,
    name: str = "task",
    block_scores: int = _BLOCK_SCORES,
) -> dict[str, float]:
    """The values of `NAMES`; NaN where there are too few vectors for one.

    modality_gap: |mean query - mean candidate|.
    alignment: mean |x - y|^2 over all pairs; positive_cosine: their mean cosine.
    uniformity_*: log mean exp(-2 |x - x'|^2) over all pairs of different items of a side; 0 = all in one point, and
        the lower the better spread.
    cross_uniformity: the same over every query with every candidate that is not relevant to it.
    separability: share of right guesses of a linear classifier that tells queries from candidates, trained on one half
        and tried on the other, both ways round, each side weighing the same; 0.5 = no gap, 1 = two separate clouds.

    Args:
        queries: (Q, E), unit norm.
        candidates: (C, E), on the same device.
        relevant: per query the indexes of its relevant candidates.
        rows: of a side with more rows than this, the last three kinds take so many, drawn once and for all.
        name: what error messages call the data.
        block_scores: distances to hold at a time; at least those of one row are.

    Raises:
        NonFiniteError: a vector is NaN or infinite; names it.
        SampleError: `relevant` does not fit, or `rows` is below 1.
    """
    if rows < 1:
        raise SampleError(f"{name}: rows is {rows}; it is at least 1")
    queries, candidates = checked_vectors(queries, "query", name), checked_vectors(candidates, "candidate", name)
    right, _ = checked_indexes(len(queries), len(candidates), relevant, None, name)
    owner = torch.tensor([i for i, entry in enumerate(right) for _ in entry], device=queries.device)
    positive = torch.tensor([j for entry in right for j in entry], device=queries.device)
    alignment, cosine = _positives(queries, candidates, owner, positive)
    gap = queries.mean(0, dtype=torch.float64) - candidates.mean(0, dtype=torch.float64)
    some_queries, some_candidates = _drawn(len(queries), rows), _drawn(len(candidates), rows)
    x, y = queries[some_queries], candidates[some_candidates]
    own, other = _places(owner, some_queries, len(queries)), _places(positive, some_candidates, len(candidates))
    both = (own >= 0) & (other >= 0)
    with full_precision(queries.device):
        return {
            "modality_gap": float(gap.norm()),
            "alignment": alignment,
            "positive_cosine": cosine,
            "uniformity_queries": _uniformity(x, block_scores),
            "uniformity_candidates": _uniformity(y, block_scores),
            "cross_uniformity": _log_mean_kernel(x, y, own[both], other[both], block_scores),
            "separability": _separability(x, y),
        }


def _positives(queries: Tensor, candidates: Tensor, owner: Tensor, positive: Tensor) -> tuple[float, float]:
    """Mean squared distance and mean cosine of the pairs."""
    distance = cosine = 0.0
    for i, j in zip(owner.split(_PAIRS), positive.split(_PAIRS), strict=True):
        x, y = queries[i].double(), candidates[j].double()
        distance += float((x - y).square().sum())
        cosine += float(torch.nn.functional.cosine_similarity(x, y, dim=1).sum())
    return distance / len(owner), cosine / len(owner)


def _uniformity(rows: Tensor, block_scores: int) -> float:
    itself = torch.arange(len(rows), device=rows.device)
    return _log_mean_kernel(rows, rows, itself, itself, block_scores)


def _log_mean_kernel(x: Tensor, y: Tensor, skip_x: Tensor, skip_y: Tensor, block_scores: int) -> float:
    """Log mean exp(-2 |x - y|^2) over all pairs but those to skip, whose first index is sorted; NaN if none is left."""
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    norms = y.square().sum(1)
    size = max(1, block_scores // len(y))
    for start in range(0, len(x), size):
        part = x[start : start + size]
        squares = part.square().sum(1)[:, None] + norms - 2 * (part @ y.T)
        kernel = squares.clamp_(min=0).mul_(-_SCALE).exp_()
        low, high = torch.searchsorted(skip_x, torch.tensor([start, start + len(part)], device=x.device)).tolist()
        kernel[skip_x[low:high] - start, skip_y[low:high]] = 0
        total += kernel.sum(dtype=torch.float64)
    count = len(x) * len(y) - len(skip_x)
    return float((total / count).log()) if count else float("nan")


def _separability(x: Tensor, y: Tensor) -> float:
    if min(len(x), len(y)) < 2:
        return float("nan")
    shares = []
    for half in (0, 1):
        train = torch.cat([x[half::2], y[half::2]])
        sides = torch.cat([torch.zeros(len(x[half::2])), torch.ones(len(y[half::2]))]).long().to(x.device)
        weight = 0.5 / sides.bincount()[sides]  # each side counts half
        fit = fit_logistic(train, sides, 2, _L2, weight)
        for side, rows in ((0, x), (1, y)):
            scores = fit(rows[1 - half :: 2])
            margin = (scores[:, side] - scores[:, 1 - side]).sign()
            shares.append(float((margin + 1).mean() / 2))  # a tie is half right
    return sum(shares) / len(shares)


def _drawn(count: int, limit: int) -> Tensor:
    if count <= limit:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:limit].sort().values


def _places(indexes: Tensor, drawn: Tensor, count: int) -> Tensor:
    """Where in `drawn` every index stands; -1 = nowhere."""
    place = torch.full((count,), -1, device=indexes.device)
    place[drawn.to(indexes.device)] = torch.arange(len(drawn), device=indexes.device)
    return place[indexes]
