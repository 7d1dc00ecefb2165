"""Correlation of two lists of numbers; 0 where one of them is constant, as an embedding that tells nothing deserves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.errors import NonFiniteError, SampleError


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and between what it would come to lie, were it measured again on other data of the same kind."""

    value: float
    low: float
    high: float


def pearson(x: Tensor, y: Tensor) -> float:
    """Pearson's r of x and y (N,), computed in fp64. Raises SampleError, NonFiniteError."""
    x, y = _checked(x, y)
    if bool((x == x[0]).all() | (y == y[0]).all()):
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y / (x.norm() * y.norm())).clamp(-1, 1))


def spearman(x: Tensor, y: Tensor) -> float:
    """Spearman's rho: Pearson's r of the ranks, equal values sharing the mean of theirs."""
    x, y = _checked(x, y)
    return pearson(_ranks(x), _ranks(y))


def spearman_interval(x: Tensor, y: Tensor, level: float = 0.95, draws: int = 1000, seed: int = 0) -> Interval:
    """Spearman's rho with a bootstrap interval: the middle `level` of its values on pairs drawn with replacement.

    Percentile bootstrap (Efron 1979). Pairs are taken as independent; `seed` is that of the draws, which leave the global
    generator as it is. Raises SampleError, NonFiniteError, as `spearman`.
    """
    x, y = _checked(x, y)
    if not 0 < level < 1 or draws < 1:
        raise SampleError(f"an interval needs a level between 0 and 1 and a draw at least, not {level} and {draws}")
    generator = torch.Generator().manual_seed(seed)
    chosen = (torch.randint(len(x), (len(x),), generator=generator).to(x.device) for _ in range(draws))
    values = torch.tensor([spearman(x[rows], y[rows]) for rows in chosen], dtype=torch.float64)
    low, high = values.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return Interval(spearman(x, y), low, high)


def _ranks(values: Tensor) -> Tensor:
    _, which, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    places: Tensor = last - (counts - 1) / 2.0
    return places.double()[which]


def _checked(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise SampleError(f"a correlation needs two lists of one length, not {tuple(x.shape)} and {tuple(y.shape)}")
    x, y = x.double(), y.double()
    if not bool(torch.isfinite(x).all() & torch.isfinite(y).all()):
        raise NonFiniteError("a correlation of values that are not finite; look for NaN among scores and vectors")
    return x, y
