"""Settings of parts that change as training goes on."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Annealing(Callback):
    """Tells every part of the model that has a method `anneal` which optimizer step begins."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Before the step."""
        for part in pl_module.modules():
            anneal = getattr(part, "anneal", None)
            if callable(anneal):
                anneal(trainer.global_step)
