"""From the parts of a row (its pictures, texts, places) to one embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.gaussian import Gaussian, GaussianHead
from zoo.types import Embedding


class Part(NamedTuple):
    """Embedded parts of one modality: owner (I,), the row of each; vectors (I, E), unit norm; log_var (I, E) or None."""

    owner: Tensor
    vectors: Tensor
    log_var: Tensor | None = None


def unit(out: Tensor | Gaussian) -> tuple[Tensor, Tensor | None]:
    """What a head gave -> unit vectors and log-variance, at least fp32."""
    mean, log_var = out if isinstance(out, Gaussian) else (out, None)
    wide = [None if x is None else x if x.dtype == torch.float64 else x.float() for x in (mean, log_var)]
    assert wide[0] is not None
    return F.normalize(wide[0], dim=-1), wide[1]


def outputs(head: nn.Module) -> tuple[str, ...]:
    """Names of what a graph with this head gives."""
    return ("embeddings", "log_var") if isinstance(head, GaussianHead) else ("embeddings",)


def given(head: nn.Module, rows: Mapping[int, str]) -> dict[str, Mapping[int, str]]:
    """The dynamic axes of these outputs."""
    return dict.fromkeys(outputs(head), rows)


def summed(parts: Sequence[Part], rows: int) -> Embedding:
    """Unit vectors of a row's parts added up and normalised.

    Variances of independent parts add up as well, and shrink with the square of the norm that is divided by.
    """
    total = parts[0].vectors.new_zeros(rows, parts[0].vectors.shape[1])
    for part in parts:
        total = total.index_add(0, part.owner, part.vectors)
    norm = total.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    if any(part.log_var is None for part in parts):
        return Embedding(total / norm)
    variance = total.new_zeros(total.shape)
    for part in parts:
        assert part.log_var is not None
        variance = variance.index_add(0, part.owner, part.log_var.exp())
    return Embedding(total / norm, log_var=variance.log() - 2 * norm.log())
