"""What can happen to a fit, as callbacks that a recipe may name."""

from __future__ import annotations

import io
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from zoo.callbacks.history import SECONDS, History

LAST = Path("runs/mine/checkpoints/last.ckpt")
READ: list[tuple[int, int]] = []  # by `Reader`: (step, what the file of that step says)

CURVES: list[tuple[str, tuple[tuple[int, float], ...]]] = []  # by `Peaked`


class Killed(Exception):
    """Stands for a kill: nothing of the zoo catches it, and no checkpoint is written."""


class Reader(Callback):
    """Opens every checkpoint when the next step begins, and reads it when the one after has been written."""

    def __init__(self) -> None:
        self.opened: list[tuple[int, io.BufferedReader]] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        for step, file in self.opened:
            READ.append((step, torch.load(file, weights_only=True)["global_step"]))
            file.close()
        self.opened = [(trainer.global_step, LAST.open("rb"))] if LAST.exists() else []


class Crowded(Callback):
    """From a step on, no file may grow beyond so many bytes, as on a full disk."""

    def __init__(self, after: int, most: int) -> None:
        self.after, self.most = after, most

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.after:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.most, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


class Overflown(Callback):
    """After a step, one number of the weights, a buffer or the optimizer's state is not finite any more."""

    def __init__(self, after: int, what: str) -> None:
        self.after, self.what = after, what

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self.after:
            bias = pl_module.linear.bias
            state = trainer.optimizers[0].state[bias]
            with torch.no_grad():
                {"weights": bias, "state": state["exp_avg"], "buffer": pl_module.mean}[self.what][1] = torch.nan

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        pl_module.register_buffer("mean", torch.full((4,), -torch.inf))  # as a mask is


class Peaked(Callback):
    """Logs `val/peaked`, which is highest at a step; keeps the curves of the fit in `CURVES`."""

    def __init__(self, peak: int) -> None:
        self.peak = peak

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.log("val/peaked", -float(abs(trainer.global_step - self.peak)))

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        history = next(c for c in trainer.callbacks if isinstance(c, History))
        CURVES[:] = sorted((name, tuple(curve)) for name, curve in history.curves.items() if name != SECONDS)


class Stopped(Callback):
    """Ends the process at a step: asked to in its batch (SIGTERM), or killed in the validation behind it (kill); or kills it
    when so many batches are done (crash).
    """

    def __init__(self, after: int, how: str) -> None:
        self.after, self.how = after, how

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.after and self.how == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self.how == "crash" and trainer.fit_loop.total_batch_idx == self.after:
            raise Killed

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.after and trainer.state.fn == "fit" and self.how == "kill":
            raise Killed


class Held(Callback):
    """Says that a step is done and saved, and stays there until the process is killed."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.after:
            Path("held").touch()
            time.sleep(300)
