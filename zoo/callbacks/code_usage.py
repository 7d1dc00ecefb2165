"""How many of their shared codes pictures and texts use while training (FDT, arXiv:2303.14865)."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.metrics.codes import active_codes, shared_codes
from zoo.types import Batch


class CodeUsage(Callback):
    """Logs, per view, `train/codes/VIEW`: how many codes a row uses, on average; and for the two views of a sample the share
    of their codes that both use, `train/codes/shared`, beside that of two different samples, `train/codes/unrelated`.

    Args:
        every: optimizer steps between measurements; each costs a forward pass.
        views: the two sides.

    Raises:
        RecipeError: the model has no shared codes.
    """

    def __init__(self, every: int = 50, views: tuple[str, str] = ("query", "target")) -> None:
        self.every, self.views = every, views
        self._measured: int | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse other models."""
        _activation(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Measure on a batch of the step."""
        if trainer.global_step % self.every or trainer.global_step == self._measured:
            return
        self._measured = trainer.global_step
        weights = {view: _weights(pl_module, batch, view) for view in self.views if len(batch.owners[view])}
        for view, found in weights.items():
            pl_module.log(f"train/codes/{view}", active_codes(found), batch_size=len(found))
        owners = [batch.owners[view] for view in self.views]
        if len(weights) == 2 and torch.equal(*owners):  # row by row, pairs of one sample
            first, second = weights.values()
            pl_module.log("train/codes/shared", shared_codes(first, second), batch_size=len(first))
            pl_module.log("train/codes/unrelated", shared_codes(first, second.roll(1, 0)), batch_size=len(first))


def _activation(model: nn.Module) -> nn.Module:
    found = getattr(getattr(model, "shared", None), "activation", None)
    if not isinstance(found, nn.Module):
        raise RecipeError("the callback CodeUsage needs a model with shared codes (shared: FiniteDiscreteTokens)")
    return found


def _weights(model: Any, batch: Batch, view: str) -> Tensor:
    """(R, C) weights of the codes, of one view's rows. Leaves the random numbers of training alone."""
    seen: list[Tensor] = []
    devices = [model.device] if model.device.type == "cuda" else []
    handle = _activation(model).register_forward_hook(lambda part, inputs, output: seen.append(output))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            model.encode(batch.views[view])
    finally:
        handle.remove()
    return torch.cat(seen)
