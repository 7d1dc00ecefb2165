"""The hinge loss: a right pair must beat the wrong ones by a margin."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from zoo.objectives.contrastive import at_least_fp32, row_blocks
from zoo.objectives.counterparts import counterparts
from zoo.objectives.direction import Duplicates
from zoo.objectives.match import Match
from zoo.objectives.objective import Objective, row_mean, share, view
from zoo.types import Encoded

Negatives = Literal["all", "hardest"]


class Triplet(nn.Module, Objective):
    """The cosine of a right pair must exceed that of the wrong ones by a margin.

    Formula:
        L = sum_i sum_j [m - s_ii + s_ij]+ + [m - s_ii + s_ji]+, j over the others ("all": VSE, arXiv:1411.2539; DVSA,
        arXiv:1412.2306, equation 9), or only the j with the largest s_ij ("hardest": VSE++, arXiv:1707.05612, equation 6).
        The sum over i is divided by the number of samples; the official code of VSE++ does not divide, which is one factor
        in the learning rate. Where a sample has several rows on a side, the sum over i takes their mean, so that both
        directions weigh the same.

    Inputs:
        the views `query` and `target` (named by `views`), one row per sample or several. Where a row has several right
        columns, the one with the lowest cosine has to win. A row whose sample lacks the other view weighs nothing.

    Args:
        margin: in units of cosine; 0.2 in VSE++.
        negatives: "all" or "hardest".
        symmetric: also target -> query, added as in all these papers.
        duplicates: what becomes of cells that are as right as the own one (see `InfoNCE`): "mask" leaves them out,
            "positive" asks them to win, too, "keep" is official.
        views: names of the two sides.

    Use with: dual encoders, projectors. Relations: with "all" the pull is even on all that violate the margin; InfoNCE
    weighs them by softmax. `TokenMatching` takes the same loss on scores of regions and words.
    """

    def __init__(
        self,
        margin: float = 0.2,
        negatives: Negatives = "all",
        symmetric: bool = True,
        duplicates: Duplicates = "mask",
        views: tuple[str, str] = ("query", "target"),
    ) -> None:
        super().__init__()
        self.margin = margin
        self.negatives = negatives
        self.symmetric = symmetric
        self.duplicates = duplicates
        self.query, self.target = views

    def forward(self, local: Encoded, everyone: Encoded) -> dict[str, Tensor]:
        """See `Objective`. Besides `loss`: `violations`, the share of rows that some column comes too close to."""
        local, everyone = counterparts(local, everyone, self.query, self.target)
        losses = self._losses(local, everyone, self.query, self.target)
        loss = share(losses, local, everyone, self.query)
        if self.symmetric:
            back = self._losses(local, everyone, self.target, self.query)
            loss = loss + share(back, local, everyone, self.target)
        return {"loss": loss, "violations": row_mean((losses > 0).float())}

    def _losses(self, local: Encoded, everyone: Encoded, rows: str, columns: str) -> Tensor:
        match = Match(local, everyone, rows, columns)
        left, right = at_least_fp32(view(local, rows).vector), at_least_fp32(view(everyone, columns).vector)

        def block(part: slice) -> Tensor:
            with torch.autocast(left.device.type, enabled=False):
                own, hidden = own_and_hidden(match, part, self.duplicates)
                return hinge(left[part] @ right.T, own, hidden, self.margin, self.negatives)

        return row_blocks(block, len(left), len(right))


def own_and_hidden(match: Match, part: slice, duplicates: Duplicates) -> tuple[Tensor, Tensor | None]:
    """(r, C) bool: cells that have to win, and cells that do not count (None = all count)."""
    own = match.own(part)
    if duplicates == "keep" or match.distinct:
        return own, None
    same = match.same(part)
    return (same, None) if duplicates == "positive" else (own, same & ~own)


def hinge(scores: Tensor, own: Tensor, hidden: Tensor | None, margin: float, negatives: Negatives) -> Tensor:
    """Loss of every row of scores (r, C), (r,). A row without own cells, or with nothing else, costs 0."""
    if not scores.shape[1]:
        return scores.sum(1)
    positive = scores.masked_fill(~own, torch.inf).amin(1, keepdim=True)
    others = scores.masked_fill(own if hidden is None else own | hidden, -torch.inf)
    if negatives == "hardest":
        others = others.amax(1, keepdim=True)
    return (margin - positive + others).clamp(min=0).sum(1)
