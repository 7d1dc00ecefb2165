"""A run that was stopped and went on releases what an unbroken one does: curves, best step, bundle, test results."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
import yaml
from fit_callbacks import CURVES, Killed

from zoo import cli
from zoo.bundle import read_bundle


@dataclass
class Released:
    """What a run leaves behind. Times are left out: they differ in any two runs."""

    curves: list[Any]
    best: dict[str, Any]
    bundle: str
    recipe: bytes
    results: list[Any]

    @staticmethod
    def of(run: Path) -> Released:
        best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
        weights = {name: value.tolist() for name, value in best["state_dict"].items()}
        return Released(
            curves=list(CURVES),
            best=weights | {"step": best["global_step"]},
            bundle=read_bundle(run / "bundle").digest,
            recipe=(run / "bundle" / "recipe.yaml").read_bytes(),
            results=[
                json.loads((run / f"results-{stage}.json").read_text("utf-8"))["tasks"] for stage in ("val", "test")
            ],
        )


def recipe(folder: Path, peak: int, **trainer: Any) -> Path:
    """The toy for six steps with a validation after every second one, of which the one at `peak` is the best."""
    path = toy.fit_recipe(folder)
    raw = yaml.safe_load(path.read_text("utf-8"))
    callbacks = [{"class_path": "fit_callbacks.Peaked", "init_args": {"peak": peak}}]
    raw["trainer"] |= {"max_steps": 6, "callbacks": callbacks, "logger": False, **trainer}
    raw |= {"best": {"monitor": "val/peaked"}, "history": {"every_n_steps": 1}}
    path.write_text(yaml.safe_dump(raw), "utf-8")
    return path


def fit(path: Path, *arguments: object, stop: tuple[int, str] | None = None) -> int:
    raw = yaml.safe_load(path.read_text("utf-8"))
    if stop:
        stopped = {"class_path": "fit_callbacks.Stopped", "init_args": {"after": stop[0], "how": stop[1]}}
        raw["trainer"]["callbacks"].append(stopped)
    (path.parent / "now").mkdir(exist_ok=True)
    now = path.parent / "now" / path.name
    now.write_text(yaml.safe_dump(raw), "utf-8")
    return cli.main(["fit", "--config", str(now), *map(str, arguments)])


UNBROKEN: dict[Any, Released] = {}


def unbroken(folder: Path, peak: int, **trainer: Any) -> Released:
    key = (peak, *trainer.items())
    if key not in UNBROKEN:
        folder.mkdir()
        before = Path.cwd()
        os.chdir(folder)
        assert fit(recipe(folder, peak, **trainer)) == 0
        UNBROKEN[key] = Released.of(Path("runs/mine"))
        os.chdir(before)
    return UNBROKEN[key]


@pytest.mark.parametrize("how", ["kill", "SIGTERM"])
@pytest.mark.parametrize(
    ("after", "peak", "trainer"),
    [
        pytest.param(4, 4, {}, id="inside"),
        pytest.param(6, 6, {}, id="last step"),
        pytest.param(6, 2, {}, id="last step, an earlier one was best"),
        pytest.param(6, 6, {"max_steps": -1, "max_epochs": 3}, id="last epoch"),
        pytest.param(3, 3, {"val_check_interval": 3, "check_val_every_n_epoch": None}, id="middle of an epoch"),
    ],
)
def test_a_validation_that_was_due_is_made_up_for(
    how: str,
    after: int,
    peak: int,
    trainer: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = unbroken(tmp_path / "unbroken", peak, **trainer)
    assert expected.best["step"] == peak
    monkeypatch.chdir(tmp_path)
    path = recipe(tmp_path, peak, **trainer)
    capsys.readouterr()
    if how == "kill":
        with pytest.raises(Killed):
            fit(path, stop=(after, how))
    else:
        assert fit(path, stop=(after, how)) == 143
    assert not Path("runs/mine/bundle").exists()
    assert (
        f"validation results at step {after}" not in capsys.readouterr().out
    )  # what was asked to end does not begin it
    assert fit(path, "--ckpt_path", "last") == 0
    assert Released.of(Path("runs/mine")) == expected


@pytest.mark.parametrize("every", [1, 50])
def test_stopped_twice_within_accumulated_batches(every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No checkpoint within a window of accumulated gradients, whose sum would be lost; and the curves are the same."""
    trainer = {"accumulate_grad_batches": 2, "max_steps": 6, "val_check_interval": 3, "check_val_every_n_epoch": None}
    expected = unbroken(tmp_path / "unbroken", 6, **trainer)
    monkeypatch.chdir(tmp_path)
    path = recipe(tmp_path, 6, **trainer)
    options = ["--checkpoint.every_n_train_steps", every, "--ckpt_path", "last"]
    assert fit(path, *options, stop=(2, "SIGTERM")) == 143
    for killed in ((5, "crash"), (4, "kill")):
        with pytest.raises(Killed):
            fit(path, *options, stop=killed)
    assert fit(path, *options) == 0
    assert Released.of(Path("runs/mine")) == expected


def test_nothing_is_validated_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = recipe(tmp_path, 4)
    assert fit(path, "--trainer.max_steps", 3) == 0
    capsys.readouterr()
    assert fit(path, "--ckpt_path", "last") == 0
    printed = capsys.readouterr().out
    assert [f"validation results at step {step}" in printed for step in range(1, 7)] == [False] * 3 + [
        True,
        False,
        True,
    ]
