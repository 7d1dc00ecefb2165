"""Whether uncertainty tells how well an item is retrieved: a metric of queries in bins of rising uncertainty.

Q queries, B bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.errors import NonFiniteError, SampleError
from zoo.metrics.correlation import pearson, spearman


@dataclass(frozen=True, slots=True)
class Bins:
    """From the most certain to the least, (B,) float64 each: mean uncertainty, mean value, its standard error, count.

    The standard error is that of a sample (n - 1); NaN where a bin holds a single query, which says nothing of it.
    """

    uncertainty: Tensor
    value: Tensor
    error: Tensor
    count: Tensor

    def trend(self) -> float:
        """Spearman's rho of a bin's place and its value; -1 = every bin is worse than the one before (ProbVLM's S)."""
        return spearman(torch.arange(len(self.value)), self.value)

    def linear_trend(self) -> float:
        """Pearson's r of the same (PCME++ and ProLIP report this)."""
        return pearson(torch.arange(len(self.value)), self.value)


def by_uncertainty(uncertainty: Tensor, values: Tensor, bins: int = 10) -> Bins:
    """Queries sorted by uncertainty, cut into bins of equal size (or one more), and the mean value of each.

    Equally uncertain queries share the mean of their values, which is the expectation over all orders of them: constant
    uncertainty gives bins of equal value.

    Args:
        uncertainty: (Q,), such as `zoo.metrics.probabilistic.total_variance`.
        values: (Q,) what is measured of each query, such as recall@1.
        bins: B; as many as queries where there are fewer.

    Raises:
        SampleError: lists of different length, or none at all.
        NonFiniteError: a value is not finite; names the query.
    """
    uncertainty, values = uncertainty.detach().cpu().double(), values.detach().cpu().double()
    if uncertainty.ndim != 1 or uncertainty.shape != values.shape or not len(values) or bins < 1:
        sizes = f"{tuple(uncertainty.shape)} and {tuple(values.shape)}"
        raise SampleError(f"one uncertainty and one value per query, and a bin at least: not {sizes} and {bins} bins")
    if bad := (~(uncertainty.isfinite() & values.isfinite())).nonzero().flatten().tolist():
        raise NonFiniteError(f"the uncertainty or the value of query {bad[0]} is not finite")
    _, group, size = torch.unique(uncertainty, return_inverse=True, return_counts=True)
    shared = (torch.zeros(len(size), dtype=torch.float64).index_add_(0, group, values) / size)[group]
    order = uncertainty.argsort(stable=True).tensor_split(min(bins, len(values)))
    return Bins(
        uncertainty=torch.stack([uncertainty[rows].mean() for rows in order]),
        value=torch.stack([_mean(shared[rows]) for rows in order]),
        error=torch.stack([_error(values[rows]) for rows in order]),
        count=torch.tensor([len(rows) for rows in order], dtype=torch.float64),
    )


def _error(values: Tensor) -> Tensor:
    return values.std() / len(values) ** 0.5 if len(values) > 1 else values.new_tensor(torch.nan)


def _mean(values: Tensor) -> Tensor:
    """The mean; of equal values it is the value itself, so that bins of them are equal, too."""
    return values[0] + (values - values[0]).mean()
