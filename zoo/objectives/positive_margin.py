"""A contrastive loss with a penalty on right pairs alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.objectives.contrastive import at_least_fp32, row_blocks
from zoo.objectives.counterparts import counterparts
from zoo.objectives.gap import squared_distances
from zoo.objectives.match import Match
from zoo.objectives.objective import Objective, row_mean, share, view
from zoo.types import Encoded


class PositiveMargin(nn.Module, Objective):
    """Pulls right pairs together beyond what the softmax asks for, so that they win by more.

    Formula:
        L = L_contrastive + weight mean_i |q_i - t_i|^2 (arXiv:2310.00927: CLIP's loss leaves a margin of the order of the
        temperature; the remedy is a regularizer of the distance of positive pairs, and of those alone). For unit vectors
        the penalty is 2 - 2 cosine.

    Inputs:
        the views `query` and `target` (named by `views`), one row per sample or several. A row whose sample lacks the other
        view weighs nothing.

    Args:
        contrastive: the loss that the penalty is added to.
        weight: 0.1 is ours. The squared distance is our reading of the paper, whose code is not public: a penalty on
            1 - cosine is the same with twice the weight.
        views: names of the two sides.

    Use with: dual encoders, projectors. Relations: `ContrastiveGap` with alignment alone.
    """

    def __init__(
        self, contrastive: Objective, weight: float = 0.1, views: tuple[str, str] = ("query", "target")
    ) -> None:
        super().__init__()
        self.contrastive = contrastive
        self.weight = weight
        self.query, self.target = views

    def forward(self, local: Encoded, everyone: Encoded) -> dict[str, Tensor]:
        """See `Objective`. Besides `loss` and what the contrastive loss reports: `contrastive`, `penalty`, and `margin`.

        The margin is the mean over queries of the lowest right cosine less the highest wrong one.
        """
        found = dict(self.contrastive(local, everyone))
        local, everyone = counterparts(local, everyone, self.query, self.target)
        part = len(local.sample) / len(everyone.sample)
        loss = found.pop("loss")
        squares = squared_distances(local, everyone, self.query, self.target)
        penalty = share(squares, local, everyone, self.query)
        reports = {
            "contrastive": loss.detach() / part,
            "penalty": penalty.detach() / part,
            "margin": row_mean(margins(local, everyone, self.query, self.target)),
        }
        return {"loss": loss + self.weight * penalty, **found, **reports}


@torch.no_grad()
def margins(local: Encoded, everyone: Encoded, rows: str, columns: str) -> Tensor:
    """By how much every row's right columns beat the others (lowest right - highest wrong cosine), (R,).

    Columns that are as right as the own one are right. A row to which all columns are right has margin 0.
    """
    match = Match(local, everyone, rows, columns)
    left, right = at_least_fp32(view(local, rows).vector), at_least_fp32(view(everyone, columns).vector)

    def block(part: slice) -> Tensor:
        with torch.autocast(left.device.type, enabled=False):
            same, scores = match.same(part), left[part] @ right.T
            if not len(right):
                return scores.sum(1)
            lowest = scores.masked_fill(~same, torch.inf).amin(1)
            highest = scores.masked_fill(same, -torch.inf).amax(1)
            return torch.where(same.all(1), 0.0, lowest - highest)

    return row_blocks(block, len(left), len(right))
