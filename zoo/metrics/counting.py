"""How many scores of a row pass a comparison."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

FEW = 16  # up to so many values to compare with, comparing is faster than sorting (ours, 2 CPU cores)

_COUNTED = 1 << 21  # scores compared at a time: their comparison stays in the cache (ours, likewise)
_EXACT = 1 << 24  # up to here whole numbers are exact in fp32


def compared(scores: Tensor, own: Tensor, holds: Callable[..., Tensor]) -> Tensor:
    """(b, R) int64: for how many of a row's `scores` (b, C) the comparison with each of its `own` (b, R) holds.

    It is written as fp32, ones and zeros: their sum is many times faster than that of truth values.
    """
    total = torch.float64 if scores.shape[1] >= _EXACT else torch.float32
    size = max(1, _COUNTED // scores.shape[1])
    buffer = torch.empty_like(scores[:size], dtype=torch.float32)
    counts = [
        torch.stack(
            [holds(part, value[:, None], out=buffer[: len(part)]).sum(1, dtype=total) for value in mine.unbind(1)]
        )
        for part, mine in zip(scores.split(size), own.split(size), strict=True)
    ]
    return torch.cat(counts, 1).T.long()


def counted(scores: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """How many of each row's `scores` (b, C) are above and equal to each of its `own` (b, R): two (b, R) int64.

    NaN stands for nothing: it neither counts nor is counted.
    """
    if own.shape[1] <= FEW:
        return compared(scores, own, torch.gt), compared(scores, own, torch.eq)
    absent = scores.isnan()
    ordered = scores.masked_fill(absent, -torch.inf).sort(dim=1).values
    upper = torch.searchsorted(ordered, own.contiguous(), right=True)
    lower = torch.searchsorted(ordered, own.contiguous())
    nothing = own.isnan()
    tied = upper - lower - (own == -torch.inf) * absent.sum(1, keepdim=True)
    return (ordered.shape[1] - upper).masked_fill(nothing, 0), tied.masked_fill(nothing, 0)
