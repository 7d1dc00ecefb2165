"""The contrastive loss on scores of parts: regions of a picture, words of a text."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.objectives.contrastive import row_blocks
from zoo.objectives.counterparts import counterparts, rows_of
from zoo.objectives.direction import Duplicates
from zoo.objectives.match import Match
from zoo.objectives.objective import Objective, share, view
from zoo.objectives.regions import Score
from zoo.objectives.temperature import Learn, Temperature
from zoo.objectives.triplet import Negatives, hinge, own_and_hidden
from zoo.types import Embedding, Encoded


class TokenMatching(nn.Module, Objective):
    """A picture and its text must score higher than any other pairing, by regions and words.

    Formula:
        "nce":   InfoNCE on scores / temperature, mean of both directions (arXiv:2212.05561)
        "hinge": sum over wrong pairs of [margin - S_kk + S_kl]+, both directions added (DVSA, arXiv:1412.2306, equation 9,
                 with margin 1), divided by the number of samples

    Inputs:
        a view of pictures with tokens and a view of texts, with tokens where the score asks for them (`tokens: true` of
        the model); one row per sample or several. A row whose sample lacks the other view weighs nothing.

    Args:
        score: one of `zoo.objectives.regions`: `BestMatch`, `RegionSentence`, `NonLocalSentence`.
        loss: "nce" or "hinge".
        temperature: start value, for "nce". learn, max_scale: as in `InfoNCE`.
        margin: for "hinge", in units of the score.
        negatives: for "hinge", see `Triplet`.
        symmetric: also text -> picture.
        duplicates: what becomes of cells that are as right as the own one (see `InfoNCE`).
        views: pictures, texts.

    Relations: with one token per row, "nce" is InfoNCE and "hinge" is Triplet. Scores are computed in blocks of rows, and
    again in the backward pass: no tensor of all pairs of tokens is held.

    Raises:
        RecipeError: no tokens, or a row without any.
    """

    def __init__(
        self,
        score: Score,
        loss: Literal["nce", "hinge"] = "nce",
        temperature: float = 0.07,
        learn: Learn = "no",
        max_scale: float | None = 100.0,
        margin: float = 1.0,
        negatives: Negatives = "all",
        symmetric: bool = True,
        duplicates: Duplicates = "mask",
        views: tuple[str, str] = ("query", "target"),
    ) -> None:
        super().__init__()
        self.score = score
        self.temperature = Temperature(temperature, learn, max_scale) if loss == "nce" else None
        self.margin = margin
        self.negatives = negatives
        self.symmetric = symmetric
        self.duplicates = duplicates
        self.pictures, self.texts = views

    def forward(self, local: Encoded, everyone: Encoded) -> dict[str, Tensor]:
        """See `Objective`. Besides `loss`: `temperature`, for "nce"."""
        local, everyone = counterparts(local, everyone, self.pictures, self.texts)
        for name in (self.pictures, self.texts):
            refuse_empty(view(everyone, name), name)
        scale = None if self.temperature is None else self.temperature()
        loss = self._share(local, everyone, self.pictures, self.texts, scale)
        if self.symmetric:
            loss = loss + self._share(local, everyone, self.texts, self.pictures, scale)
        if scale is None:
            return {"loss": loss}
        return {"loss": loss / 2 if self.symmetric else loss, "temperature": (1 / scale).detach()}

    def pair_scores(self, pictures: Embedding, texts: Embedding) -> Tensor:
        """(r, C) scores of pictures (r rows) and texts (C rows): what the paper ranks by."""
        return self.score(pictures, texts)

    def _share(self, local: Encoded, everyone: Encoded, rows: str, columns: str, scale: Tensor | None) -> Tensor:
        left, right = view(local, rows), view(everyone, columns)
        match = Match(local, everyone, rows, columns)

        def block(part: slice) -> Tensor:
            some = rows_of(left, part)
            with torch.autocast(left.vector.device.type, enabled=False):
                scores = self.score(some, right) if rows == self.pictures else self.score(right, some).T
                own, hidden = own_and_hidden(match, part, self.duplicates)
                if scale is None:
                    return hinge(scores, own, hidden, self.margin, self.negatives)
                return cross_entropy(scores * scale, own, hidden)

        return share(row_blocks(block, len(left.vector), cells(left, right)), local, everyone, rows)


def cross_entropy(logits: Tensor, own: Tensor, hidden: Tensor | None) -> Tensor:
    """Loss of every row (r,) of logits (r, C) whose own cells are targets of equal weight."""
    if hidden is not None:
        logits = logits.masked_fill(hidden, -torch.inf)
    return logits.logsumexp(1) - logits.masked_fill(~own, 0.0).sum(1) / own.sum(1)


def refuse_empty(embedding: Embedding, name: str) -> None:
    """Raise RecipeError if some row has tokens, but no real one."""
    if embedding.mask is not None and not bool((embedding.mask > 0).any(1).all()):
        row = int((embedding.mask > 0).any(1).int().argmin())
        raise RecipeError(f"row {row} of the view '{name}' has no token at all, so nothing can be matched with it")


def cells(left: Embedding, right: Embedding) -> int:
    """Cells that one row of `left` is scored with, for the size of a block."""
    lengths = (1 if side.tokens is None else side.tokens.shape[1] for side in (left, right))
    return len(right.vector) * next(lengths) * next(lengths)
