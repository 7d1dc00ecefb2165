"""The sigmoid loss: every pair is a binary question of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.objectives.binary import sigmoid_sums
from zoo.objectives.counterparts import counterparts
from zoo.objectives.direction import Duplicates
from zoo.objectives.match import Match
from zoo.objectives.objective import Objective, share, view
from zoo.objectives.temperature import Learn, Temperature
from zoo.types import Encoded


class SigLIP(nn.Module, Objective):
    """Pairs that belong together say yes, all others no.

    Formula:
        L = -1/B sum_ij log sigmoid(y_ij (s x_i . y_j + b)), y_ij = 1 where they belong together, else -1
        (arXiv:2303.15343, equation 2; official code big_vision: divided by the B of all ranks, not by B^2).

    Inputs:
        the views `query` and `target` (named by `views`), one row per sample or several. A row whose sample lacks the other
        view weighs nothing.

    Args:
        temperature: start value; 0.1 is the paper's s = 10.
        bias: start value; the paper's -10 suits batches of 32k. Small batches start better at log(1 / (B - 1)).
        learn: as in `InfoNCE`; the bias is learned unless "no".
        max_scale: None = no cap; released weights exceed CLIP's 100.
        duplicates: what becomes of cells that are as right as the own one: "positive" (say yes, too), "mask" or "keep".
        mean: divide by the number of pairs, not of samples (SAIL, arXiv:2412.04616, official code): gradients are smaller by
            the number of columns, which an optimizer of signs such as Lion does not see.
        views: names of the two sides.

    Use with: dual encoders, projectors. Relations: needs no softmax over the batch, so it is kinder to small batches.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        bias: float = -10.0,
        learn: Learn = "log",
        max_scale: float | None = None,
        duplicates: Duplicates = "positive",
        mean: bool = False,
        views: tuple[str, str] = ("query", "target"),
    ) -> None:
        super().__init__()
        self.mean = mean
        self.temperature = Temperature(temperature, learn, max_scale)
        self.learn = learn
        self.bias = nn.Parameter(torch.tensor(float(bias)), requires_grad=learn != "no")
        self.duplicates = duplicates
        self.query, self.target = views

    def forward(self, local: Encoded, everyone: Encoded) -> dict[str, Tensor]:
        """See `Objective`. Besides `loss`: `temperature` and `bias`."""
        scale = self.temperature()
        local, everyone = counterparts(local, everyone, self.query, self.target)
        losses = sigmoid_losses(local, everyone, self.query, self.target, scale, self.bias, self.duplicates)
        loss = share(losses, local, everyone, self.query)
        if self.mean:
            loss = loss / max(1, len(view(everyone, self.target).vector))
        return {"loss": loss, "temperature": (1 / scale).detach(), "bias": self.bias.detach()}


def sigmoid_losses(
    local: Encoded,
    everyone: Encoded,
    rows: str,
    columns: str,
    scale: Tensor,
    bias: Tensor,
    duplicates: Duplicates = "positive",
) -> Tensor:
    """Sum over all columns of the binary losses of every row, (R,) fp32."""
    sides = view(local, rows).vector, view(everyone, columns).vector
    return answered_sums(Match(local, everyone, rows, columns), *sides, scale, bias, duplicates)


def answered_sums(
    match: Match, left: Tensor, right: Tensor, scale: Tensor, bias: Tensor, duplicates: Duplicates
) -> Tensor:
    """`sigmoid_sums` of rows (R, D) and columns (C, D), (R,): yes is the answer where they belong together."""
    if match.column is not None and (duplicates == "keep" or match.distinct):
        return sigmoid_sums(left, right, scale, bias, match.column)

    def signs(part: slice) -> Tensor:
        yes = match.own(part) if duplicates == "keep" else match.same(part)
        cells = torch.where(yes, 1.0, -1.0)
        return cells.masked_fill(yes & ~match.own(part), 0.0) if duplicates == "mask" else cells

    return sigmoid_sums(left, right, scale, bias, signs)
