"""The learned number that scales cosines to logits."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.errors import RecipeError

Learn = Literal["no", "log", "linear"]


class Temperature(nn.Module):
    """1 / temperature as a function of its parameter; `forward()` gives the scale.

    Args:
        start: the temperature to begin with.
        learn: "no"; "log" = log(1/temperature) is the parameter, as in CLIP; "linear" = the temperature itself (ALBEF, ABC).
        max_scale: for "log", the scale is held at or below this (CLIP: 100); None = free. SigLIP's released weights exceed
            100. It does not act on "no", whose scale is 1/start whatever that is, nor on "linear", where nothing holds
            the parameter.

    Raises:
        RecipeError: a temperature or a largest scale that is not a positive number.
    """

    def __init__(self, start: float, learn: Learn = "no", max_scale: float | None = 100.0) -> None:
        super().__init__()
        if not 0 < start < math.inf:
            raise RecipeError(f"the temperature is {start}; it divides cosines, so set it above 0 (0.07 is usual)")
        if max_scale is not None and not max_scale > 0:
            raise RecipeError(f"max_scale is {max_scale}; set it above 0, or to null for no limit")
        value = math.log(1 / start) if learn == "log" else start
        self.parameter = nn.Parameter(torch.tensor(float(value)), requires_grad=learn != "no")
        self.learn = learn
        self.max_scale = max_scale

    def forward(self) -> Tensor:
        """The scale, a scalar."""
        if self.learn == "log":
            capped = self.parameter if self.max_scale is None else self.parameter.clamp(max=math.log(self.max_scale))
            return capped.exp()
        return 1.0 / self.parameter
