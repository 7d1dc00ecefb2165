"""A slowly following copy of a model, whose vectors are steadier than the model's own (MoCo, arXiv:1911.05722)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Momentum(nn.Module):
    """Copy whose parameters are exponential moving averages: slow = m slow + (1 - m) fast. It gets no gradient, so it is
    in no optimizer; it is saved with the model. One that is frozen in the model is equal in the copy.

    Args:
        model: is copied as it is now.
        momentum: m (ALBEF, arXiv:2107.07651: 0.995).
    """

    def __init__(self, model: nn.Module, momentum: float) -> None:
        super().__init__()
        self.model: Any = copy.deepcopy(model).requires_grad_(False)
        self.momentum = momentum

    @torch.no_grad()
    def restart(self, model: nn.Module) -> None:
        """Become a copy of `model` as it is now, which has got other weights than those it was made with."""
        now: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name, slow in (*self.model.named_parameters(), *self.model.named_buffers()):
            slow.copy_(now[name])

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """Move towards the model's parameters, and take its buffers."""
        fast: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name, slow in self.model.named_parameters():
            slow.lerp_(fast[name].to(slow.dtype), 1 - self.momentum)
        for name, buffer in self.model.named_buffers():
            buffer.copy_(fast[name])

    def take_modes(self, model: nn.Module) -> None:
        """Put every part into the mode of the model's: what is frozen there is in evaluation mode while the rest trains."""
        modes = {name: part.training for name, part in model.named_modules()}
        for name, part in self.model.named_modules():
            part.training = modes[name]
