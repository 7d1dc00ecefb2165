"""A slowly following copy of a model, whose vectors are steadier than the model's own (MoCo, arXiv:1911.05722)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.weights import plain


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
        now = _tensors(model)
        for name, slow in _tensors(self.model).items():
            slow.copy_(now[name])

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """Move towards the model's parameters, and take its buffers.

        Raises:
            RecipeError: trained weights in half precision, in which small steps are lost and the copy stands still.
        """
        trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
        if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in trained):
            raise RecipeError(
                f"`momentum: {self.momentum}` moves the slow copy by less than half precision can tell: set the trainer's "
                "precision to bf16-mixed, 16-mixed or 32-true, or leave `momentum` out"
            )
        fast = _tensors(model)
        for name, slow in _tensors(self.model).items():
            if isinstance(slow, nn.Parameter):
                slow.lerp_(fast[name].to(slow.dtype), 1 - self.momentum)
            else:
                slow.copy_(fast[name])

    def take_modes(self, model: nn.Module) -> None:
        """Put every part into the mode of the model's: what is frozen there is in evaluation mode while the rest trains."""
        modes = {plain(name): part.training for name, part in model.named_modules()}
        for name, part in self.model.named_modules():
            part.training = modes[plain(name)]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers; the model, or a part of it, may have been compiled since it was copied."""
    return {plain(name): tensor for name, tensor in (*model.named_parameters(), *model.named_buffers())}
