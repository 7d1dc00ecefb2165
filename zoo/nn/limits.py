"""Values that are held between limits, and find their way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def held(values: Tensor, least: float, largest: float) -> Tensor:
    """`values.clamp(least, largest)`, with the gradient of a clamp but for one that leads back inside, which passes.

    Under a clamp a value beyond its limit has no gradient at all: a head all of whose values are there never learns again.
    """
    if torch.is_grad_enabled() and values.requires_grad and not torch.compiler.is_exporting():
        found: Tensor = _Held.apply(values, least, largest)
        return found
    return values.clamp(least, largest)


class _Held(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, least: float, largest: float) -> Tensor:
        ctx.save_for_backward(values)
        ctx.limits = least, largest
        return values.clamp(least, largest)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (values,), (least, largest) = ctx.saved_tensors, ctx.limits
        outward = ((values > largest) & (gradient < 0)) | ((values < least) & (gradient > 0))  # a step goes against it
        return gradient.masked_fill(outward, 0.0), None, None
