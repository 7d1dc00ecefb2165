"""A learned temperature of a checkpoint -> state of our objective, which says how the number is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Learn = Literal["no", "log", "linear"]
PARAMETER, KIND = "objective.temperature.parameter", "objective.temperature.kind"
# as zoo.objectives.temperature counts them; tests/convert loads what is written here
_KINDS: tuple[Learn, ...] = ("no", "log", "linear")


def kept(value: Tensor, learn: Learn) -> dict[str, Tensor]:
    """`value` is log(1/temperature) for "log", else the temperature itself; one number of any shape."""
    import torch

    return {PARAMETER: value.reshape(()), KIND: torch.tensor(_KINDS.index(learn))}


def log_scale(state: Mapping[str, Tensor], learn: Learn) -> Tensor | None:
    """log(1/temperature) of a state, or None if it holds no temperature. `learn`: how files of before `KIND` keep it."""
    if PARAMETER not in state:
        return None
    value = state[PARAMETER].detach()
    kind = _KINDS[int(state[KIND])] if KIND in state else learn
    return value.clone() if kind == "log" else -value.log()
