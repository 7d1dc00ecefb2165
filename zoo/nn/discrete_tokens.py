"""Finite discrete tokens (FDT, arXiv:2303.14865): pictures and texts as sparse mixtures of one set of learned codes.

R rows, L tokens, W width of the tower, E width of the codes, C codes.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.nn.heads import Head
from zoo.nn.sparsemax import sparsemax
from zoo.nn.towers import SharedPooling


class QueryMap(nn.Module, Head):
    """Tokens of a tower to queries for the codes: LN, linear, GELU, LN, linear (official code).

    Args:
        width: W. dim: E.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, dim), nn.GELU(), nn.LayerNorm(dim), nn.Linear(dim, dim)
        )

    def forward(self, pooled: Tensor) -> Tensor:
        """(..., W) -> (..., E)."""
        queries: Tensor = self.layers(pooled)
        return queries


class Sparsemax(nn.Module):
    """`sparsemax` as a part that can be watched."""

    def forward(self, scores: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return sparsemax(scores)


class FiniteDiscreteTokens(nn.Module, SharedPooling):
    """Every code scores by its best token; the few codes that win make up the vector.

    score_c = max over tokens of q . code_c / (sqrt(E) temperature); vector = sparsemax(score) @ codes (equations 2 to 4).
    The official temperature is 1000 for 16,384 codes: scores that differ little let many codes win. Fewer codes need less
    (sparsemax keeps all of C codes while their scores lie within 1 / C of one another).

    Args:
        codes: C. dim: E.
        temperature: divides the scores; at the start if it decays.
        decay: the temperature is multiplied by this every `decay_every` steps (official code; 1 there, too).
        decay_every: steps; the official setting is about one epoch.
        least: the temperature does not fall below it.
        padding: "exact" leaves padding out; "official" multiplies its scores by 0, so that a code to which every word is
            opposed scores 0 in padded texts and a text's vector depends on whether it is padded.
    """

    temperature: Tensor

    def __init__(
        self,
        codes: int = 16384,
        dim: int = 512,
        temperature: float = 1000.0,
        decay: float = 1.0,
        decay_every: int = 2700,
        least: float = 0.01,
        padding: Literal["exact", "official"] = "exact",
    ) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.randn(codes, dim))
        self.activation = Sparsemax()
        self.start, self.decay, self.decay_every, self.least = temperature, decay, decay_every, least
        self.padding = padding
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Queries (R, L, E), mask (R, L) or None -> (R, E)."""
        scores = tokens @ self.codebook.T.to(tokens.dtype) / math.sqrt(self.codebook.shape[1])
        if mask is not None and self.padding == "exact":
            scores = scores.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf)
        elif mask is not None:
            scores = scores * mask.unsqueeze(-1).to(scores.dtype)
        best = scores.amax(dim=1)
        weights: Tensor = self.activation((best.float() if best.dtype != torch.float64 else best) / self.temperature)
        return weights @ self.codebook.to(weights.dtype)

    def anneal(self, step: int) -> None:
        """Set the temperature for a step: temperature = max(start x decay^(step / decay_every), least)."""
        if step % self.decay_every == 0:
            self.temperature.fill_(max(self.start * self.decay ** (step / self.decay_every), self.least))
