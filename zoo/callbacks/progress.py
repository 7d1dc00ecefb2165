"""One bar for a whole fit; in a log file, lines."""

from __future__ import annotations

import math
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer, TQDMProgressBar

from zoo.callbacks.terminal import show
from zoo.progress import duration


class FitProgress(TQDMProgressBar):
    """Shows how far a fit is, its rate, the time left, and what was logged for the bar (the loss).

    Lightning's bar starts anew in every epoch, so neither its share nor its time left is that of the run. Here the end
    is whatever comes first: `max_steps`, `max_epochs` or `max_time`. Validation and test have Lightning's own bars.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar; a resumed run starts where it stopped."""
        super().on_train_start(trainer, pl_module)
        bar = self.train_progress_bar
        bar.initial = bar.n = trainer.global_step
        bar.set_description("training")
        self._update(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """The bar goes on."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance."""
        if self._should_update(trainer.global_step, -1):
            self._update(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The bar goes on."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the last step, whatever the refresh rate is."""
        self._update(trainer, pl_module)
        super().on_train_end(trainer, pl_module)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Without the logger's version number, and short names."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {name.removeprefix("train/"): value for name, value in metrics.items()}

    def _update(self, trainer: Trainer, pl_module: LightningModule) -> None:
        bar = self.train_progress_bar
        bar.total, bar.n = total_steps(trainer), trainer.global_step
        bar.set_postfix(self.get_metrics(trainer, pl_module))


class ProgressLines(Callback):
    """What the bar shows, as a line now and then: in a file, bars would be written one over the other and into what is said
    between them.

    Args:
        seconds: between two lines.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        self.seconds = seconds
        self._begun = (0.0, 0)  # time and step at which this run began, and at which the last line was written
        self._told = (0.0, -1)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._begun = self._told = (time.monotonic(), trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a line if the last one is old enough."""
        if time.monotonic() - self._told[0] >= self.seconds:
            self._tell(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last step."""
        if trainer.global_step != self._told[1]:
            self._tell(trainer)

    def _tell(self, trainer: Trainer) -> None:
        now, step, total = time.monotonic(), trainer.global_step, total_steps(trainer)
        self._told = (now, step)
        words = [f"step {step:,}" + (f" of {total:,}" if total else "")]
        if "train/loss" in trainer.callback_metrics:
            words.append(f"loss {float(trainer.callback_metrics['train/loss']):.3g}")
        rate = (step - self._begun[1]) / max(now - self._begun[0], 1e-9)
        if rate:
            words.append(f"{rate:.3g} steps/s")
        if rate and total and total > step:
            words.append(f"about {duration((total - step) / rate)} left")
        show(trainer, "training: " + ", ".join(words))


def total_steps(trainer: Trainer) -> int | None:
    """At which optimizer step this fit will end, by all limits it has; None while nothing is known."""
    planned = trainer.estimated_stepping_batches
    ends = [float(planned) if planned > 0 else math.inf]  # -1: no limit
    timer = next((c for c in trainer.callbacks if isinstance(c, Timer)), None)  # type: ignore[attr-defined]
    if timer is not None and trainer.global_step:
        remaining = timer.time_remaining("train")
        spent = timer.time_elapsed("train")
        if remaining is not None and spent > 0:
            ends.append(trainer.global_step * (1 + max(0.0, remaining) / spent))
    end = min(ends)
    return None if math.isinf(end) else max(1, round(end))
