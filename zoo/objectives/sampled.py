"""Samples of distributions, and how evenly they fill the space.

R rows of this rank, N rows of all ranks, K samples of each, E width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.objectives.contrastive import row_blocks

SHARPNESS = 2.0  # of squared distances in the kernel (Wang & Isola, arXiv:2005.10242)


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples of the rows of this rank (R, K, E) and of all ranks (N, K, E), and where the former stand there (R,)."""

    mine: Tensor
    all: Tensor
    places: Tensor


def sample_uniformity(sides: Sequence[Samples]) -> Tensor:
    """This rank's share of the log of the mean of exp(-2 |z - z'|^2) over all pairs of different samples of all sides.

    Its gradient is that of the joined batch; the price is that every rank computes the mean by itself, without gradient.
    """
    mine, everything = (torch.cat([part.flatten(0, 1) for part in parts]) for parts in _columns(sides))
    places = _places(sides)
    own = _log_potential(mine, everything, places)
    total = own.detach()
    if len(mine) < len(everything):
        with torch.no_grad():
            total = _log_potential(everything, everything, torch.arange(len(everything), device=mine.device))
    pairs = len(everything) * (len(everything) - 1)
    if not pairs:
        return mine.sum() * 0.0
    ratio = (own - total).exp()  # d log(total) is the sum over the ranks of d own / total
    return len(mine) / len(everything) * (total - math.log(pairs)) + (ratio - ratio.detach())


def _columns(sides: Sequence[Samples]) -> tuple[list[Tensor], list[Tensor]]:
    return [side.mine for side in sides], [side.all for side in sides]


def _places(sides: Sequence[Samples]) -> Tensor:
    """Where each sample of this rank stands among all samples of all sides."""
    start, found = 0, []
    for side in sides:
        count = side.all.shape[1]
        found.append((side.places[:, None] * count + torch.arange(count, device=side.places.device)).flatten() + start)
        start += len(side.all) * count
    return torch.cat(found)


def _log_potential(rows: Tensor, columns: Tensor, places: Tensor) -> Tensor:
    """Log of the sum of exp(-2 |x - y|^2) over rows and columns, but for the column `places` of each row, itself."""
    squares = columns.square().sum(1)

    def block(part: slice) -> Tensor:
        x = rows[part]
        with torch.autocast(x.device.type, enabled=False):
            distances = (x.square().sum(1)[:, None] + squares - 2 * x @ columns.T).clamp(min=0)
        return (-SHARPNESS * distances).scatter(1, places[part, None], -torch.inf).logsumexp(1)

    return row_blocks(block, len(rows), len(columns)).logsumexp(0)
