"""A run folder says what trained: of one run, with the settings that took effect, and the best step that was measured."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
import yaml
from fit_callbacks import Killed

import zoo
from zoo import cli
from zoo.bundle import read_bundle

RUN = Path("runs/mine")
LAST, BEST = RUN / "checkpoints" / "last.ckpt", RUN / "checkpoints" / "best.ckpt"
MODEL = "--model.init_args"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy with a schedule."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ZOO_TRACEBACK", raising=False)
    path = toy.fit_recipe(tmp_path)
    raw = yaml.safe_load(path.read_text("utf-8"))
    scheduler = {"class_path": "WarmupCosine", "init_args": {"warmup_steps": 1, "total_steps": 9}}
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.125}}
    raw["model"]["init_args"] |= {"optimizer": optimizer, "scheduler": scheduler}
    raw["trainer"]["logger"] = False
    path.write_text(yaml.safe_dump(raw, sort_keys=False), "utf-8")
    return path


def fit(recipe: Path, *arguments: object) -> int:
    return cli.main(["fit", "--config", str(recipe), *map(str, arguments)])


def later(recipe: Path, content: dict[str, Any]) -> list[object]:
    path = recipe.with_name("later.yaml")
    path.write_text(yaml.safe_dump(content), "utf-8")
    return ["--config", path]


def recorded(place: Path = RUN) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((place / "recipe.yaml").read_text("utf-8"))
    return found


def error(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return line


# ---- going on --------------------------------------------------------------------------------------------------------

RATES = {"model": {"init_args": {"rates": {"linear": 0.5}}}}
CONSTANT = {"model": {"init_args": {"scheduler": None}}}
SGD = {"model": {"init_args": {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.125}}}}}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([f"{MODEL}.optimizer.init_args.lr", 0.5], "model.init_args.optimizer.init_args.lr is 0.5, but .* with 0.125"),
        (
            [f"{MODEL}.optimizer.init_args.weight_decay", 0.5],
            "optimizer.init_args.weight_decay is 0.5, but .* with 0.01",
        ),
        ([f"{MODEL}.scheduler.init_args.total_steps", 99], "scheduler.init_args.total_steps is 99, but .* with 9"),
        ([f"{MODEL}.objective.init_args.temperature", 0.5], "objective.init_args.temperature is 0.5, but .* with 0.1"),
        ([f"{MODEL}.freeze", "['linear']"], "model.init_args.freeze is "),
        (SGD, "optimizer.class_path is torch.optim.SGD, but .* with torch.optim.AdamW"),
        (CONSTANT, "scheduler is nothing, but .* with zoo.nn.schedules.WarmupCosine"),
        (RATES, "model.init_args.rates is .*, but .* with nothing"),
        (["--data.init_args.batch_size", 2], "data.init_args.batch_size is 2, but .* with 3"),
        (["--data.init_args.seed", 5], "data.init_args.seed is 5, but .* with 0"),
        (["--data.init_args.weights", "[1.0]"], "data.init_args.weights is "),
        (["--seed_everything", 5], "seed_everything is 5, but .* with 0"),
        (["--trainer.accumulate_grad_batches", 2], "trainer.accumulate_grad_batches is 2, but .* with 1"),
        (["--trainer.gradient_clip_val", 1], "trainer.gradient_clip_val is 1.*, but .* with nothing"),
    ],
)
def test_what_a_checkpoint_fixes_is_not_contradicted(
    options: Any, told: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(recipe) == 0
    before = (RUN / "recipe.yaml").read_bytes(), LAST.read_bytes(), read_bundle(RUN / "bundle").digest
    capsys.readouterr()
    options = later(recipe, options) if isinstance(options, dict) else options
    assert fit(recipe, "--ckpt_path", "last", "--trainer.max_steps", 4, *options) == cli.EXIT_BAD_INPUT
    line = error(capsys)
    assert re.search(told, line), line
    assert f"--start path:{LAST}" in line
    assert ((RUN / "recipe.yaml").read_bytes(), LAST.read_bytes(), read_bundle(RUN / "bundle").digest) == before


def test_checkpoints_of_earlier_versions_have_their_recipe_beside_them(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(recipe) == 0
    content = torch.load(LAST, weights_only=True)
    del content["recipe"]
    torch.save(content, LAST)
    torch.save(content, tmp_path / "alone.ckpt")
    options = ["--trainer.max_steps", 4, f"{MODEL}.optimizer.init_args.lr", 0.5, "--ckpt_path"]
    assert fit(recipe, *options, "last") == cli.EXIT_BAD_INPUT
    assert "optimizer.init_args.lr is 0.5, but" in error(capsys)
    assert fit(recipe, *options[:2], "--ckpt_path", "last") == 0
    assert fit(recipe, *options[:2], "--ckpt_path", tmp_path / "alone.ckpt", "--run_dir", "runs/other") == 0


def test_what_takes_effect_may_change_and_is_recorded(recipe: Path, tmp_path: Path) -> None:
    assert fit(recipe) == 0
    (tmp_path / "moved").mkdir()
    words = (tmp_path / "words.json").rename(tmp_path / "moved" / "words.json")
    options = ["--trainer.max_steps", 4, "--data.init_args.eval_batch_size", 2, f"{MODEL}.chunk_size", 2]
    options += [f"{MODEL}.processor.init_args.words", words, "--checkpoint.every_n_train_steps", 1]
    assert fit(recipe, "--ckpt_path", "last", *options) == 0
    for place in (RUN, RUN / "bundle"):
        found = recorded(place)
        assert found["trainer"]["max_steps"] == 4 and found["data"]["init_args"]["eval_batch_size"] == 2
        assert found["model"]["init_args"]["chunk_size"] == 2


def test_another_rate_is_a_new_run_from_the_weights(recipe: Path) -> None:
    assert fit(recipe) == 0
    begun = torch.load(LAST, weights_only=True)["state_dict"]["linear.weight"]
    rate = [f"{MODEL}.optimizer.init_args.lr", 0, f"{MODEL}.optimizer.init_args.weight_decay", 0]
    assert fit(recipe, "--start", f"path:{LAST}", *rate) == 0
    for place in (RUN, RUN / "bundle"):
        assert recorded(place)["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0
    assert torch.equal(torch.load(LAST, weights_only=True)["state_dict"]["linear.weight"], begun)


def test_the_interval_of_curves_takes_effect(recipe: Path) -> None:
    interval = "--history.every_n_steps"
    assert fit(recipe, interval, 2) == 0
    assert fit(recipe, interval, 1, "--trainer.max_steps", 5, "--ckpt_path", "last") == 0
    curves = torch.load(LAST, weights_only=True)["callbacks"]["History"]["curves"]
    assert [step for step, _ in curves["train/loss"]] == [2, 3, 4, 5]


# ---- a folder that is used again --------------------------------------------------------------------------------------


def stopped(recipe: Path, *arguments: object) -> None:
    callbacks = [{"class_path": "fit_callbacks.Stopped", "init_args": {"after": 2, "how": "kill"}}]
    with pytest.raises(Killed):
        fit(recipe, *later(recipe, {"trainer": {"callbacks": callbacks}}), *arguments)


def test_a_second_run_that_is_stopped_does_not_pass_off_the_first_one(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(recipe) == 0
    first = read_bundle(RUN / "bundle").digest
    stopped(recipe, "--seed_everything", 5)
    assert f"what an earlier run left in {RUN} is now in {RUN / 'previous'}" in capsys.readouterr().out
    assert not (RUN / "bundle").exists() and not BEST.exists()
    loaded = zoo.load(f"path:{RUN}").module.linear.weight
    assert torch.equal(loaded, torch.load(LAST, weights_only=True)["state_dict"]["linear.weight"])
    assert recorded()["seed_everything"] == 5
    assert read_bundle(RUN / "previous" / "bundle").digest == first
    assert zoo.load(f"path:{RUN / 'previous'}").dim == 4


def test_a_second_run_that_never_begins_changes_nothing(recipe: Path) -> None:
    assert fit(recipe) == 0
    before = {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()}
    assert fit(recipe, *later(recipe, {"data": {"init_args": {"train": []}}})) == cli.EXIT_BAD_INPUT
    assert {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()} == before


HELD = """
import sys
from pathlib import Path
from zoo import cli
import fit_callbacks
sys.exit(cli.main(["fit", "--config", "mine.yaml", "--config", "held.yaml"]))
"""


def test_two_fits_do_not_share_a_folder_and_a_killed_one_leaves_no_lock(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callbacks = [{"class_path": "fit_callbacks.Held", "init_args": {"after": 2}}]
    held = {"trainer": {"callbacks": callbacks}, "data": {"init_args": {"num_workers": 1}}}
    Path("held.yaml").write_text(yaml.safe_dump(held), "utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    first = subprocess.Popen([sys.executable, "-c", HELD], env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 240
        while not Path("held").exists():
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        saved = LAST.read_bytes()
        assert fit(recipe) == cli.EXIT_BAD_INPUT
        assert f"another fit writes to {RUN}" in error(capsys)
        assert LAST.read_bytes() == saved and not (RUN / "previous").exists()
    finally:
        first.kill()
        first.wait()
    (LAST.parent / ".last.ckpt.1.1.partial").write_bytes(b"half")
    (RUN / ".recipe.yaml.1.1.partial").write_bytes(b"half")
    (RUN / ".bundle.1.partial").mkdir()
    deadline = time.monotonic() + 30  # its loaders notice within seconds, and hold the lock until then
    while fit(recipe, "--ckpt_path", "last") != 0:
        assert time.monotonic() < deadline
    assert torch.load(LAST, weights_only=True)["global_step"] == 2
    assert not [path for path in RUN.rglob("*") if "partial" in path.name]


# ---- the best step ---------------------------------------------------------------------------------------------------


def test_a_monitor_that_never_appears_is_an_error_at_the_first_validation(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(recipe, "--best.monitor", "val/image_to_text[coulours]/recall@10", "--trainer.max_steps", 4) == 2
    line = error(capsys)
    assert "best.monitor is 'val/image_to_text[coulours]/recall@10'" in line and "at step 2 " in line
    assert "val/image_to_text[colours]/recall@10" in line and "val/primary" in line and "train/" not in line
    assert fit(recipe, "--ckpt_path", "last", "--best.monitor", "val/primary") == 0
    assert torch.load(BEST, weights_only=True)["global_step"] == 2


def test_a_run_goes_on_with_what_made_its_best_step_the_best(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The best by another value may be a step whose weights are gone."""
    assert fit(recipe, "--trainer.max_steps", 4) == 0
    before = BEST.read_bytes()
    options = ["--ckpt_path", "last", "--trainer.max_steps", 6]
    assert fit(recipe, *options, "--best.monitor", "val/image_to_text[colours]/recall@10") == cli.EXIT_BAD_INPUT
    line = error(capsys)
    assert "best.monitor is 'val/image_to_text[colours]/recall@10'" in line and "by 'val/primary'" in line
    assert BEST.read_bytes() == before
    assert fit(recipe, *options) == 0


