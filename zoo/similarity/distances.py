"""Distances between Gaussians that are sums over pairs of coordinates: one matrix product, and one number per row.

No tensor of all pairs and coordinates (R x C x E) ever exists. Written with the number of each side in two further
coordinates, a distance is an inner product: [x, h_x, 1] . [y, 1, h_y] = x.y + h_x + h_y.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.similarity.similarity import Similarity, gaussian
from zoo.types import Embedding


class CSD(nn.Module, Similarity):
    """The closed-form sampled distance: the expected squared distance of a sample of one and a sample of the other.

    Formula:
        -E|z_q - z_k|^2 = -(|mu_q - mu_k|^2 + sum_d (sigma_q,d^2 + sigma_k,d^2)) (PCME++, arXiv:2305.18171, equation 1)

    `zoo.similarity.mips` serves it from any index of inner products.
    """

    def forward(self, queries: Embedding, keys: Embedding) -> Tensor:
        """See `Similarity`; both sides need log_var."""
        return _twice_product(*csd_sides(queries, keys))


class Wasserstein2(nn.Module, Similarity):
    """The squared 2-Wasserstein distance: how far mass has to move to make one distribution of the other.

    Formula:
        -W^2 = -(|mu_q - mu_k|^2 + sum_d (sigma_q,d - sigma_k,d)^2) (Olkin & Pukelsheim 1982, for diagonal covariances)

    Unlike under CSD, two equal distributions have distance 0, however wide they are.
    """

    def forward(self, queries: Embedding, keys: Embedding) -> Tensor:
        """See `Similarity`; both sides need log_var."""
        left, right = (torch.cat([mean, (log_var / 2).exp()], 1) for mean, log_var in map(gaussian, (queries, keys)))
        return _twice_product(*_sides(left, right, *(-side.square().sum(1) / 2 for side in (left, right))))


def csd_sides(left: Embedding, right: Embedding, norms: bool = True) -> tuple[Tensor, Tensor]:
    """Vectors (R, E + 2) and (C, E + 2), the inner products of which are -CSD / 2.

    norms: False leaves |mu|^2 out, which is 1 for embeddings: the products are mu.mu' - (trace + trace') / 2 (ProLIP).
    """
    means, halves = [], []
    for mean, log_var in map(gaussian, (left, right)):
        half = -log_var.exp().sum(1) / 2
        means.append(mean)
        halves.append(half - mean.square().sum(1) / 2 if norms else half)
    return _sides(means[0], means[1], halves[0], halves[1])


def _sides(left: Tensor, right: Tensor, left_half: Tensor, right_half: Tensor) -> tuple[Tensor, Tensor]:
    rows = torch.cat([left, left_half[:, None], torch.ones_like(left[:, :1])], dim=1)
    columns = torch.cat([right, torch.ones_like(right[:, :1]), right_half[:, None]], dim=1)
    return rows, columns


def _twice_product(rows: Tensor, columns: Tensor) -> Tensor:
    with torch.autocast(rows.device.type, enabled=False):
        return 2 * rows @ columns.T
