"""Checkpoints are written whole or not at all, hold nothing that is not finite, and are read without running anything."""

from __future__ import annotations

import json
import math
import pickle
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
import yaml
from fit_callbacks import LAST, READ
from safetensors.torch import load_file, save_file

import zoo
from zoo import cli
from zoo.bundle import read_bundle, write_bundle
from zoo.callbacks.checkpoint_files import CheckpointFiles
from zoo.errors import NonFiniteError, WeightsError
from zoo.weights import sha256


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ZOO_TRACEBACK", raising=False)
    return toy.fit_recipe(tmp_path)


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def with_callback(recipe: Path, callback: str, **init_args: Any) -> list[object]:
    """Options that add a callback of this file and save at every step."""
    later = recipe.with_name("callback.yaml")
    entry = {"class_path": f"fit_callbacks.{callback}", "init_args": init_args}
    later.write_text(f"trainer: {{callbacks: [{entry}]}}\ncheckpoint: {{every_n_train_steps: 1}}\n", "utf-8")
    return ["--config", recipe, "--config", later]


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that an error is."""
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error:")]
    assert "Traceback" not in captured.err + captured.out and "weights_only" not in captured.err
    assert captured.err.splitlines()[-1] == line
    return line


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "partial" in path.name)


# ---- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same file system", "another"])
def test_a_new_checkpoint_never_writes_into_the_old_one(
    elsewhere: bool, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was opened before is whole after: a kill in between would have left it, wherever temporary files are."""
    if elsewhere:
        other = Path("/dev/shm")
        if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("there is no other file system")
        monkeypatch.setattr(tempfile, "tempdir", str(other))
    READ.clear()
    assert run("fit", *with_callback(recipe, "Reader"), "--trainer.max_steps", 6) == 0
    assert [(step, step) for step in range(1, 5)] == READ
    assert leftovers(LAST.parent) == []


