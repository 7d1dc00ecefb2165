"""Checkpoints from which a run goes on as if it had never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

_STEP_STRIDE = 1_000_003  # a prime: (seed, step, rank) -> seed of that step, without collisions in practice


class ResumableCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`: every `every_n_train_steps` steps, at the end, and at once when the process is asked to end
    (SIGTERM).

    What makes the continuation exact: the data order is a function of (seed, epoch, position), and so are the random
    numbers inside the model: every training step starts from a seed made of (`seed`, step, rank), so no generator state
    has to survive. `--ckpt_path last` picks the file up; on the CPU the weights come out bit-equal to an unbroken run.

    The file appears by rename, so a kill while saving leaves the previous one. After a loss or gradient that is not
    finite nothing is saved: the last good checkpoint stays.
    """

    def __init__(self, dirpath: str | Path = "checkpoints", every_n_train_steps: int = 50, seed: int = 0) -> None:
        super().__init__(
            dirpath=dirpath,
            save_top_k=0,
            save_last=True,
            every_n_train_steps=every_n_train_steps,
            enable_version_counter=False,
        )
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Fix the random numbers of this step."""
        batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        torch.manual_seed((self.seed * _STEP_STRIDE + batches) * _STEP_STRIDE + trainer.global_rank)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when due, and in any case what this run ends with.

        Here and not at the very end: Lightning counts an epoch that was cut short as done by then, and more steps that
        follow would begin the next one.
        """
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        # inside an accumulation window the gradients so far would be lost; the checkpoint before it is exact
        accumulating = trainer.fit_loop._should_accumulate()
        if _is_last(trainer) and not accumulating and self._last_global_step_saved != trainer.global_step:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save before a validation, which may be long, so that ending it loses no training step."""
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        fitting = fitting and not trainer.fit_loop._should_accumulate()
        if fitting and self._last_global_step_saved != trainer.global_step:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say where to go on from; a checkpoint is not written here, its state could be half of a step."""
        last = Path(str(self.dirpath)) / "last.ckpt"
        if isinstance(exception, SIGTERMException | KeyboardInterrupt) and last.exists():
            print(f"\nstopped at step {trainer.global_step}; go on with the same command and --ckpt_path last ({last})")


def _is_last(trainer: Trainer) -> bool:
    """Whether Lightning stops after this batch: at a limit, or because it was asked to."""
    epochs = trainer.max_epochs
    last_step = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    last_epoch = epochs is not None and epochs >= 0 and trainer.current_epoch + 1 >= epochs
    return trainer.received_sigterm or trainer.should_stop or last_step or (last_epoch and trainer.is_last_batch)


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`, the weights with the highest `monitor` at any validation."""

    def __init__(self, dirpath: str | Path = "checkpoints", monitor: str = "val/primary") -> None:
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor=monitor,
            mode="max",
            save_weights_only=True,
            enable_version_counter=False,
        )
        self.wanted = monitor

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if this validation was the best so far and measured `monitor` at all."""
        if self.wanted in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: only validations decide (without them there is no best)."""
