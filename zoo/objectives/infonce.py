"""InfoNCE: the contrastive loss of nearly every embedding model, with the switches in which the papers differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from zoo.objectives.adjust import Adjustment
from zoo.objectives.counterparts import counterparts
from zoo.objectives.direction import Direction, Duplicates
from zoo.objectives.objective import Objective, row_mean, share
from zoo.objectives.temperature import Cap, Learn, Temperature
from zoo.types import Encoded

NEGATIVES = "negatives"  # what sources call them


class InfoNCE(nn.Module, Objective):
    """Every query must prefer its own target to the targets of all other samples.

    Formula:
        L_i = -log exp(s(q_i, t_i)) / sum_j exp(s(q_i, t_j)), s = cosine / temperature, mean over i (arXiv:1807.03748).

    Inputs:
        the views `query` and `target` (named by `views`), one row per sample or several; optionally `negatives`, any
        number of rows per sample. A row whose sample lacks the other view weighs nothing.

    Args:
        temperature: start value (fixed unless `learn`).
        learn: "no"; "log" = log(1/temperature) is the parameter, as in CLIP, and 1/temperature stays <= `max_scale`;
            "linear" = the temperature itself is the parameter, free (ABC) or held between `limits`.
        symmetric: average with the direction target -> query (CLIP). One-sided otherwise (VLM2Vec, ABC).
        label_smoothing: share of the probability spread over all candidates that are not masked.
        duplicates: what becomes of cells that are as right as the own one: equal content to the positive, the target of
            an equal query, or a sample with the same label. "mask" takes them out of the denominator (for training
            exactly), "positive" makes them targets of equal weight (SupCon, arXiv:2004.11362, L_out), "keep" leaves them
            negatives, as most published runs did.
        negatives: "own" = hard negatives stand against their own query only (mmE5); "shared" = against every query
            (E5-V, ABC, Tevatron).
        intra_modal: the other rows of the query's own side stand against it as well, in both directions if `symmetric` (the
            improved contrastive loss of GTE, arXiv:2308.03281, equation 2).
        adjust: weights, margins, filters of cells, applied in this order (see `zoo.objectives.adjust`).
        limits: least and largest value of a learned temperature (FuseMix, freeze-align: 0.001 and 0.5); None = free.
        cap: "official" = `max_scale` holds the scale, not the parameter behind it (FDT; see `Temperature`).
        views: names of the two sides.
        negatives_view: name of the view of hard negatives; data may come without it if it has the default name.

    Raises:
        RecipeError: a view that the data does not give.

    Use with: VLM encoders, dual encoders, projectors. Relations: `symmetric` with `learn: log` is CLIP's loss.
    """

    def __init__(
        self,
        temperature: float = 0.02,
        learn: Learn = "no",
        max_scale: float | None = 100.0,
        symmetric: bool = False,
        label_smoothing: float = 0.0,
        duplicates: Duplicates = "mask",
        negatives: Literal["own", "shared"] = "shared",
        intra_modal: bool = False,
        adjust: Sequence[Adjustment] = (),
        limits: tuple[float, float] | None = None,
        cap: Cap = "parameter",
        views: tuple[str, str] = ("query", "target"),
        negatives_view: str = NEGATIVES,
    ) -> None:
        super().__init__()
        self.temperature = Temperature(temperature, learn, max_scale, limits, cap)
        self.symmetric = symmetric
        self.label_smoothing = label_smoothing
        self.duplicates = duplicates
        self.negatives = negatives
        self.intra_modal = intra_modal
        self.adjust = list(adjust)
        self.query, self.target = views
        self.negatives_view = negatives_view

    def forward(self, local: Encoded, everyone: Encoded) -> dict[str, Tensor]:
        """See `Objective`. Besides `loss`: `temperature` and `accuracy` (the share of queries that prefer their own)."""
        scale = self.temperature()
        local, everyone = counterparts(local, everyone, self.query, self.target)
        forth = Direction(local, everyone, self.query, self.target, self.duplicates)
        if self.negatives_view in everyone.views or self.negatives_view != NEGATIVES:
            forth.extend(self.negatives_view, own_only=self.negatives == "own")
        if self.intra_modal:
            forth.extend_own_side()
        both = self.symmetric and local is everyone and forth.mutual and not self.adjust
        found = forth.losses(scale, self.adjust, self.label_smoothing, both)
        loss = share(found.rows, local, everyone, self.query)
        if self.symmetric:
            if found.columns is not None:  # column j belongs to the row whose target it is
                assert forth.match.column is not None
                other = share(found.columns[forth.match.column], local, everyone, self.query)
            else:
                back = Direction(local, everyone, self.target, self.query, self.duplicates)
                if self.intra_modal:
                    back.extend_own_side()
                other = share(back.losses(scale, self.adjust, self.label_smoothing).rows, local, everyone, self.target)
            loss = (loss + other) / 2
        return {"loss": loss, "temperature": (1 / scale).detach(), "accuracy": row_mean(found.correct.float())}
