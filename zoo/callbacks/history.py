"""The curves of a run, complete even if it was stopped and resumed."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

MOST_POINTS = 2000  # of a training curve; then it is thinned to half, and so is what follows (ours)
LEARNING_RATE = "train/learning_rate"
SECONDS = "train/seconds"
GRADIENT_NORM = "train/grad_norm"  # the only one that is logged once per optimizer step, not per batch

Curve = list[tuple[int, float]]  # (optimizer step, value)


class History(Callback):
    """Keeps every logged scalar by step, and the time and samples of training; all of it travels in checkpoints.

    `curves` goes from name to (step, value): what is logged as `train/...` and `val/...`, `train/learning_rate`, and
    `train/seconds`, the training time at that step. Values of `train/...` are means over the batches since the last
    point. Training time is what passes between the start and the end of fitting, without validation.

    Args:
        every_n_steps: batches per point of a training curve; validation values are all kept.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = every_n_steps
        self.curves: dict[str, Curve] = {}
        self.samples = 0
        self._batches = 0
        self._thinned = 1  # so many times fewer points than `every_n_steps` asked for
        # (sum, count); sums are tensors on the device, because reading them every step would make a GPU wait
        self._sums: dict[str, tuple[Any, int]] = {}
        self._seconds = 0.0
        self._running_since: float | None = None

    @property
    def seconds(self) -> float:
        """Training time so far, of all runs that were continued."""
        running = 0.0 if self._running_since is None else time.perf_counter() - self._running_since
        return self._seconds + running

    @property
    def samples_per_second(self) -> float:
        """Of all ranks together; 0 before the first step."""
        return self.samples / self.seconds if self.samples else 0.0

    # ---- the clock ----------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        self._seconds, self._running_since = self.seconds, None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._running_since = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation is no training time."""
        self._stop()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop the clock."""
        self._stop()

    # ---- the curves ---------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add this batch to the means; write a point when it is due."""
        self.samples += len(batch.ids) * trainer.world_size
        self._batches += 1
        stepped = not trainer.fit_loop.epoch_loop._should_accumulate()
        for name, value in trainer.callback_metrics.items():
            # between two steps the norm of the last one is still there, or after a restart none
            if name.startswith("train/") and (stepped or name != GRADIENT_NORM):
                total, count = self._sums.get(name, (0.0, 0))
                self._sums[name] = (total + value.detach(), count + 1)
        if self._batches < self.every_n_steps:
            return
        step = trainer.global_step
        for name, (total, count) in self._sums.items():
            self._add(name, step, float(total) / count)
        self._add(LEARNING_RATE, step, float(trainer.optimizers[0].param_groups[0]["lr"]))
        self._add(SECONDS, step, self.seconds)
        self._sums, self._batches = {}, 0
        if len(self.curves[SECONDS]) >= MOST_POINTS:
            self._thin()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the metrics of this validation, go on with the clock."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        for name, value in trainer.callback_metrics.items():
            if name.startswith("val/"):
                self._add(name, trainer.global_step, float(value))
        self._running_since = time.perf_counter()

    def _add(self, name: str, step: int, value: float) -> None:
        curve = self.curves.setdefault(name, [])
        if curve and curve[-1][0] >= step:  # a validation that is repeated after a resume
            curve.pop()
        curve.append((step, value))

    def _thin(self) -> None:
        self.every_n_steps *= 2
        self._thinned *= 2
        for name, curve in self.curves.items():
            if not name.startswith("train/"):
                continue
            last_only = name in (SECONDS, LEARNING_RATE)  # states, not means
            pairs = zip(curve[::2], curve[1::2], strict=False)
            self.curves[name] = [(b[0], b[1] if last_only else (a[1] + b[1]) / 2) for a, b in pairs]

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: plain numbers, lists and dicts."""
        return {
            "curves": {name: [list(point) for point in curve] for name, curve in self.curves.items()},
            "seconds": self.seconds,
            "samples": self.samples,
            "every_n_steps": self.every_n_steps,
            "thinned": self._thinned,
            "batches": self._batches,
            "sums": {name: [float(total), count] for name, (total, count) in self._sums.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.curves = {name: [(int(s), float(v)) for s, v in curve] for name, curve in state_dict["curves"].items()}
        self._seconds, self.samples = float(state_dict["seconds"]), int(state_dict["samples"])
        if "thinned" in state_dict:
            self._thinned = int(state_dict["thinned"])
            self.every_n_steps *= self._thinned
        else:  # of an earlier version
            self.every_n_steps = int(state_dict.get("every_n_steps", self.every_n_steps))
        self._batches = int(state_dict.get("batches", 0))
        self._sums = {name: (total, int(count)) for name, (total, count) in state_dict.get("sums", {}).items()}
