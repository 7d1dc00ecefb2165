"""The learned number that scales cosines to logits."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.errors import RecipeError, WeightsError

Learn = Literal["no", "log", "linear"]
Cap = Literal["parameter", "official"]
KINDS: tuple[Learn, ...] = ("no", "log", "linear")
"""What `kind` in the state of a `Temperature` counts: how the number is to be read."""


class Temperature(nn.Module):
    """1 / temperature as a function of its parameter; `forward()` gives the scale.

    A parameter that left its bounds is moved back to them, without gradient, before it is used, so at the bound its gradient
    is that of any other value (open_clip, ALBEF, FuseMix). A clamp inside the graph would have a gradient of 0 there, and
    the temperature would never move again.

    Args:
        start: the temperature to begin with.
        learn: "no"; "log" = log(1/temperature) is the parameter, as in CLIP; "linear" = the temperature itself (ALBEF, ABC).
        max_scale: for "log", the scale is held at or below this (CLIP: 100); None = free. SigLIP's released weights exceed
            100. It does not act on "no", whose scale is 1/start whatever that is, nor on "linear".
        limits: a learned temperature is held between these (ALBEF, FuseMix, freeze-align: 0.001 and 0.5); None = free.
        cap: what `max_scale` holds. "parameter"; or, "official", the scale alone, while the parameter goes on beyond it with
            the gradient of the uncapped scale, as in the code of FDT.

    Its state says in `kind` how the number is kept, so that it is read as what it is by a temperature that keeps its own
    otherwise. Files without `kind`, of older versions, hold it as their recipe says. `kind` is no buffer, since averaging of
    weights would average it.

    Raises:
        RecipeError: a temperature, a largest scale or limits that are not positive numbers.
    """

    def __init__(
        self,
        start: float,
        learn: Learn = "no",
        max_scale: float | None = 100.0,
        limits: tuple[float, float] | None = None,
        cap: Cap = "parameter",
    ) -> None:
        super().__init__()
        if not 0 < start < math.inf:
            raise RecipeError(f"the temperature is {start}; it divides cosines, so set it above 0 (0.07 is usual)")
        if max_scale is not None and not max_scale > 0:
            raise RecipeError(f"max_scale is {max_scale}; set it above 0, or to null for no limit")
        if limits is not None and not 0 < limits[0] < limits[1]:
            raise RecipeError(f"limits are {list(limits)}; give the least and the largest temperature, both above 0")
        value = math.log(1 / start) if learn == "log" else start
        self.parameter = nn.Parameter(torch.tensor(float(value)), requires_grad=learn != "no")
        self.learn = learn
        self.max_scale = max_scale if learn == "log" else None
        self.bounds = _bounds(learn, None if cap == "official" else self.max_scale, limits)
        self.cap = cap

    def forward(self) -> Tensor:
        """The scale, a scalar."""
        parameter = self._within_bounds()
        if self.learn != "log":
            return 1.0 / parameter
        scale = parameter.exp()
        if self.cap == "official" and self.max_scale is not None:
            return scale - (scale - self.max_scale).clamp(min=0).detach()
        return scale

    def _within_bounds(self) -> Tensor:
        if self.bounds is None:
            return self.parameter
        if not (torch.is_grad_enabled() and self.parameter.requires_grad):  # nobody trains: nothing is changed
            return self.parameter.clamp(*self.bounds)
        with torch.no_grad():
            self.parameter.clamp_(*self.bounds)
        return self.parameter

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}kind"] = torch.tensor(KINDS.index(self.learn), device="cpu")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Read a number that was kept otherwise as the temperature that it is."""
        number, kind = f"{prefix}parameter", state_dict.pop(f"{prefix}kind", None)
        if number in state_dict and kind is not None:
            if (stored := int(kind)) >= len(KINDS):
                raise WeightsError(
                    f"'{prefix}kind' is {stored}, which this version does not know; upgrade embedding-zoo"
                )
            state_dict[number] = _kept_as(self.learn, state_dict[number], KINDS[stored])
        super()._load_from_state_dict(state_dict, prefix, *others)


def _bounds(
    learn: Learn, max_scale: float | None, limits: tuple[float, float] | None
) -> tuple[float | None, float | None] | None:
    """Least and largest value of the parameter; None = it is free."""
    if learn == "no" or (limits is None and max_scale is None):
        return None
    if learn == "linear":
        return limits
    least, largest = (None, math.inf) if limits is None else (-math.log(limits[1]), -math.log(limits[0]))
    return least, largest if max_scale is None else min(largest, math.log(max_scale))


def _kept_as(learn: Learn, value: Tensor, kind: Learn) -> Tensor:
    """A number that is kept as `kind`, as `learn` keeps it."""
    if (learn == "log") == (kind == "log"):
        return value
    return (-value).exp() if kind == "log" else -value.log()
