"""What papers do to single cells of a contrastive loss: weights, margins, filters. One class per idea.

Each takes a tile of logits (r, C), which of its cells are right, and the scale, and returns logits: the old ones plus a
constant (no gradient flows through what is added), or -inf for a cell that is left out. Right cells are the rows' own, and
with `duplicates: positive` all that are as right; they stay.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Adjustment(Protocol):
    """(logits (r, C), right (r, C) bool, scale) -> logits."""

    def __call__(self, logits: Tensor, right: Tensor, scale: Tensor) -> Tensor: ...


class Hardness(Adjustment):
    """Negatives weigh exp(alpha x cosine): hard ones count more (LLaVE, arXiv:2503.04812, equation 5; alpha 9).

    Args:
        alpha: 0 is plain InfoNCE.
    """

    def __init__(self, alpha: float = 9.0) -> None:
        self.alpha = alpha

    def __call__(self, logits: Tensor, right: Tensor, scale: Tensor) -> Tensor:
        """See the module."""
        weight = (logits.detach() * (self.alpha / scale)).masked_fill(right | (logits == -torch.inf), 0.0)
        return logits + weight


class Margin(Adjustment):
    """Right cells have to win by a margin (AM-softmax, arXiv:1801.05599, equation 6).

    Args:
        margin: in units of cosine.
    """

    def __init__(self, margin: float) -> None:
        self.margin = margin

    def __call__(self, logits: Tensor, right: Tensor, scale: Tensor) -> Tensor:
        """See the module."""
        return logits - right * (self.margin * scale)


class FalseNegativeFilter(Adjustment):
    """Negatives whose cosine exceeds that of the right cell by more than `beta` are left out (UniME, arXiv:2504.17432).

    Args:
        beta: 0.1 in the paper; the largest right cosine of a row counts.
    """

    def __init__(self, beta: float = 0.1) -> None:
        self.beta = beta

    def __call__(self, logits: Tensor, right: Tensor, scale: Tensor) -> Tensor:
        """See the module."""
        values = logits.detach()
        limit = values.masked_fill(~right, -torch.inf).amax(1, keepdim=True) + self.beta * scale
        return logits.masked_fill((values > limit) & ~right, -torch.inf)


class HardestNegatives(Adjustment):
    """Only the `count` hardest negatives of a row stay (UniME stage 2: 8). Ties with the last one stay as well."""

    def __init__(self, count: int = 8) -> None:
        self.count = count

    def __call__(self, logits: Tensor, right: Tensor, scale: Tensor) -> Tensor:
        """See the module."""
        values = logits.detach().masked_fill(right, -torch.inf)
        last = values.topk(min(self.count, values.shape[1]), dim=1).values[:, -1:]
        return logits.masked_fill((values < last) & ~right, -torch.inf)
