"""Mixtures of embeddings along the sphere as hard negatives and as soft pairs (m2-mix and m3-mix, arXiv:2203.03897)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.objectives.contrastive import row_blocks
from zoo.objectives.counterparts import counterparts
from zoo.objectives.direction import Duplicates
from zoo.objectives.draws import Draws
from zoo.objectives.infonce import InfoNCE
from zoo.objectives.objective import Objective
from zoo.objectives.pairs import both_ways, mean_share, paired, places
from zoo.objectives.temperature import Learn
from zoo.types import Encoded


class GeodesicMixup(nn.Module, Objective):
    """CLIP's loss, and further ones on embeddings mixed along great circles.

    Formula:
        m(a, b) = sin(l w) / sin(w) a + sin((1 - l) w) / sin(w) b, w the angle between a and b, l ~ Beta(c, c), one per term
        and step. i' is the partner of i: the batch in reverse order. CE is the cross-entropy of all columns.
        m2:  CE(I_i; I_i.T_i against I_i.m(I_j, T_j), j != i), and the same for T_i (hard negatives between modalities)
        V:   m(I_i, I_i') against all T, with the targets l T_i + (1 - l) T_i'; both directions averaged, as in CLIP's loss
        L:   I_i against all m(T_j, T_j'), alike
        VL:  m(I_i, I_i') against all m(T_j, T_j'), with i and i' as targets
        L = CLIP + w_m2 m2 + w_v V + w_l L + w_vl VL

    Inputs:
        the views `query` and `target` (named by `views`), one row per sample each. A sample that lacks one of them
        weighs nothing.

    Args:
        temperature: start value of CLIP's loss and of V, L and VL (official: 0.01, fixed). learn, max_scale, duplicates: as
            in `InfoNCE`. Only CLIP's loss looks for duplicates: mixtures have none.
        m2, v, l, vl: weights. Official: m2-mix 0.001 to 0.05 alone; m3-mix 0.01, 0.05, 0.05, and 0.05 to 0.2.
        m2_temperature: of m2, fixed (0.07: the scripts' --sep_scale); None = that of CLIP's loss.
        m2_beta: c of m2 (0.5; 0.2 for m3-mix). beta: c of the other terms.
        sums: "official" sums the two directions of m2, and gives both targets of VL the weight 1; "exact" averages the
            directions, as all other terms do, and gives the targets 1/2 each, so that they are a distribution.
        seed: of the mixing shares.
        views: names of the two sides.

    Use with: dual encoders, projectors; meant for fine-tuning. Relations: without weights it is InfoNCE, symmetric. The
    official --schedule, which divides the weights by the number of the epoch, is not offered. Shares are kept in full
    precision (official: half), and identical vectors, NaN in the official code, mix to themselves.
    """

    def __init__(
        self,
        temperature: float = 0.01,
        learn: Learn = "no",
        max_scale: float | None = 100.0,
        duplicates: Duplicates = "mask",
        m2: float = 0.01,
        v: float = 0.0,
        l: float = 0.0,  # noqa: E741  the paper's name
        vl: float = 0.0,
        m2_temperature: float | None = 0.07,
        m2_beta: float = 0.5,
        beta: float = 0.5,
        sums: Literal["exact", "official"] = "exact",
        seed: int = 0,
        views: tuple[str, str] = ("query", "target"),
    ) -> None:
        super().__init__()
        self.contrastive = InfoNCE(temperature, learn, max_scale, True, duplicates=duplicates, views=views)
        self.weights = {"m2": m2, "v": v, "l": l, "vl": vl}
        self.m2_temperature = m2_temperature
        self.concentrations = (m2_beta, beta, beta, beta)
        self.exact = sums == "exact"
        self.draws = Draws(seed)
        self.query, self.target = views

    def forward(self, local: Encoded, everyone: Encoded) -> dict[str, Tensor]:
        """See `Objective`. Besides `loss` and InfoNCE's reports: `contrastive` and each term in use."""
        local, everyone = counterparts(local, everyone, self.query, self.target)
        found = self.contrastive(local, everyone)
        part = len(local.sample) / len(everyone.sample)
        loss, scale = found.pop("loss"), self.contrastive.temperature()
        found["contrastive"] = loss.detach() / part
        left, right = paired(everyone, self.query), paired(everyone, self.target)
        own = places(local, everyone, self.query)
        for (name, weight), lam in zip(self.weights.items(), self.draws.beta(self.concentrations), strict=True):
            if weight:
                losses = self._m2(left, right, own, scale, lam) if name == "m2" else None
                if losses is None:
                    losses = self._with_partners(name, left, right, own, scale, lam)
                term = mean_share(losses, local, everyone, self.query)
                loss = loss + weight * term
                found[name] = term.detach() / part
        self.draws.advance()
        return {"loss": loss, **found}

    def _m2(self, left: Tensor, right: Tensor, own: Tensor, scale: Tensor, lam: float) -> Tensor:
        if self.m2_temperature is not None:
            scale = torch.full_like(scale, 1 / self.m2_temperature)
        negatives = slerp(left, right, lam)
        losses = against(left[own], right[own], negatives, own, scale)
        losses = losses + against(right[own], left[own], negatives, own, scale)
        return losses / 2 if self.exact else losses

    def _with_partners(self, name: str, left: Tensor, right: Tensor, own: Tensor, scale: Tensor, lam: float) -> Tensor:
        targets = (lam, 1 - lam)
        if name in ("v", "vl"):
            left = slerp(left, left.flip(0), lam)
        if name in ("l", "vl"):
            right = slerp(right, right.flip(0), lam)
        if name == "vl":
            targets = (0.5, 0.5) if self.exact else (1.0, 1.0)
        return both_ways(left, right, scale, own, len(left) - 1 - own, targets)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """The point that is `share` of the way from b to a on the great circle through them, rows (R, E) of unit norm.

    Where the angle is (nearly) 0 or 180 degrees, the circle is not defined and the straight line is taken.
    """
    cosine = (a * b).sum(-1, keepdim=True)
    straight = cosine.abs() > _STRAIGHT
    angle = torch.where(straight, 0.0, cosine).acos()  # the other branch must not have a gradient that is NaN
    curved = ((share * angle).sin() * a + ((1 - share) * angle).sin() * b) / angle.sin()
    return torch.where(straight, F.normalize(share * a + (1 - share) * b, dim=-1), curved)


_STRAIGHT = 1 - 1e-6  # cosine: below 0.08 degrees fp32 has no exact angle, and line and circle differ by 1e-7


def against(rows: Tensor, partners: Tensor, negatives: Tensor, own: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy (R,) of each row's partner (R, E) against all negatives (N, E) but the one at `own` (R,)."""

    def block(part: slice) -> Tensor:
        with torch.autocast(rows.device.type, enabled=False):
            scaled = rows[part] * scale
            positive = (scaled * partners[part]).sum(1)
            logits = (scaled @ negatives.T).scatter(1, own[part, None], positive[:, None])
            return logits.logsumexp(1) - positive

    return row_blocks(block, len(rows), len(negatives))
