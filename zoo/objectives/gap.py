"""Terms that close the gap between two modalities: alignment and uniformity next to a contrastive loss."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from zoo.objectives.contrastive import at_least_fp32, row_blocks
from zoo.objectives.counterparts import counterparts
from zoo.objectives.match import Match
from zoo.objectives.objective import Objective, share, view
from zoo.types import Encoded


class ContrastiveGap(nn.Module, Objective):
    """A contrastive loss that also pulls pairs together and spreads both modalities over the whole sphere.

    Formula:
        L = L_contrastive + a L_align + u (L_unif(I) + L_unif(T)) / 2 + x L_xunif (arXiv:2405.18570)
        L_align = mean_j |I_j - T_j|^2
        L_unif(X) = log mean_{j != k} exp(-t |X_j - X_k|^2), L_xunif = log mean_{j != k} exp(-t |I_j - T_k|^2)
        a = u = 1, x = 0 is L_CUA; a = u = x = 1 is L_CUAXU. Pairs of a row with itself are left out, as in the official code
        (torch.pdist).

    Inputs:
        the views `query` and `target` (named by `views`), one row per sample or several. A row whose sample lacks the other
        view weighs nothing.

    Args:
        contrastive: the loss that the terms are added to (official: InfoNCE, symmetric, temperature 0.01, not learned).
        alignment: a. uniformity: u. cross_uniformity: x.
        sharpness: t; 2 in the paper.
        duplicates: "mask" leaves pairs out of the uniformity that are as right as the own one (equal content or label);
            "keep" is official. Rows of one sample are never driven apart.
        views: names of the two sides.

    Use with: dual encoders, projectors. Relations: u = x = 0 is `PositiveMargin`. The weights of samples count in the
    alignment, not in the uniformity.

    With several ranks a share is this rank's part of the rows times the log of the mean over all pairs, and its gradient
    that of the joined batch; the price is that every rank computes that mean by itself, over all rows, without gradient.
    """

    def __init__(
        self,
        contrastive: Objective,
        alignment: float = 1.0,
        uniformity: float = 1.0,
        cross_uniformity: float = 0.0,
        sharpness: float = 2.0,
        duplicates: Literal["mask", "keep"] = "mask",
        views: tuple[str, str] = ("query", "target"),
    ) -> None:
        super().__init__()
        self.contrastive = contrastive
        self.weights = {"alignment": alignment, "uniformity": uniformity, "cross_uniformity": cross_uniformity}
        self.sharpness = sharpness
        self.duplicates = duplicates
        self.query, self.target = views

    def forward(self, local: Encoded, everyone: Encoded) -> dict[str, Tensor]:
        """See `Objective`. Besides `loss` and what the contrastive loss reports: `contrastive` and each term in use."""
        found = dict(self.contrastive(local, everyone))
        local, everyone = counterparts(local, everyone, self.query, self.target)
        part = len(local.sample) / len(everyone.sample)
        loss = found.pop("loss")
        found["contrastive"] = loss.detach() / part
        for name, weight in self.weights.items():
            if weight:
                term = self._term(name, local, everyone)
                loss = loss + weight * term
                found[name] = term.detach() / part
        return {"loss": loss, **found}

    def _term(self, name: str, local: Encoded, everyone: Encoded) -> Tensor:
        if name == "alignment":
            return share(squared_distances(local, everyone, self.query, self.target), local, everyone, self.query)
        if name == "cross_uniformity":
            return self._uniformity(local, everyone, self.query, self.target)
        return sum(self._uniformity(local, everyone, v, v) for v in (self.query, self.target)) / 2  # type: ignore[return-value]

    def _uniformity(self, local: Encoded, everyone: Encoded, rows: str, columns: str) -> Tensor:
        """This rank's share of the log of the mean over all pairs of different samples."""
        mine, pairs = potential(local, everyone, rows, columns, self.sharpness, self.duplicates)
        total = mine.detach()
        if local is not everyone:
            with torch.no_grad():
                total, pairs = potential(everyone, everyone, rows, columns, self.sharpness, self.duplicates)
        if not pairs:
            return mine * 0.0
        part = len(local.owners[rows]) / len(everyone.owners[rows])
        # d log(total) is the sum over the ranks of d mine / total
        ratio = mine / total
        return part * (total / pairs).log() + (ratio - ratio.detach())


def squared_distances(local: Encoded, everyone: Encoded, rows: str, columns: str) -> Tensor:
    """|x - y|^2 of every row and its own column, (R,): the mean over them, where there are several."""
    match = Match(local, everyone, rows, columns)
    left, right = at_least_fp32(view(local, rows).vector), at_least_fp32(view(everyone, columns).vector)
    if match.column is not None:
        return (left - right[match.column]).square().sum(1)

    def block(part: slice) -> Tensor:
        own = match.own(part).to(right.dtype)
        with torch.autocast(left.device.type, enabled=False):
            # the mean of |x - y|^2 over own y
            count = own.sum(1)
            squares = left[part].square().sum(1) + own @ right.square().sum(1) / count
            return squares - 2 * ((own @ right) * left[part]).sum(1) / count

    return row_blocks(block, len(left), len(right))


def potential(
    local: Encoded, everyone: Encoded, rows: str, columns: str, sharpness: float, duplicates: Literal["mask", "keep"]
) -> tuple[Tensor, int]:
    """Sum of exp(-t |x - y|^2) over the pairs of rows and columns that are to be driven apart, and their number."""
    match = Match(local, everyone, rows, columns)
    left, right = at_least_fp32(view(local, rows).vector), at_least_fp32(view(everyone, columns).vector)

    def block(part: slice) -> Tensor:
        with torch.autocast(left.device.type, enabled=False):
            together = match.own(part) if duplicates == "keep" else match.same(part)
            x, y = left[part], right
            squares = x.square().sum(1)[:, None] + y.square().sum(1)[None, :] - 2 * x @ y.T
            near = (-sharpness * squares.clamp(min=0)).exp().masked_fill(together, 0.0)
            return torch.stack([near.sum(1), (~together).sum(1).to(near.dtype)], dim=1)

    found = row_blocks(block, len(left), len(right))
    return found[:, 0].sum(), int(found[:, 1].detach().double().sum())
