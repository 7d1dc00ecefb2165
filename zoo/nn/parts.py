"""From the parts of a row (its pictures, texts, places) to one embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.nn.gaussian import DistributionHead, Gaussian
from zoo.types import Embedding


class Part(NamedTuple):
    """Embedded parts of one modality: owner (I,), the row of each; vectors (I, E), unit norm; log_var (I, E) or None.

    given (I, D) and log_shape (I, E): as a head gave them (see `Gaussian`), or None.
    """

    owner: Tensor
    vectors: Tensor
    log_var: Tensor | None = None
    given: Tensor | None = None
    log_shape: Tensor | None = None


def unit(out: Tensor | Gaussian) -> tuple[Tensor, Tensor | None]:
    """What a head gave -> unit vectors and log-variance, at least fp32."""
    mean, log_var = out[:2] if isinstance(out, Gaussian) else (out, None)
    wide = [None if x is None else x if x.dtype == torch.float64 else x.float() for x in (mean, log_var)]
    assert wide[0] is not None
    return F.normalize(wide[0], dim=-1), wide[1]


def part_of(owner: Tensor, out: Tensor | Gaussian) -> Part:
    """What a head gave for the parts of the rows `owner` -> Part."""
    if isinstance(out, Gaussian):
        return Part(owner, *unit(out), out.given, out.log_shape)
    return Part(owner, *unit(out))


def outputs(head: nn.Module) -> tuple[str, ...]:
    """Names of what a graph with this head gives."""
    return ("embeddings", "log_var") if isinstance(head, DistributionHead) else ("embeddings",)


def given(head: nn.Module, rows: Mapping[int, str]) -> dict[str, Mapping[int, str]]:
    """The dynamic axes of these outputs."""
    return dict.fromkeys(outputs(head), rows)


def summed(parts: Sequence[Part], rows: int) -> Embedding:
    """Unit vectors of a row's parts added up and normalised.

    Variances of independent parts add up as well, and shrink with the square of the norm that is divided by. `given` and
    `log_shape` are those of the only part of each row. A row of several parts has none: what they would be made of may
    differ in width, and a sum of generalised Gaussians is not one. Outside of training they are left out then, of all rows.

    Raises:
        RecipeError: training rows of several parts, or of parts of different widths, where an objective needs these.
    """
    total = _added(parts, [part.vectors for part in parts], rows)
    norm = _norm(total)
    if any(part.log_var is None for part in parts):
        return Embedding(total / norm)
    variance = _added(parts, [part.log_var.exp() for part in parts if part.log_var is not None], rows)
    given, log_shape = _of_only_part(parts, rows)
    return Embedding(total / norm, variance.log() - 2 * norm.log(), given=given, log_shape=log_shape)


def _of_only_part(parts: Sequence[Part], rows: int) -> tuple[Tensor | None, Tensor | None]:
    """`given`, normalised as vectors are, and `log_shape` of rows of one part each; see `summed`."""
    given = [part.given for part in parts if part.given is not None]
    shapes = [part.log_shape for part in parts if part.log_shape is not None]
    if len(given) < len(parts):
        return None, None
    owners, widths = torch.cat([part.owner for part in parts]), {values.shape[1] for values in given}
    if len(widths) > 1 or len(owners) > len(owners.unique()):
        if torch.is_grad_enabled():
            raise RecipeError(
                "the objective learns from rows of one part each, all of one modality in a view; here a row has several "
                "parts or a view several modalities: give the two sides a view each (such as `direction: text_to_image`)"
            )
        return None, None
    found = _added(parts, given, rows)
    return found / _norm(found), _added(parts, shapes, rows) if len(shapes) == len(parts) else None


def _added(parts: Sequence[Part], values: Sequence[Tensor], rows: int) -> Tensor:
    """The sum (rows, W) over each row's parts of their values (I, W), in the precision of the vectors."""
    total = parts[0].vectors.new_zeros(rows, values[0].shape[1])
    for part, own in zip(parts, values, strict=True):
        total = total.index_add(0, part.owner, own.to(total.dtype))
    return total


def _norm(values: Tensor) -> Tensor:
    norm: Tensor = values.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return norm
