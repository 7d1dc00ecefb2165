"""What vectors that are sparse mixtures of codes have in common. R rows, C codes."""

from __future__ import annotations

from torch import Tensor


def active_codes(weights: Tensor) -> Tensor:
    """How many codes a row uses, on average: weights (R, C) -> scalar."""
    return (weights > 0).sum(1).float().mean()


def shared_codes(left: Tensor, right: Tensor) -> Tensor:
    """Of the codes that either row of a pair uses, the share that both use, on average: two times (R, C) -> scalar."""
    one, other = left > 0, right > 0
    return ((one & other).sum(1) / (one | other).sum(1).clamp(min=1)).float().mean()
