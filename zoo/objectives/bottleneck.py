"""The variational information bottleneck: embeddings pay for what they say beyond the standard normal distribution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.objectives.objective import row_share, view
from zoo.similarity.similarity import gaussian
from zoo.types import Encoded

EXPLOSION = 10_000.0  # official code: a mean divergence above this is dropped


def kl_to_standard(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, e^log_var) || N(0, 1)) of every coordinate: (mu^2 + sigma^2 - 1 - log sigma^2) / 2."""
    return (mean.square() + log_var.exp() - 1 - log_var) / 2


def bottleneck(
    local: Encoded, everyone: Encoded, names: Sequence[str], halved: bool = False, guarded: bool = False
) -> Tensor:
    """This rank's share of the mean divergence of rows and coordinates, added up over the views `names`.

    Args:
        local: rows of this rank.
        everyone: rows of all ranks.
        names: views; RecipeError if one has no log_var.
        halved: put log sigma for log sigma^2 into the formula, which then no longer is the divergence (official ProLIP).
        guarded: leave out a view whose divergence is above `EXPLOSION` (official PCME++ and ProLIP).
    """
    shares = []
    for name in names:
        rows = _rows(local, name, halved)
        if guarded and _exploded(everyone, name, halved):
            rows = torch.zeros_like(rows)
        shares.append(row_share(rows, local, everyone, name))
    return sum(shares[1:], shares[0])


@torch.no_grad()
def _exploded(everyone: Encoded, name: str, halved: bool) -> bool:
    return float(_rows(everyone, name, halved).mean()) > EXPLOSION


def _rows(encoded: Encoded, name: str, halved: bool) -> Tensor:
    mean, log_var = gaussian(view(encoded, name))
    return kl_to_standard(mean, log_var / 2 if halved else log_var).mean(1)
