"""Views that pair off, one row per sample on either side, as losses need them that mix samples with one another."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.errors import RecipeError
from zoo.objectives.contrastive import Target, at_least_fp32, softmax_losses
from zoo.objectives.objective import view
from zoo.types import Encoded


def paired(encoded: Encoded, name: str) -> Tensor:
    """(N, E) vectors of a view in the order of their samples, fp32 or fp64: of N samples that have it (see `counterparts`).

    Raises RecipeError if a sample has several rows there.
    """
    vectors, owners = at_least_fp32(view(encoded, name).vector), encoded.owners[name]
    order = owners.argsort(stable=True)
    if len(samples := owners.unique()) < len(owners):
        raise RecipeError(
            f"this objective mixes samples with one another: it needs one row per sample in the view '{name}', "
            f"which has {len(owners)} rows for {len(samples)} samples"
        )
    return vectors[order]


def places(local: Encoded, everyone: Encoded, name: str) -> Tensor:
    """(B,) where the samples of this rank that have the view `name` stand among those of all ranks."""
    return torch.searchsorted(everyone.owners[name].sort().values, local.owners[name].sort().values)


Weights = tuple[float, float] | tuple[Tensor, Tensor]
"""How right a row's own column is, and its partner's: of all rows, or (R,) of each."""


def two_targets(
    own: Tensor, partner: Tensor, weights: Weights, columns: int, dtype: torch.dtype = torch.float32
) -> Target:
    """Targets of rows that are mixtures: the column `own` with the first weight, `partner` with the second, both (R,)."""
    of_rows = [torch.as_tensor(weight, dtype=dtype, device=own.device).expand(len(own)) for weight in weights]

    def target(part: slice) -> Tensor:
        cells = torch.zeros(len(own[part]), columns, dtype=dtype, device=own.device)
        for place, weight in zip((own, partner), of_rows, strict=True):
            cells.scatter_add_(1, place[part, None], weight[part, None])
        return cells

    return target


def both_ways(
    left: Tensor,
    right: Tensor,
    scale: Tensor,
    own: Tensor,
    partner: Tensor,
    weights: Weights,
    smoothing: float = 0.0,
) -> Tensor:
    """Losses (R,) of the rows `own` of `left` against all of `right` and the other way round, averaged.

    left, right: (N, E) of all samples; own, partner: (R,) places of this rank's samples and of their partners; weights: see
    `Weights`.
    """
    target = two_targets(own, partner, weights, len(right), left.dtype)
    forth = softmax_losses(left[own], right, scale, target, smoothing=smoothing).rows
    back = softmax_losses(right[own], left, scale, target, smoothing=smoothing).rows
    return (forth + back) / 2


def mean_share(losses: Tensor, local: Encoded, everyone: Encoded, name: str) -> Tensor:
    """`share`, for one loss (B,) per sample that has the view `name`, in the order of the samples."""
    weights = local.weights[torch.searchsorted(local.sample, local.owners[name].sort().values)]
    return (losses * weights).sum() / len(everyone.sample)
