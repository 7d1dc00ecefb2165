"""Correlation of two lists of numbers; 0 where one of them is constant, as an embedding that tells nothing deserves."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.errors import NonFiniteError, SampleError


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
