"""The curves of a run, complete even if it was stopped and resumed."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class History(Callback):
    """Keeps every logged scalar with its step, and the seconds spent in training steps; both travel in checkpoints.

    Args:
        every_n_steps: how densely training values are kept; validation values are all kept.
    """

    def __init__(self, every_n_steps: int = 5) -> None:
        self.every_n_steps = every_n_steps
        self.curves: dict[str, list[tuple[int, float]]] = {}
        self.seconds = 0.0
        self.samples = 0
        self._started = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock of this step."""
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock, keep what was logged."""
        self.seconds += time.perf_counter() - self._started
        self.samples += len(batch.ids)
        if trainer.global_step % self.every_n_steps == 0:
            self._keep(trainer, "train/")
            self._add("train/learning rate", trainer.global_step, trainer.optimizers[0].param_groups[0]["lr"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the metrics of this validation."""
        if not trainer.sanity_checking:
            self._keep(trainer, "val/")

    def _keep(self, trainer: Trainer, prefix: str) -> None:
        for name, value in trainer.callback_metrics.items():
            if name.startswith(prefix):
                self._add(name, trainer.global_step, float(value))

    def _add(self, name: str, step: int, value: float) -> None:
        curve = self.curves.setdefault(name, [])
        if not curve or curve[-1][0] < step:
            curve.append((step, value))

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"curves": self.curves, "seconds": self.seconds, "samples": self.samples}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.curves = {name: [(int(s), float(v)) for s, v in curve] for name, curve in state_dict["curves"].items()}
        self.seconds, self.samples = state_dict["seconds"], state_dict["samples"]
