"""Pairs of rows of two views that belong to one sample, where each may have any number of them, or none."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.objectives.objective import view
from zoo.types import Encoded


@dataclass(frozen=True, slots=True)
class OwnPairs:
    """Places (P,) int64 of this rank's pairs in the views `left` and `right`; `total`: pairs of all ranks."""

    left: Tensor
    right: Tensor
    weights: Tensor
    total: int

    def share(self, losses: Tensor) -> Tensor:
        """This rank's share of the mean over the pairs of all ranks, weighted as the samples are. losses: (P,)."""
        return (losses * self.weights).sum() / max(1, self.total)


def own_pairs(local: Encoded, everyone: Encoded, left: str, right: str) -> OwnPairs:
    """The pairs of a sample's rows in the views `left` and `right`; a row without a counterpart is in none.

    Raises:
        RecipeError: the data gives no such view.
    """
    for name in (left, right):
        view(everyone, name)
    first, second = _places(local.owners[left], local.owners[right])
    total = len(first) if local is everyone else len(_places(everyone.owners[left], everyone.owners[right])[0])
    weights = local.weights[torch.searchsorted(local.sample, local.owners[left][first])]
    return OwnPairs(first, second, weights, total)


def _places(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    order = right.argsort(stable=True)
    owners = right[order]
    first = torch.searchsorted(owners, left)
    counts = torch.searchsorted(owners, left, right=True) - first
    rows = torch.arange(len(left), device=left.device).repeat_interleave(counts)
    inside = torch.arange(len(rows), device=left.device) - (counts.cumsum(0) - counts)[rows]
    return rows, order[first[rows] + inside]
