"""Curves are complete, also over a resume, and stay small."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.towers import Pairs, Towers, task, trainer_of
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from zoo.callbacks import history as module_under_test
from zoo.callbacks.evaluation import RetrievalEvaluation
from zoo.callbacks.history import LEARNING_RATE, SECONDS, History


class Losses(Callback):
    """Every single loss and learning rate."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_points_are_means_of_the_batches_since_the_last(tmp_path: Path) -> None:
    history, losses = History(every_n_steps=4), Losses()
    trainer_of(tmp_path, RetrievalEvaluation(), history, losses, max_epochs=2).fit(Towers(), Pairs([task()]))
    means = [sum(losses.losses[i : i + 4]) / 4 for i in range(0, 20, 4)]
    assert [step for step, _ in history.curves["train/loss"]] == [4, 8, 12, 16, 20]
    assert [value for _, value in history.curves["train/loss"]] == pytest.approx(means)
    assert [value for _, value in history.curves[LEARNING_RATE]] == pytest.approx(losses.rates[3::4])
    assert [step for step, _ in history.curves["val/text_to_image[en]/mrr"]] == [10, 20]
    assert [step for step, _ in history.curves["val/primary"]] == [10, 20]
    assert history.samples == 20 * 16


class Slow(Callback):
    """A validation that takes its time."""

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        time.sleep(0.1)


def test_validation_is_no_training_time(tmp_path: Path) -> None:
    history = History()
    started = time.perf_counter()
    trainer_of(tmp_path, history, Slow(), max_epochs=2).fit(Towers(), Pairs([task()]))
    passed = time.perf_counter() - started
    assert 0 < history.seconds < passed - 2 * 10 * 0.1  # 2 validations of 10 batches
    assert history.samples_per_second == pytest.approx(320 / history.seconds)
    at_end = history.seconds
    time.sleep(0.02)
    assert history.seconds == at_end
    seconds = [value for _, value in history.curves[SECONDS]]
    assert seconds == sorted(seconds) and seconds[-1] <= at_end


def test_a_resumed_run_has_the_whole_curve(tmp_path: Path) -> None:
    def fit(folder: str, steps: int, resume: Path | None = None) -> History:
        history = History(every_n_steps=4)
        saving = ModelCheckpoint(tmp_path / folder, "{step}", every_n_train_steps=3, save_top_k=-1)
        trainer = trainer_of(
            tmp_path, RetrievalEvaluation(), history, saving, max_steps=steps, max_epochs=-1, enable_checkpointing=True
        )
        trainer.fit(Towers(), Pairs([task()]), ckpt_path=resume)
        return history

    whole = fit("whole", 30)
    stopped = fit("stopped", 20)
    checkpoint = tmp_path / "stopped" / "step=18.ckpt"  # two batches after a point
    resumed = fit("resumed", 30, checkpoint)
    assert resumed.curves.keys() == whole.curves.keys() and len(whole.curves["val/primary"]) == 3
    for name in whole.curves:
        if name != SECONDS:
            assert resumed.curves[name] == whole.curves[name], name
    assert resumed.samples == whole.samples == 480
    before = torch.load(checkpoint, weights_only=True)["callbacks"]["History"]["seconds"]
    assert 0 < before < min(stopped.seconds, resumed.seconds)


def test_long_runs_are_thinned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module_under_test, "MOST_POINTS", 8)
    history, losses = History(every_n_steps=1), Losses()
    trainer_of(tmp_path, history, losses, max_epochs=5, limit_val_batches=0).fit(Towers(), Pairs([task()]))
    curve = history.curves["train/loss"]
    assert len(curve) < 8 and history.every_n_steps == 8
    assert [step for step, _ in curve] == list(range(8, 49, 8))
    means = [sum(losses.losses[i : i + 8]) / 8 for i in range(0, 48, 8)]
    assert [value for _, value in curve] == pytest.approx(means)
    assert [step for step, _ in history.curves[SECONDS]] == list(range(8, 49, 8))


def test_a_checkpoint_without_pending_means_is_read(tmp_path: Path) -> None:
    history = History(every_n_steps=5)
    history.load_state_dict({"curves": {"train/loss": [(5, 1.5)]}, "seconds": 2.0, "samples": 80})
    assert history.curves == {"train/loss": [(5, 1.5)]} and history.samples_per_second == 40
    assert history.every_n_steps == 5