@pytest.fixture
def unlimited() -> Iterator[None]:
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("unlimited")
def test_a_full_disk_leaves_the_last_good_checkpoint(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = ["--model.width", 5000, "--trainer.max_steps", 6, "--trainer.logger", "false"]
    assert run("fit", *with_callback(recipe, "Crowded", after=3, most=100_000), *wide) == cli.EXIT_BAD_INPUT
    assert "no space left to write" in (line := told(capsys)) and str(LAST) in line
    assert torch.load(LAST, weights_only=True)["global_step"] == 3
    assert leftovers(LAST.parent) == []


# ---- only finite values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "named"), [("weights", "'linear.bias'"), ("state", "exp_avg of 'linear.bias'"), ("buffer", "'mean'")]
)
def test_what_is_not_finite_is_not_saved(
    what: str, named: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", *with_callback(recipe, "Overflown", after=3, what=what), "--trainer.max_steps", 5) == 2
    captured = capsys.readouterr()
    assert (
        named in captured.err and "after step 3" in captured.err and f"--start path:{LAST.absolute()}" in captured.out
    )
    saved = torch.load(LAST, weights_only=True)
    assert saved["global_step"] == 2 and all(
        torch.isfinite(saved["state_dict"][f"linear.{n}"]).all() for n in ("weight", "bias")
    )
    assert not Path("runs/mine/bundle").exists()


def test_a_step_beyond_all_numbers_leaves_no_bundle(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = yaml.safe_load(recipe.read_text("utf-8"))
    raw["model"]["init_args"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 3e38}}
    raw["model"]["init_args"]["objective"]["init_args"]["temperature"] = 0.001  # large gradients
    raw["data"]["init_args"]["val"] = []
    recipe.write_text(yaml.safe_dump(raw), "utf-8")
    assert run("fit", "--config", recipe, "--trainer.max_steps", 1) == cli.EXIT_BAD_INPUT
    assert "not finite" in told(capsys)
    assert not LAST.exists() and not Path("runs/mine/bundle").exists()


def test_a_bundle_holds_only_finite_weights(tmp_path: Path) -> None:
    module = toy.build(tmp_path)
    module.register_buffer("mask", torch.full((2, 2), -torch.inf))
    folder = write_bundle(module, toy.recipe(tmp_path), tmp_path / "b")
    before = read_bundle(folder).digest
    module.linear.weight.data[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"'linear\.weight'"):
        write_bundle(module, toy.recipe(tmp_path), folder)
    assert read_bundle(folder).digest == before


def poisoned(folder: Path, value: float) -> None:
    """One number of a bundle is another, and its manifest vouches for it."""
    state = load_file(folder / "model.safetensors")
    state["linear.weight"][0, 0] = value
    save_file(state, folder / "model.safetensors")
    manifest = json.loads((folder / "bundle.json").read_text("utf-8"))
    manifest["files"]["model.safetensors"]["sha256"] = sha256(folder / "model.safetensors")
    (folder / "bundle.json").write_text(json.dumps(manifest), "utf-8")


@pytest.mark.parametrize(("value", "dtype"), [(math.nan, None), (-math.inf, None), (1e6, "float16")])
def test_weights_that_are_not_finite_are_not_loaded(value: float, dtype: str | None, tmp_path: Path) -> None:
    folder = write_bundle(toy.build(tmp_path), toy.recipe(tmp_path), tmp_path / "b")
    poisoned(folder, value)
    with pytest.raises(WeightsError, match=r"'linear\.weight'.* not finite"):
        zoo.load(f"path:{folder}", dtype=dtype)
    if dtype:
        zoo.load(f"path:{folder}")


# ---- reading ---------------------------------------------------------------------------------------------------------


class Canary:
    """Unpickling it leaves a trace."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path("canary").absolute(), "executed")


def changed(good: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return {key: value for key, value in {**good, **parts}.items() if value is not ...}


HOSTILE: dict[str, tuple[Callable[[dict[str, Any], bytes], Any], str]] = {
    "empty": (lambda good, raw: b"", "damaged or no torch file"),
    "text": (lambda good, raw: b"not a checkpoint\n" * 99, "no torch file"),
    "half": (lambda good, raw: raw[: len(raw) // 2], "damaged or no torch file"),
    "pickle": (lambda good, raw: pickle.dumps(Canary()), "never loaded here"),
    "pickle inside": (lambda good, raw: changed(good, extra=Canary()), "never loaded here"),
    "number": (lambda good, raw: 3, "no checkpoint of a training run"),
    "nothing": (lambda good, raw: {}, "no checkpoint of a training run"),
    "weights alone": (lambda good, raw: good["state_dict"], "no checkpoint of a training run"),
    "no tensors": (lambda good, raw: changed(good, state_dict={"a": 3}), "no checkpoint of a training run"),
    "another model": (
        lambda good, raw: changed(good, state_dict={k: v[:1] for k, v in good["state_dict"].items() if v.ndim}),
        "can't be restored: ",
    ),
    "not finite": (
        lambda good, raw: changed(good, state_dict={k: v * math.nan for k, v in good["state_dict"].items()}),
        "weights are not finite",
    ),
}
HOSTILE_TO_FIT: dict[str, tuple[Callable[[dict[str, Any], bytes], Any], str]] = {
    "no optimizer": (lambda good, raw: changed(good, optimizer_states=...), "weights only"),
    "another optimizer": (lambda good, raw: changed(good, optimizer_states=[{"a": 1}]), "can't be restored: "),
    "no schedule": (lambda good, raw: changed(good, lr_schedulers=...), "weights only"),
    "no progress": (
        lambda good, raw: changed(good, loops={"fit_loop": {"epoch_loop.batch_progress": 3}}),
        "can't be restored: ",
    ),
    "no history": (lambda good, raw: changed(good, callbacks={"History": {"curves": 3}}), "can't be restored: "),
}
CASES = [("fit", name, *case) for name, case in (HOSTILE | HOSTILE_TO_FIT).items()]
CASES += [
    (command, name, *HOSTILE[name])
    for command in ("validate", "test", "predict")
    for name in ("half", "pickle", "another model", "not finite")
]


def test_damaged_bytes_fail_in_one_way(tmp_path: Path) -> None:
    """Wherever they lie: in the archive's own lists, in the pickle, in the numbers."""
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": toy.build(tmp_path).state_dict(), "pytorch-lightning_version": "2.6"}, path)
    good, refused = path.read_bytes(), 0
    for position in range(0, len(good), 5):
        for value in (0x00, 0x85, 0xFF):
            path.write_bytes(good[:position] + bytes([value]) + good[position + 1 :])
            try:
                CheckpointFiles().load_checkpoint(path)
            except WeightsError as error:
                refused += 1
                assert str(path) in str(error) and "\n" not in str(error) and "weights_only" not in str(error)
    assert refused > 100


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run("fit", "--config", toy.fit_recipe(folder)) == 0
    return folder


@pytest.mark.parametrize(("command", "name", "content", "told_"), CASES, ids=[f"{c[0]} {c[1]}" for c in CASES])
def test_a_hostile_checkpoint_is_one_line(
    command: str,
    name: str,
    content: Callable[[dict[str, Any], bytes], Any],
    told_: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.delenv("ZOO_TRACEBACK", raising=False)
    made = content(torch.load(LAST, weights_only=True), LAST.read_bytes())
    hostile = tmp_path / "hostile.ckpt"
    hostile.write_bytes(made) if isinstance(made, bytes) else torch.save(made, hostile)
    arguments = ["--config", "mine.yaml", "--run_dir", tmp_path / "run", "--ckpt_path", hostile]
    assert run(command, *arguments, *(["--trainer.max_steps", 3] if command == "fit" else [])) == cli.EXIT_BAD_INPUT
    line = told(capsys)
    assert told_ in line and str(hostile) in line and len(line) < 600
    assert not Path("canary").exists() and not (tmp_path / "run" / "bundle").exists()


def test_fitting_does_not_go_on_from_weights_alone(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    assert run("fit", "--config", "mine.yaml", "--ckpt_path", "best") == cli.EXIT_BAD_INPUT
    assert "best.ckpt holds weights only" in told(capsys)


def test_a_folder_is_no_checkpoint(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    assert run("test", "--config", "mine.yaml", "--ckpt_path", "runs/mine") == cli.EXIT_BAD_INPUT
    assert "runs/mine is no checkpoint" in told(capsys)


@pytest.mark.parametrize("which", ["last", "best"])
def test_last_and_best_are_those_of_the_run(
    which: str, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Measuring never falls back on weights that nobody has trained."""
    monkeypatch.chdir(trained)
    assert run("test", "--config", "mine.yaml", "--ckpt_path", which) == 0
    assert run("test", "--config", "mine.yaml", "--run_dir", "runs/none", "--ckpt_path", which) == cli.EXIT_BAD_INPUT
    assert f"there is no runs/none/checkpoints/{which}.ckpt" in told(capsys)


def test_options_cannot_have_checkpoints_unpickled(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    assert run("test", "--config", "mine.yaml", "--ckpt_path", "last", "--weights_only", "false") == cli.EXIT_BAD_INPUT
    assert "unknown option --weights_only" in capsys.readouterr().err


def test_a_checkpoint_does_not_choose_what_is_built(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "stranger.py").write_text("open('canary', 'w').write('executed')\nclass Model: ...\n")
    parameters = {"_class_path": "stranger.Model", "width": 9}
    torch.save(changed(torch.load(LAST, weights_only=True), hyper_parameters=parameters), tmp_path / "x.ckpt")
    assert run("test", "--config", "mine.yaml", "--run_dir", tmp_path / "run", "--ckpt_path", tmp_path / "x.ckpt") == 0
    assert not Path("canary").exists()
