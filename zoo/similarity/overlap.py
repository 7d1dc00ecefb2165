"""How much two densities overlap: sums over coordinates that mix both sides, so pairs are computed in tiles.

Both integrals have a closed form for Gaussians; written with logaddexp they stay finite for any variance.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.similarity.similarity import Similarity, gaussian
from zoo.similarity.tiles import tiled
from zoo.types import Embedding

Form = Literal["exact", "official"]
_LOG_2, _LOG_PI = math.log(2), math.log(math.pi)


class ExpectedLikelihood(nn.Module, Similarity):
    """The expected likelihood kernel: how likely a sample of one is under the other.

    Formula:
        log of the integral of p_q p_k = sum_d log N(mu_q,d; mu_k,d, sigma_q,d^2 + sigma_k,d^2)
        (Jebara et al., Probability Product Kernels, JMLR 2004, with exponent 1)
    """

    def forward(self, queries: Embedding, keys: Embedding) -> Tensor:
        """See `Similarity`; both sides need log_var."""
        (mean, log_var), (other, other_log_var) = gaussian(queries), gaussian(keys)

        def score(rows: slice, columns: slice) -> Tensor:
            total = torch.logaddexp(log_var[rows, None], other_log_var[None, columns])
            squares = (mean[rows, None] - other[None, columns]).square()
            return -(squares * (-total).exp() + total + _LOG_2 + _LOG_PI).sum(2) / 2

        return tiled(score, len(mean), len(other), mean.shape[1])


class Inclusion(nn.Module, Similarity):
    """How far the query lies within the key: large where the query is narrow and the key covers it.

    Formula:
        H(q in k) = log of the integral of p_q^2 p_k, summed over coordinates (ProLIP, arXiv:2410.18857)

    Args:
        form: see `inclusion`.
        eps: see `inclusion`; 0 is what the official evaluation ranks by.

    Not symmetric: how far the key lies within the query is `forward(keys, queries).T`.
    """

    def __init__(self, form: Form = "exact", eps: float = 0.0) -> None:
        super().__init__()
        check_form(form, eps)
        self.form: Form = form
        self.eps = eps

    def forward(self, queries: Embedding, keys: Embedding) -> Tensor:
        """See `Similarity`; both sides need log_var."""
        (mean, log_var), (other, other_log_var) = gaussian(queries), gaussian(keys)

        def score(rows: slice, columns: slice) -> Tensor:
            sides = mean[rows, None], log_var[rows, None], other[None, columns], other_log_var[None, columns]
            return inclusion(*sides, self.form, self.eps).sum(2)

        return tiled(score, len(mean), len(other), mean.shape[1])


def inclusion(
    mean: Tensor, log_var: Tensor, other: Tensor, other_log_var: Tensor, form: Form = "exact", eps: float = 0.0
) -> Tensor:
    """Log of the integral of p^2 p' for each coordinate; shapes broadcast.

    Args:
        mean: mu of p.
        log_var: log sigma^2 of p.
        other: mu' of p'.
        other_log_var: log sigma'^2 of p'.
        form: "exact" is the integral; it equals -l - l'/2 - log(A)/2 - q and a constant, with A = 1/sigma^2 + 1/(2 sigma'^2)
            and q = (mu - mu')^2 / (sigma^2 + 2 sigma'^2). "official" is what the official code computes: -2 l - l' -
            log(A)/2 - e^eps q and a constant; it takes the logarithm of a variance for that of a standard deviation.
        eps: of "official", added to the logarithms of the precisions: the further below 0, the less the distance of the
            means counts. The official code has -10, its training script -20, its evaluation 0.
    """
    distance = (mean - other).square() * (-torch.logaddexp(log_var, other_log_var + _LOG_2)).exp()
    log_a = torch.logaddexp(-log_var, -other_log_var - _LOG_2)
    if form == "official":
        return -2 * log_var - other_log_var - (log_a + eps) / 2 - math.exp(eps) * distance
    return -log_var - other_log_var / 2 - log_a / 2 - distance - (_LOG_PI + 1.5 * _LOG_2)


def check_form(form: str, eps: float) -> None:
    """RecipeError for a form that there is not, or for an `eps` that would have no effect."""
    if form not in ("exact", "official"):
        raise RecipeError(f"the inclusion has the forms exact and official, not '{form}'")
    if form == "exact" and eps:
        raise RecipeError(f"eps ({eps}) belongs to the official form of the inclusion; the exact one has none")