PEAKED = {"class_path": "fit_callbacks.Peaked", "init_args": {"peak": 2}}


@pytest.mark.parametrize("best", [{"monitor": "val/peaked"}, {"monitor": "val/other", "fallback": "val/peaked"}])
def test_the_bundle_is_what_the_report_praises(best: dict[str, str], recipe: Path) -> None:
    """Also over a restart, whose best so far must not be lost."""
    options = later(recipe, {"best": best, "trainer": {"callbacks": [PEAKED]}})
    assert fit(recipe, *options, "--trainer.max_steps", 4) == 0
    assert fit(recipe, *options, "--trainer.max_steps", 6, "--ckpt_path", "last") == 0
    assert "0 (val/peaked) at step 2" in (RUN / "report.html").read_text("utf-8").replace("0.0 %", "0")
    kept = torch.load(BEST, weights_only=True)
    assert kept["global_step"] == 2
    assert torch.equal(read_bundle(RUN / "bundle").state()["linear.weight"], kept["state_dict"]["linear.weight"])


def test_best_weights_are_kept_however_often_a_run_validates(recipe: Path) -> None:
    """Lightning's own default, a validation after every epoch."""
    assert fit(recipe, "--trainer.max_steps", 4) == 0
    assert torch.load(BEST, weights_only=True)["global_step"] == 2  # all later ones are as good


def test_other_tasks_than_the_recipes_count_by_their_mean(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe's own monitor can't exist; the layer that replaced its tasks did not have to know of it."""
    raw = yaml.safe_load(recipe.read_text("utf-8"))
    mine = {"data": {"init_args": {"val": raw["data"]["init_args"]["val"]}}}
    raw["data"]["init_args"]["val"] = []
    raw["best"] = {"monitor": "val/text_to_image[en]/recall@10"}
    recipe.write_text(yaml.safe_dump(raw), "utf-8")
    assert fit(recipe, *later(recipe, mine)) == 0
    assert torch.load(BEST, weights_only=True)["global_step"] == 2
    assert recorded(RUN / "bundle")["best"]["fallback"] == "val/primary"
    assert fit(recipe, *later(recipe, mine), "--best.monitor", "val/typo") == cli.EXIT_BAD_INPUT
    assert "best.monitor is 'val/typo'" in error(capsys)
    assert fit(recipe, *later(recipe, mine | {"best": {"monitor": "val/typo"}})) == cli.EXIT_BAD_INPUT
