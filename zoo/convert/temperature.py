"""A learned temperature of a checkpoint -> state of our objective, which says how the number is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

PARAMETER, KIND = "objective.temperature.parameter", "objective.temperature.kind"
_KINDS = ("no", "log", "linear")  # as zoo.objectives.temperature counts them; tests/convert loads what is written here


def kept(value: Tensor, learn: Literal["log", "linear"]) -> dict[str, Tensor]:
    """`value` is log(1/temperature) for "log", the temperature itself for "linear"; one number of any shape."""
    import torch

    return {PARAMETER: value.reshape(()), KIND: torch.tensor(_KINDS.index(learn))}
