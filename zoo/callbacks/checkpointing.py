"""Checkpoints from which a run goes on as if it had never stopped."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from zoo.callbacks.checkpoint_files import CheckpointFiles
from zoo.errors import NonFiniteError, RecipeError

_DUE = "validation_due"  # in a checkpoint: whether the run was stopped before the validation of its step was finished
_STEP_STRIDE = 1_000_003  # a prime: (seed, step, rank) -> seed of that step, without collisions in practice


class ResumableCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`: every `every_n_train_steps` steps, at the end, and at once when the process is asked to end
    (SIGTERM).

    What makes the continuation exact: the data order is a function of (seed, epoch, position), and so are the random
    numbers inside the model: every training step starts from a seed made of (`seed`, step, rank), so no generator state
    has to survive. `--ckpt_path last` picks the file up; on the CPU the weights come out bit-equal to an unbroken run.

    A validation before or in which the run was stopped is made up for: curves, best step and bundle come out the same, too.

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
        self._validated = -1  # the batch behind which the last validation was finished
        self._end: int | None = None  # max_steps, while it is put off

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have all checkpoints of this Trainer written and read safely, unless it was given another way to do so."""
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) in (TorchCheckpointIO, CheckpointFiles):
            trainer.strategy.checkpoint_io = CheckpointFiles(fitting=stage == "fit")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note whether a validation of this very batch is still to come."""
        checkpoint[_DUE] = _validates(trainer) and self._validated != trainer.fit_loop.total_batch_idx

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over what it says of its step."""
        if trainer.state.fn != "fit":
            return
        self._last_global_step_saved = int(checkpoint["global_step"])
        if checkpoint.get(_DUE) and trainer.enable_validation:
            # where all steps are done Lightning would not even begin; `on_train_start` sets the end back
            self._end, trainer.fit_loop.epoch_loop.max_steps = trainer.max_steps, -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make up for a validation before which the run was stopped: Lightning takes it for done."""
        super().on_train_start(trainer, pl_module)
        if self._end is not None:
            trainer.fit_loop.epoch_loop.max_steps, self._end = self._end, None
            _validate(trainer)

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
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return  # the gradients so far would be lost; the checkpoint before them is exact
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if _is_last(trainer) and self._last_global_step_saved != trainer.global_step:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save before a validation, which may be long, so that ending it loses no training step. A process that was asked to
        end does not begin it.
        """
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if not fitting or trainer.fit_loop.epoch_loop._should_accumulate():
            return
        if self._last_global_step_saved != trainer.global_step:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        if (
            trainer.received_sigterm and trainer.world_size == 1
        ):  # of several processes Lightning ends all at once, later
            raise SIGTERMException

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the validation of this batch is done."""
        super().on_validation_end(trainer, pl_module)
        self._validated = trainer.fit_loop.total_batch_idx

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


def _validates(trainer: Trainer) -> bool:
    """Whether Lightning validates after the current batch."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def _validate(trainer: Trainer) -> None:
    """Validate as Lightning does between two batches."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False
    trainer.validating = True
    loop.run()
    loop._has_run = False  # or a restarted epoch that is complete would not end
    trainer.training = True


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`, the weights with the highest `monitor` at any validation.

    Args:
        dirpath: the folder.
        monitor: a value that every validation measures.
        fallback: what counts where `monitor` is not among what is measured, as where the tasks of a recipe were replaced;
            "" = nothing does.

    Raises:
        RecipeError: the first validation measures neither; says what it measured. Or the run that goes on has kept its best
            step by another value: the best one by this value may be a step whose weights are gone.
    """

    def __init__(self, dirpath: str | Path = "checkpoints", monitor: str = "val/primary", fallback: str = "") -> None:
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor=monitor,
            mode="max",
            save_weights_only=True,
            save_on_train_epoch_end=False,  # or Lightning would wait for the end of the epoch, and not save here
            enable_version_counter=False,
        )
        self.wanted, self.fallback = monitor, fallback

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """See the class."""
        for key, state in checkpoint.get("callbacks", {}).items():
            kept = key.startswith(type(self).__name__) and state.get("best_model_path")
            if trainer.state.fn == "fit" and kept and state["monitor"] != self.monitor:
                raise RecipeError(
                    f"best.monitor is '{self.wanted}', but the best step so far was kept by '{state['monitor']}', and a run "
                    f"goes on as it began: repeat its options, or begin a new run from these weights: "
                    f"--start path:{trainer.ckpt_path} in place of --ckpt_path"
                )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if this validation was the best so far."""
        if trainer.fast_dev_run or trainer.state.fn != "fit" or trainer.sanity_checking:  # type: ignore[attr-defined]
            return
        if self.counted(trainer.callback_metrics) is None:
            measured = sorted(name for name in trainer.callback_metrics if not name.startswith("train/"))
            raise RecipeError(
                f"best.monitor is '{self.wanted}', which the validation at step {trainer.global_step} did not measure; "
                f"there are {', '.join(measured) or 'no values'} (--best.monitor NAME)"
            )
        super().on_validation_end(trainer, pl_module)

    def counted(self, measured: Collection[str]) -> str | None:
        """The one of `measured` that decides which step is the best."""
        return next((name for name in (self.wanted, self.fallback) if name in measured), None)

    def _monitor_candidates(self, trainer: Trainer) -> dict[str, Tensor]:
        found = super()._monitor_candidates(trainer)
        name = self.counted(found)
        return found if name is None else found | {self.wanted: found[name]}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: only validations decide (without them there is no best)."""
