"""What follows the pooled state. R rows, D width of the backbone, E width of the embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch.nn.functional as F
from torch import Tensor, nn


class Head(Protocol):
    """Pooled states (R, D) -> (R, E), not yet normalised."""

    def forward(self, pooled: Tensor) -> Tensor:
        """See the class."""
        ...

    if (
        TYPE_CHECKING
    ):  # jsonargparse takes a protocol that has `__call__` for a factory; modules are called all the same

        def __call__(self, pooled: Tensor) -> Tensor: ...


class AsItIs(nn.Identity, Head):
    """No head: the other sides learn to reach this one."""

    def forward(self, pooled: Tensor) -> Tensor:
        return pooled


class Projection(nn.Linear, Head):
    """One linear map without bias."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__(width, dim, bias=False)

    def forward(self, pooled: Tensor) -> Tensor:
        return F.linear(pooled, self.weight)


class Unchanged(nn.Module, Head):
    """The pooled state as it is, for a side that the other one is to hit (VLAP's texts)."""

    def forward(self, pooled: Tensor) -> Tensor:
        return pooled


class ResidualMlp(nn.Module, Head):
    """x + W2 SELU(W1 x + b1) + b2, both maps starting as identity with zero bias (ABC, arXiv:2503.00329, official code).

    Args:
        width: D of the backbone, kept as E. hidden: inner width (official: 4096).
    """

    def __init__(self, width: int, hidden: int = 4096) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        for layer in (self.up, self.down):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        out: Tensor = pooled + self.down(F.selu(self.up(pooled)))
        return out
