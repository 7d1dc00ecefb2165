"""InfoNCE: the contrastive loss of nearly every embedding model, with the switches in which the papers differ."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.objectives.contrastive import at_least_fp32, row_cross_entropy
from zoo.objectives.objective import Objective, view
from zoo.types import Encoded


class InfoNCE(nn.Module, Objective):
    """Every query must prefer its own target to the targets of all other samples.

    Formula:
        L_i = -log exp(s(q_i, t_i)) / sum_j exp(s(q_i, t_j)), s = cosine / temperature, mean over i (arXiv:1807.03748).

    Inputs:
        the views `query` and `target`, one row per sample each; optionally `negatives`, any number of rows per sample.

    Args:
        temperature: start value (fixed unless `learn`).
        learn: "no"; "log" = log(1/temperature) is the parameter, as in CLIP, and 1/temperature stays <= `max_scale`;
            "linear" = the temperature itself is the parameter, unclamped (ABC).
        symmetric: average with the direction target -> query (CLIP). One-sided otherwise (VLM2Vec, ABC).
        label_smoothing: share of the probability spread over all candidates that are not masked.
        mask_duplicates: drop candidates that would be false negatives: equal content to the positive, the target of an
            equal query, or a sample with the same label. "exact" for training; published runs mostly had no mask.
        negatives: "own" = hard negatives stand against their own query only (mmE5); "shared" = against every query
            (E5-V, ABC, Tevatron).

    Use with: VLM encoders, dual encoders, projectors. Relations: `symmetric` with `learn: log` is CLIP's loss.
    """

    def __init__(
        self,
        temperature: float = 0.02,
        learn: Literal["no", "log", "linear"] = "no",
        max_scale: float = 100.0,
        symmetric: bool = False,
        label_smoothing: float = 0.0,
        mask_duplicates: bool = True,
        negatives: Literal["own", "shared"] = "shared",
        views: tuple[str, str] = ("query", "target"),
    ) -> None:
        super().__init__()
        start = {"no": temperature, "log": math.log(1 / temperature), "linear": temperature}[learn]
        self.parameter = nn.Parameter(torch.tensor(float(start)), requires_grad=learn != "no")
        self.learn = learn
        self.max_scale = max_scale
        self.symmetric = symmetric
        self.label_smoothing = label_smoothing
        self.mask_duplicates = mask_duplicates
        self.negatives = negatives
        self.query, self.target = views

    @property
    def scale(self) -> Tensor:
        """1 / temperature."""
        if self.learn == "log":
            return self.parameter.clamp(max=math.log(self.max_scale)).exp()
        return 1.0 / self.parameter

    def forward(self, local: Encoded, everyone: Encoded) -> dict[str, Tensor]:
        """See `Objective`. Besides `loss`: `temperature` and `accuracy` (the share of queries that prefer their own)."""
        loss, correct = self._direction(local, everyone, self.query, self.target, with_negatives=True)
        if self.symmetric:
            other, _ = self._direction(local, everyone, self.target, self.query, with_negatives=False)
            loss = (loss + other) / 2
        return {"loss": loss, "temperature": (1 / self.scale).detach(), "accuracy": correct}

    def _direction(
        self, local: Encoded, everyone: Encoded, rows: str, columns: str, with_negatives: bool
    ) -> tuple[Tensor, Tensor]:
        row_vectors, column_vectors = view(local, rows).vector, view(everyone, columns).vector
        owner, column_owner = local.owners[rows], everyone.owners[columns]
        positive = owner[:, None] == column_owner[None, :]
        kept = torch.ones_like(positive)
        if self.mask_duplicates:
            kept = positive | ~_same(local, everyone, rows, columns)
        if with_negatives and "negatives" in everyone.views:
            column_vectors = torch.cat([column_vectors, everyone.views["negatives"].vector])
            extra_kept = self._kept_negatives(local, everyone, rows, columns)
            kept = torch.cat([kept, extra_kept], dim=1)
            positive = torch.cat([positive, torch.zeros_like(extra_kept)], dim=1)
        logits = at_least_fp32(row_vectors) @ at_least_fp32(column_vectors).T * self.scale
        losses = row_cross_entropy(logits, positive, kept, self.label_smoothing)
        weights = local.weights[torch.searchsorted(local.sample, owner)]
        best = logits.masked_fill(~kept, -torch.inf).argmax(dim=1)
        correct = positive[torch.arange(len(best), device=best.device), best].float().mean()
        return (losses * weights).sum() / len(everyone.sample), correct

    def _kept_negatives(self, local: Encoded, everyone: Encoded, rows: str, columns: str) -> Tensor:
        kept = torch.ones(len(local.owners[rows]), len(everyone.owners["negatives"]), dtype=torch.bool)
        kept = kept.to(local.owners[rows].device)
        if self.negatives == "own":
            kept = kept & (local.owners[rows][:, None] == everyone.owners["negatives"][None, :])
        if self.mask_duplicates:  # a mined negative can be the positive itself
            kept = kept & (local.keys[columns][:, None] != everyone.keys["negatives"][None, :])
        return kept


def _same(local: Encoded, everyone: Encoded, rows: str, columns: str) -> Tensor:
    """(local rows, all columns): where the column is as right as the row's own positive."""
    label = local.labels[:, None]
    same_label = (label == everyone.labels[None, :]) & (label >= 0)
    same_column = local.keys[columns][:, None] == everyone.keys[columns][None, :]
    same_row = local.keys[rows][:, None] == everyone.keys[rows][None, :]
    return same_label | same_column | same_row
