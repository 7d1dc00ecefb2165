"""Pairs of which one side is a mixture of two samples (ZeroVL's coin-flip mixup)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.objectives.counterparts import counterparts
from zoo.objectives.draws import Draws
from zoo.objectives.objective import Objective
from zoo.objectives.pairs import Weights, both_ways, mean_share, paired, places
from zoo.objectives.temperature import Learn, Temperature
from zoo.types import Encoded


class CoinFlipMixup(nn.Module, Objective):
    """InfoNCE with one side of every pair mixed with its partner's: the other side belongs to both, in the same shares.

    Formula:
        x_i = unit(l x_i + (1 - l) x_i'), l ~ Beta(c, c), one per step; i' the batch in reverse order. Where the pictures of
        the step are mixtures already (`PictureMixing`), l and i' are theirs, and no vectors are mixed
        L = l CE(i) + (1 - l) CE(i'), both directions averaged (ZeroVL, arXiv:2112.09331)

    Inputs:
        the views `query` and `target` (named by `views`), one row per sample each. A sample that lacks one of them
        weighs nothing.

    Args:
        temperature: start value (official: 0.02, fixed). learn, max_scale, label_smoothing, limits: as in `InfoNCE`
            (official where it learns: "linear", held between 0.001 and 0.5).
        beta: c; 0.1 is official, which leaves most batches nearly unmixed.
        mixed: the views of which one is drawn and mixed at each step without mixed pictures. Both, for a fair coin on
            vectors alone; the texts, beside `PictureMixing` of half of the batches, as in the official code.
        seed: of the coin and the shares.
        views: names of the two sides.

    Use with: dual encoders, projectors. Relations: at l = 0 or 1 it is InfoNCE, symmetric, without a look at duplicates.

    Differs from the official code, which mixes texts after the projection, but before the norm: here they are mixed as unit
    vectors, so a long vector does not weigh more. Partners of vectors are those of the batch of all ranks, partners of
    pictures those of a rank's own.

    Raises:
        RecipeError: pictures mixed in other shares than their partners, which then have no common l.
    """

    reads_mixtures = True

    def __init__(
        self,
        temperature: float = 0.02,
        learn: Learn = "no",
        max_scale: float | None = 100.0,
        label_smoothing: float = 0.0,
        beta: float = 0.1,
        mixed: Sequence[str] = ("query", "target"),
        seed: int = 0,
        limits: tuple[float, float] | None = None,
        views: tuple[str, str] = ("query", "target"),
    ) -> None:
        super().__init__()
        if not mixed or not set(mixed) <= set(views):
            raise RecipeError(f"`mixed` of CoinFlipMixup names views among {list(views)}, not {list(mixed)}")
        self.temperature = Temperature(temperature, learn, max_scale, limits)
        self.label_smoothing = label_smoothing
        self.beta = beta
        self.mixed = tuple(mixed)
        self.draws = Draws(seed)
        self.query, self.target = views

    def forward(self, local: Encoded, everyone: Encoded) -> dict[str, Tensor]:
        """See `Objective`. Besides `loss`: `temperature`."""
        scale = self.temperature()
        share, coin = self.draws.beta((self.beta, 1.0))  # Beta(1, 1) is uniform
        self.draws.advance()
        local, everyone = counterparts(local, everyone, self.query, self.target)
        left, right = paired(everyone, self.query), paired(everyone, self.target)
        own = places(local, everyone, self.query)
        partner = len(left) - 1 - own
        weights: Weights = (share, 1 - share)
        if given := [
            n for n in (self.query, self.target) if n in everyone.mixed and (everyone.mixed[n].share < 1).any()
        ]:
            partner, weights = self._given(everyone, given[0], own)
        elif self.mixed[min(int(coin * len(self.mixed)), len(self.mixed) - 1)] == self.query:
            left = _mixture(left, share)
        else:
            right = _mixture(right, share)
        losses = both_ways(left, right, scale, own, partner, weights, self.label_smoothing)
        return {"loss": mean_share(losses, local, everyone, self.query), "temperature": (1 / scale).detach()}

    @staticmethod
    def _given(everyone: Encoded, name: str, own: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Places of the partners of the rows `own` among all samples, and the weights of own and partner.

        A partner that lacks a view is no row to be told: its part weighs nothing.
        """
        mixture, order = everyone.mixed[name], everyone.owners[name].argsort(stable=True)
        samples, share, wanted = everyone.owners[name][order], mixture.share[order], mixture.partner[order]
        partner = torch.searchsorted(samples, wanted).clamp(max=len(samples) - 1)
        there = samples[partner] == wanted
        if not torch.equal(share[partner][there], share[there]):
            raise RecipeError(
                f"CoinFlipMixup needs one share for the pictures of a step; set per: batch and share: 1 in the "
                f"PictureMixing of the view '{name}'"
            )
        return partner[own], (share[own], ((1 - share) * there)[own])


def _mixture(vectors: Tensor, share: float) -> Tensor:
    return F.normalize(share * vectors + (1 - share) * vectors.flip(0), dim=-1)
