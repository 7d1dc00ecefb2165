"""Checkpoints from which a run goes on as if it had never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from zoo.callbacks.checkpoint_files import CheckpointFiles
from zoo.errors import NonFiniteError, WeightsError

_STEP_STRIDE = 1_000_003  # a prime: (seed, step, rank) -> seed of that step, without collisions in practice


class ResumableCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`: every `every_n_train_steps` steps, at the end, and at once when the process is asked to end
    (SIGTERM).

    What makes the continuation exact: the data order is a function of (seed, epoch, position), and so are the random
    numbers inside the model: every training step starts from a seed made of (`seed`, step, rank), so no generator state
    has to survive. `--ckpt_path last` picks the file up; on the CPU the weights come out bit-equal to an unbroken run.

    All checkpoints of its Trainer are written whole or not at all (`CheckpointFiles`), so a kill while saving leaves the
    previous file. Weights or optimizer states that are not finite are never saved: the last good checkpoint stays.
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

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have all checkpoints of this Trainer written and read safely, unless it was given another way to do so."""
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = CheckpointFiles()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """WeightsError if fitting can't go on from it."""
        if trainer.state.fn == "fit" and not {"optimizer_states", "lr_schedulers"} <= checkpoint.keys():
            path = trainer.ckpt_path
            raise WeightsError(
                f"{path} holds weights only, and no run can go on from that: give a last.ckpt, or start a new run from "
                f"these weights (--start path:{path})"
            )

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
        if not last.exists():
            return
        if isinstance(exception, NonFiniteError):
            print(
                f"\nthe last good checkpoint is {last}; start from its weights, with other settings: --start path:{last}"
            )
        if isinstance(exception, SIGTERMException | KeyboardInterrupt):
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
            save_on_train_epoch_end=False,  # or Lightning would wait for the end of the epoch, and not save here
            enable_version_counter=False,
        )
        self.wanted = monitor

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if this validation was the best so far and measured `monitor` at all."""
        if self.wanted in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: only validations decide (without them there is no best)."""
