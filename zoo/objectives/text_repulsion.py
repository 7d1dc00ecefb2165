"""A loss of distance ratios that also drives the texts of different pictures apart (XTD)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.objectives.contrastive import at_least_fp32, row_blocks
from zoo.objectives.counterparts import counterparts
from zoo.objectives.match import Match
from zoo.objectives.objective import Objective, row_mean, share, view
from zoo.types import Encoded

_CLOSEST = 1e-6  # squared distances in a denominator are held at or above this (ours)


class TextRepulsion(nn.Module, Objective):
    """A picture must be near its text, compared with how far wrong texts are from the picture and from that text.

    Formula:
        d(x, y) = |x - y|, T_i the text of picture I_i, W_i the wrong texts of the batch
        L_i = mean or largest over j in W_i of  a (d(I_i, T_i) / d(I_i, T_j))^rho  +  b (d(I_i, T_i) / d(T_i, T_j))^rho
        L = mean over i

    The second term is the text repulsion: it tightens the clusters of the text side by pushing dissimilar texts from one
    another. It asks for no other language than that of training, so a frozen multilingual sentence encoder carries the
    alignment over to its other languages (arXiv:2012.05107).

    Differs from the paper, or may: of the paper's loss only what it is for could be read, not its equations. Ratios of
    distances, the exponent, the weights and all texts of the batch as wrong ones are our reading.

    Inputs:
        the views `query` (pictures) and `target` (texts), named by `views`, one text per sample, or none: a row whose sample
        lacks the other view weighs nothing.

    Args:
        image_weight: a. text_weight: b.
        exponent: rho, at least 2, for a gradient that is finite where a pair coincides.
        wrong: "mean" over all wrong texts, or the "hardest", the one with the largest ratio, for each term by itself.
        duplicates: "mask" leaves texts out that are as right as the own one (equal content or label); "keep" does not.
        views: names of pictures and texts.

    Use with: projectors and dual encoders; alone or in `Weighted` beside a contrastive loss. A batch without any wrong text
    costs nothing.

    Raises:
        RecipeError: an exponent below 2, or samples with several texts.
    """

    def __init__(
        self,
        image_weight: float = 0.5,
        text_weight: float = 1.0,
        exponent: float = 4.0,
        wrong: Literal["mean", "hardest"] = "mean",
        duplicates: Literal["mask", "keep"] = "mask",
        views: tuple[str, str] = ("query", "target"),
    ) -> None:
        super().__init__()
        if exponent < 2:
            raise RecipeError(f"TextRepulsion: exponent is {exponent}, it is at least 2")
        self.image_weight, self.text_weight = image_weight, text_weight
        self.exponent = exponent
        self.wrong = wrong
        self.duplicates = duplicates
        self.pictures, self.texts = views

    def forward(self, local: Encoded, everyone: Encoded) -> dict[str, Tensor]:
        """See `Objective`. Besides `loss`: both terms without their weights, `image_text` and `text_text`."""
        local, everyone = counterparts(local, everyone, self.pictures, self.texts)
        match = Match(local, everyone, self.pictures, self.texts)
        pictures = at_least_fp32(view(local, self.pictures).vector)
        texts = at_least_fp32(view(everyone, self.texts).vector)
        column = match.column
        if column is None:
            raise RecipeError(
                f"TextRepulsion takes one text per picture; the view '{self.texts}' has {len(texts)} rows for "
                f"{len(everyone.sample)} samples"
            )

        def block(part: slice) -> Tensor:
            with torch.autocast(pictures.device.type, enabled=False):
                right = match.own(part) if self.duplicates == "keep" else match.same(part)
                picture, text = pictures[part], texts[column[part]]
                own = (picture - text).square().sum(1, keepdim=True)
                return torch.stack([self._ratios(own, side, texts, right) for side in (picture, text)], dim=1)

        terms = row_blocks(block, len(pictures), 2 * len(texts))
        image_text, text_text = terms.unbind(1)
        loss = share(self.image_weight * image_text + self.text_weight * text_text, local, everyone, self.pictures)
        return {"loss": loss, "image_text": row_mean(image_text), "text_text": row_mean(text_text)}

    def _ratios(self, own: Tensor, rows: Tensor, texts: Tensor, right: Tensor) -> Tensor:
        """(r,) over the wrong texts: own squared distances (r, 1) against those of rows (r, E) to texts (C, E)."""
        if not len(texts):
            return own.sum(1)
        squares = rows.square().sum(1, keepdim=True) + texts.square().sum(1) - 2 * rows @ texts.T
        ratios = (own / squares.clamp(min=_CLOSEST)).pow(self.exponent / 2).masked_fill(right, 0.0)
        if self.wrong == "hardest":
            return ratios.amax(1)
        return ratios.sum(1) / (~right).sum(1).clamp(min=1)
