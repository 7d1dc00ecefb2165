"""ProbVLM's loss: an adapter behind a frozen entry learns how uncertain its vectors are, without changing them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.objectives.contrastive import at_least_fp32
from zoo.objectives.counterparts import counterparts
from zoo.objectives.generalised_gaussian import (
    log_width,
    negative_log_likelihood,
    official_negative_log_likelihood,
)
from zoo.objectives.objective import Objective, row_share, view
from zoo.objectives.own_pairs import own_pairs
from zoo.similarity.similarity import gaussian
from zoo.types import Encoded


class ProbVLM(nn.Module, Objective):
    """The frozen vector of an item, and of what it belongs to, must be likely under the distribution of the adapter.

    Formula:
        l(x, z) = t_1 mean_d |mu_d - z_d| + t_2 mean_d NLL_d, NLL = (|mu - z| / alpha)^beta - log(beta / alpha) +
        log Gamma(1 / beta) (generalised Gaussian; arXiv:2307.00398)
        L = l(x, z_x) + l(y, z_y) + c (l(x, z_y) + l(y, z_x)), z the frozen vectors, mean over pairs

    Inputs:
        the views `query` and `target` (named by `views`) with log_var, `given` and `log_shape` (see `zoo.types.Embedding`).
        A row whose sample lacks the other view weighs nothing.

    Args:
        distance: t_1. likelihood: t_2; the official notebook has 1e-4, the default of its training function is 5e-2.
        cross_modal: c.
        form: "exact" is the likelihood; "official" what the official code computes
            (`zoo.objectives.generalised_gaussian.official_negative_log_likelihood`).
        views: names of the two sides.

    Use with: `BayesCap` behind a frozen dual encoder or projector. The width alpha is that of the predicted variance, which
    is alpha^2 Gamma(3 / beta) / Gamma(1 / beta). The mean is of unit norm, as every vector of the zoo (official: free).

    Raises:
        RecipeError: a view without log_var, `given` or `log_shape`.
    """

    def __init__(
        self,
        distance: float = 1.0,
        likelihood: float = 1e-4,
        cross_modal: float = 1e-4,
        form: Literal["exact", "official"] = "exact",
        views: tuple[str, str] = ("query", "target"),
    ) -> None:
        super().__init__()
        self.distance = distance
        self.likelihood = likelihood
        self.cross_modal = cross_modal
        self.negative = official_negative_log_likelihood if form == "official" else negative_log_likelihood
        self.views = views

    def forward(self, local: Encoded, everyone: Encoded) -> dict[str, Tensor]:
        """See `Objective`. Besides `loss`: `own` and `cross`, their two sums of l, without weights."""
        part = len(local.sample) / len(everyone.sample)
        query, target = self.views
        local, everyone = counterparts(local, everyone, query, target)
        own = self._own(local, everyone, query) + self._own(local, everyone, target)
        cross = self._cross(local, everyone, query, target) + self._cross(local, everyone, target, query)
        return {"loss": own + self.cross_modal * cross, "own": own.detach() / part, "cross": cross.detach() / part}

    def _own(self, local: Encoded, everyone: Encoded, name: str) -> Tensor:
        """This rank's share of the mean of l over the rows of a view, each with its own frozen vector."""
        rows = torch.arange(len(local.owners[name]), device=local.sample.device)
        return row_share(self._losses(local, name, name, rows, rows), local, everyone, name)

    def _cross(self, local: Encoded, everyone: Encoded, adapted: str, frozen: str) -> Tensor:
        """This rank's share of the mean of l over pairs of a row of `adapted` and a frozen vector that it belongs to."""
        pairs = own_pairs(local, everyone, adapted, frozen)
        return pairs.share(self._losses(local, adapted, frozen, pairs.left, pairs.right))

    def _losses(self, local: Encoded, adapted: str, frozen: str, rows: Tensor, others: Tensor) -> Tensor:
        """Losses (P,) of the rows `rows` of `adapted`, given the rows `others` of `frozen`."""
        mean, log_var = (values[rows] for values in gaussian(view(local, adapted)))
        log_shape = _part(local, adapted, "log_shape")[rows]
        residual = mean - _part(local, frozen, "given").detach()[others]
        terms = self.negative(residual, log_width(log_var, log_shape), log_shape)
        return (self.distance * residual.abs() + self.likelihood * terms).mean(1)


def _part(encoded: Encoded, name: str, part: str) -> Tensor:
    """A field of a view's embedding. RecipeError, naming both, if the model does not give it."""
    values = getattr(view(encoded, name), part)
    if values is None:
        raise RecipeError(
            f"ProbVLM needs `{part}` of the view '{name}', which only an adapter behind a frozen entry gives; "
            "use BayesCap as the model's heads"
        )
    return at_least_fp32(values)
