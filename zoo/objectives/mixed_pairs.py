"""Pairs of which one side is a mixture of two samples (ZeroVL's coin-flip mixup, on embeddings)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.objectives.draws import Draws
from zoo.objectives.objective import Objective
from zoo.objectives.pairs import both_ways, mean_share, paired, places
from zoo.objectives.temperature import Learn, Temperature
from zoo.types import Encoded


class CoinFlipMixup(nn.Module, Objective):
    """InfoNCE with one side of every pair mixed with its partner's: the other side belongs to both, in the same shares.

    Formula:
        x_i = unit(l x_i + (1 - l) x_i'), l ~ Beta(c, c), one per step; i' the batch in reverse order
        L = l CE(i) + (1 - l) CE(i'), both directions averaged (ZeroVL, arXiv:2112.09331)

    Inputs:
        the views `query` and `target` (named by `views`), one row per sample each.

    Args:
        temperature: start value (official: 0.02, fixed). learn, max_scale, label_smoothing: as in `InfoNCE`.
        beta: c; 0.1 is official, which leaves most batches nearly unmixed.
        mixed: the views of which one is drawn and mixed at each step. Both, for a fair coin; the texts alone is the part
            of the official loss that embeddings allow.
        seed: of the coin and the shares.
        views: names of the two sides.

    Use with: dual encoders, projectors. Relations: at l = 0 or 1 it is InfoNCE, symmetric, without a look at duplicates.

    Differs from the official code, which mixes pictures as pixels and texts after the projection, but before the norm:
    here both are mixed as unit vectors, so a long vector does not weigh more. Partners are those of the batch of all
    ranks, not of one rank's.
    """

    def __init__(
        self,
        temperature: float = 0.02,
        learn: Learn = "no",
        max_scale: float | None = 100.0,
        label_smoothing: float = 0.0,
        beta: float = 0.1,
        mixed: Sequence[str] = ("query", "target"),
        seed: int = 0,
        views: tuple[str, str] = ("query", "target"),
    ) -> None:
        super().__init__()
        if not mixed or not set(mixed) <= set(views):
            raise RecipeError(f"`mixed` of CoinFlipMixup names views among {list(views)}, not {list(mixed)}")
        self.temperature = Temperature(temperature, learn, max_scale)
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
        side = self.mixed[min(int(coin * len(self.mixed)), len(self.mixed) - 1)]
        left, right = (
            self._mixture(paired(everyone, name), share) if name == side else paired(everyone, name)
            for name in (self.query, self.target)
        )
        own = places(local, everyone)
        losses = both_ways(left, right, scale, own, len(left) - 1 - own, (share, 1 - share), self.label_smoothing)
        return {"loss": mean_share(losses, local, everyone), "temperature": (1 / scale).detach()}

    @staticmethod
    def _mixture(vectors: Tensor, share: float) -> Tensor:
        return F.normalize(share * vectors + (1 - share) * vectors.flip(0), dim=-1)
