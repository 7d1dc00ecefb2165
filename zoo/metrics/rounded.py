"""Scores from vectors rounded to bf16, with a bound on how far they can be off: most cells need no exact score.

A CPU whose matrix units take bf16 (AMX) multiplies it five to seven times as fast as fp32. Where a rounded score is further
from what it is compared with than its bound, the comparison is decided; only the rest is scored exactly.

Shapes: R rows, E width; b queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

_UNIT = 2.0**-8  # of bf16: rounding changes a number by at most this share of it
_FP32 = 2.0**-24
_WORTH = 1 << 30  # multiplications from which rounding first is faster (ours, 2 CPU cores)
_QUERIES = 256  # below, rounding the candidates takes longer than is saved (ours, likewise)
_LARGEST = 1 << 27  # numbers of the candidates: their copy takes at most 256 MiB
_AT_A_TIME = 1 << 17  # numbers that stay in the cache (ours, likewise)
_VANISHING = 1.1e-19  # the square of a smaller number is zero in fp32, so that norms do not see it
_LEAST = 1e-30  # products that the matrix units may take for zero are far below


@dataclass(frozen=True, slots=True)
class Rounded:
    """values (R, E) bf16; `norms` (R,) of them and `lost` (R,), the norms of what rounding took, in fp32, not too small."""

    values: Tensor
    norms: Tensor
    lost: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> Self:
        """Of finite vectors (R, E) fp32."""
        values = torch.empty_like(vectors, dtype=torch.bfloat16)
        norms, lost = vectors.new_empty(2, len(vectors))
        size = max(1, _AT_A_TIME // max(1, vectors.shape[1]))
        for parts in zip(*(each.split(size) for each in (vectors, values, norms, lost)), strict=True):
            exact, value, norm, loss = parts
            widened = value.copy_(exact).float()
            torch.linalg.vector_norm(widened, dim=1, out=norm)
            torch.linalg.vector_norm(widened.sub_(exact), dim=1, out=loss)
        floor = _VANISHING * vectors.shape[1] ** 0.5
        return cls(values, norms + floor, lost + floor)

    def __getitem__(self, rows: slice) -> Rounded:
        return Rounded(self.values[rows], self.norms[rows], self.lost[rows])

    def error(self, candidates: Rounded) -> Tensor:
        """(b,): how far the dot product of a row with any of `candidates` can be from that of their rounded values.

        |q.c - q'.c'| <= |q - q'| |c| + |q'| |c - c'| (Cauchy-Schwarz), and sums of E terms in fp32 on either side.
        """
        if not len(candidates.norms):
            return torch.zeros_like(self.norms)
        norm, lost = candidates.norms.amax(), candidates.lost.amax()
        rounding = self.lost * (norm + lost) + self.norms * lost
        sums = 2 * self.values.shape[1] * _FP32 * (self.norms + self.lost) * (norm + lost)
        return 1.01 * (rounding + sums) + _LEAST


def at_most(scores: Tensor, error: Tensor) -> Tensor:
    """The largest value that is behind a rounded product, which itself was rounded to bf16."""
    return scores + 1.01 * _UNIT * scores.abs() + error


def thresholds(values: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """bf16 (low, high), of the shape of `values`: rounded products above high mean more than the value, below low less."""
    # that the product and the thresholds are rounded to bf16 needs no room: of two numbers none overtakes the other by it
    room = error + 4 * _FP32 * (values.abs() + error)
    return (values - room).bfloat16(), (values + room).bfloat16()


def pays(queries: int, candidates: Tensor) -> bool:
    """Whether rounding first is faster: many queries share the rounding of the candidates, whose copy must stay small."""
    worth = queries >= _QUERIES and queries * candidates.numel() >= _WORTH and candidates.numel() <= _LARGEST
    return worth and candidates.device.type == "cpu" and torch.cpu._is_amx_tile_supported()
