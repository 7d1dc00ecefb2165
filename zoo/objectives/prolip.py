"""ProLIP's loss: pairs of distributions by the sigmoid loss, and which of two lies within the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.objectives.bottleneck import bottleneck
from zoo.objectives.counterparts import counterparts
from zoo.objectives.direction import Duplicates
from zoo.objectives.match import Match
from zoo.objectives.objective import Objective, row_mean, share, view
from zoo.objectives.own_pairs import OwnPairs, own_pairs
from zoo.objectives.siglip import answered_sums
from zoo.objectives.temperature import Learn, Temperature
from zoo.similarity.distances import CSD, csd_sides
from zoo.similarity.overlap import check_form, inclusion
from zoo.similarity.similarity import gaussian
from zoo.types import Embedding, Encoded

LARGEST_INCLUSION = 100_000.0  # official code: a mean inclusion loss above this is dropped
OFFICIAL_EPS = -10.0


class ProLIP(nn.Module, Objective):
    """Pairs that belong together say yes, all others no; a text contains its picture, and a masked view the whole one.

    Formula:
        z_ij = s (mu_i . mu_j - (sum_d sigma_i^2 + sum_d sigma_j^2) / 2) + b
        L = -1/B sum_ij log sigmoid(y_ij z_ij) + sum_n w_n L_inc(A_n in B_n) + v (KL_x + KL_y) (arXiv:2410.18857)
        L_inc(A in B) = mean over pairs and coordinates of -log sigmoid(c (H(A in B) - H(B in A))), H(A in B) = log of the
        integral of p_A^2 p_B

    Inputs:
        the views `query` and `target` (named by `views`) with log_var, and those that `inclusions` names. A row whose sample
        lacks the other view weighs nothing.

    Args:
        temperature: start value; 0.1 is the official s = 10. learn, max_scale: as in `SigLIP`.
        bias: start value; -10 is official, log(1 / (B - 1)) is kinder to small batches.
        inclusions: (the view that lies within, the view that contains it, weight); weight 0 = left out. Official: pictures
            in texts 1e-7; each whole view in its masked one (`query` in `query_masked`, see `MaskedViews`) 1e-3.
        inclusion_scale: c; 1000 is official, 10 that of LongProLIP.
        eps: of the official form, see `zoo.similarity.overlap.inclusion`; None = -10. The official training script has -20.
        vib: v.
        duplicates: what becomes of cells that are as right as the own one (see `SigLIP`); "keep" is official.
        form: "official" computes the inclusion and the KL as the official code does, with the logarithm of a variance in
            the place of that of a standard deviation and the other way round, and drops a KL above 10,000 and an inclusion
            loss above 100,000; "exact" computes what the formulas say.
        views: names of the two sides, pictures first.

    Use with: dual encoders whose heads give log_var. Relations: z = s (1 - CSD / 2) + b for unit vectors, so it is a
    sigmoid loss on PCME++'s distance.

    The official code counts inclusion and KL once for every exchange between ranks; here they count once.

    Raises:
        RecipeError: a view that the data does not give, or one without log_var.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        bias: float = -10.0,
        learn: Learn = "log",
        max_scale: float | None = 100.0,
        inclusions: Sequence[tuple[str, str, float]] = (("query", "target", 1e-7),),
        inclusion_scale: float = 1000.0,
        eps: float | None = None,
        vib: float = 1e-4,
        duplicates: Duplicates = "positive",
        form: Literal["exact", "official"] = "exact",
        views: tuple[str, str] = ("query", "target"),
    ) -> None:
        super().__init__()
        self.temperature = Temperature(temperature, learn, max_scale)
        self.learn = learn
        self.bias = nn.Parameter(torch.tensor(float(bias)), requires_grad=learn != "no")
        self.inclusions: list[tuple[str, str, float]] = [(str(a), str(b), float(w)) for a, b, w in inclusions if w]
        self.inclusion_scale = inclusion_scale
        self.eps = (OFFICIAL_EPS if form == "official" else 0.0) if eps is None else eps
        check_form(form, self.eps)
        self.vib = vib
        self.duplicates = duplicates
        self.form: Literal["exact", "official"] = form
        self.query, self.target = views

    def forward(self, local: Encoded, everyone: Encoded) -> dict[str, Tensor]:
        """See `Objective`. Besides `loss`: `match`, `A_in_B` for each inclusion and `vib`, all without their weights;
        `temperature` and `bias`.
        """
        part = len(local.sample) / len(everyone.sample)
        scale = self.temperature()
        pairs = counterparts(local, everyone, self.query, self.target)
        weighted = [("match", 1.0, self._match(*pairs, scale))]
        for inner, outer, weight in self.inclusions:
            weighted.append((f"{inner}_in_{outer}", weight, self._inclusion(local, everyone, inner, outer)))
        if self.vib:
            official = self.form == "official"
            term = bottleneck(*pairs, (self.query, self.target), halved=official, guarded=official)
            weighted.append(("vib", self.vib, term))
        losses = [weight * term for _, weight, term in weighted]
        return {
            "loss": sum(losses[1:], losses[0]),
            **{name: term.detach() / part for name, _, term in weighted},
            "temperature": (1 / scale).detach(),
            "bias": self.bias.detach(),
        }

    def pair_scores(self, pictures: Embedding, texts: Embedding) -> Tensor:
        """(r, C) negative closed-form sampled distances, which order pairs as the logits do."""
        scores: Tensor = CSD()(pictures, texts)
        return scores

    def match_log_probability(self, pictures: Embedding, texts: Embedding) -> Tensor:
        """(r, C) log sigmoid of the logits; of unit means these are s (1 - CSD / 2) + b."""
        similarity = 1 + self.pair_scores(pictures, texts) / 2
        return F.logsigmoid(self.temperature().detach() * similarity + self.bias.detach())

    def _match(self, local: Encoded, everyone: Encoded, scale: Tensor) -> Tensor:
        sides = csd_sides(view(local, self.query), view(everyone, self.target), norms=False)
        match = Match(local, everyone, self.query, self.target)
        return share(answered_sums(match, *sides, scale, self.bias, self.duplicates), local, everyone, self.query)

    def _inclusion(self, local: Encoded, everyone: Encoded, inner: str, outer: str) -> Tensor:
        """This rank's share of the mean over pairs and coordinates."""
        pairs = own_pairs(local, everyone, inner, outer)
        losses = self._inclusion_losses(local, inner, outer, pairs)
        if self.form == "official" and self._exploded(everyone, inner, outer):
            losses = torch.zeros_like(losses)
        return pairs.share(losses)

    @torch.no_grad()
    def _exploded(self, everyone: Encoded, inner: str, outer: str) -> bool:
        pairs = own_pairs(everyone, everyone, inner, outer)
        return float(row_mean(self._inclusion_losses(everyone, inner, outer, pairs))) > LARGEST_INCLUSION

    def _inclusion_losses(self, encoded: Encoded, inner: str, outer: str, pairs: OwnPairs) -> Tensor:
        """(P,) mean over the coordinates."""
        mean, log_var = (part[pairs.left] for part in gaussian(view(encoded, inner)))
        other, other_log_var = (part[pairs.right] for part in gaussian(view(encoded, outer)))
        forth = inclusion(mean, log_var, other, other_log_var, self.form, self.eps)
        back = inclusion(other, other_log_var, mean, log_var, self.form, self.eps)
        return F.softplus(-self.inclusion_scale * (forth - back)).mean(1)
