"""Agreement of two sides without negatives: variance, invariance and covariance (VICReg)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from zoo.objectives.contrastive import at_least_fp32
from zoo.objectives.counterparts import counterparts
from zoo.objectives.objective import Objective
from zoo.objectives.pairs import mean_share, paired
from zoo.types import Encoded


class VicReg(nn.Module, Objective):
    """Both sides of a pair must be equal, vary in every dimension, and repeat nothing between dimensions.

    Formula (arXiv:2105.04906, equations 1 to 6), Z and Z' the two sides, n samples, d dimensions:
        v(Z) = 1/d sum_j max(0, g - sqrt(Var(z_j) + eps))
        c(Z) = 1/d sum_{i != j} C(Z)_ij^2, C(Z) = 1/(n - 1) sum_i (z_i - mean)(z_i - mean)^T
        s(Z, Z') = 1/n sum_i |z_i - z'_i|^2
        L = invariance s(Z, Z') + variance (v(Z) + v(Z')) + covariance (c(Z) + c(Z'))

    Inputs:
        the views `query` and `target` (named by `views`), one row per sample each. A sample that lacks one of them
        weighs nothing.

    Args:
        invariance, variance, covariance: the weights (paper: 25, 25, 1).
        target_deviation: g (paper: 1). epsilon: eps (paper: 1e-4).
        scaled: multiply the unit vectors by sqrt(d) first. The paper's vectors have any length; unit vectors spread evenly
            over the sphere have a deviation of 1/sqrt(d) in each dimension, which g = 1 would never accept (ours).
        form: "official" is the released code, which divides s by d and halves v.
        views: names of the two sides.

    Use with: projectors whose one side predicts the other one's embedding (see `ModalityPredictor`), as in missing-modality
    prediction (arXiv:2407.12616); dual encoders. Relations: with `covariance` and `variance` 0 it is the alignment of
    `ContrastiveGap`.

    Variance and covariance are over the samples of all ranks and know no weights of samples; the invariance does. With a
    single sample they are 0.
    """

    def __init__(
        self,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        target_deviation: float = 1.0,
        epsilon: float = 1e-4,
        scaled: bool = True,
        form: Literal["paper", "official"] = "paper",
        views: tuple[str, str] = ("query", "target"),
    ) -> None:
        super().__init__()
        self.invariance, self.variance, self.covariance = invariance, variance, covariance
        self.target_deviation, self.epsilon = target_deviation, epsilon
        self.scaled = scaled
        self.form = form
        self.names = views

    def forward(self, local: Encoded, everyone: Encoded) -> dict[str, Tensor]:
        """See `Objective`. Besides `loss`: `invariance`, `variance` and `covariance` without their weights, and `deviation`,
        the mean standard deviation of a dimension.
        """
        local, everyone = counterparts(local, everyone, *self.names)
        one, other = (self._side(local, name) for name in self.names)
        sides = [self._side(everyone, name) for name in self.names]
        part = len(local.sample) / len(everyone.sample)
        with torch.autocast(one.device.type, enabled=False):
            distances = (one - other).square().sum(1) / (one.shape[1] if self.form == "official" else 1)
            apart = mean_share(distances, local, everyone, self.names[0])
            halved = 0.5 if self.form == "official" else 1.0
            deviations = [deviation(side, self.epsilon) for side in sides]
            missing = torch.stack([(self.target_deviation - d).clamp(min=0).mean() for d in deviations])
            flat = missing.sum() * (halved if len(sides[0]) > 1 else 0.0)
            repeated = torch.stack([repetition(side) for side in sides]).sum()
        # every rank computes these over all samples; gathered rows carry the gradient back to where they came from
        loss = self.invariance * apart + part * (self.variance * flat + self.covariance * repeated)
        terms = {
            "invariance": apart / part,
            "variance": flat,
            "covariance": repeated,
            "deviation": torch.stack(deviations),
        }
        return {"loss": loss, **{name: value.detach().mean() for name, value in terms.items()}}

    def _side(self, encoded: Encoded, name: str) -> Tensor:
        rows = at_least_fp32(paired(encoded, name))
        return rows * rows.shape[1] ** 0.5 if self.scaled else rows


def deviation(rows: Tensor, epsilon: float) -> Tensor:
    """(d,) sqrt(Var + epsilon) of every dimension of rows (n, d); sqrt(epsilon) for a single row."""
    if len(rows) < 2:
        return rows.new_full((rows.shape[1],), epsilon**0.5)
    return (rows.var(0) + epsilon).sqrt()


def repetition(rows: Tensor) -> Tensor:
    """Squared covariances between different dimensions of rows (n, d), summed and divided by d."""
    if len(rows) < 2:
        return rows.sum() * 0.0
    centred = rows - rows.mean(0)
    covariance = centred.T @ centred / (len(rows) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / rows.shape[1]
