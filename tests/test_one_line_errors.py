"""What libraries say of settings and machines reaches the user as one line that names the part."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
import yaml
from lightning.pytorch import Callback

import zoo
from zoo import cli
from zoo.errors import NonFiniteError, RecipeError, ZooError
from zoo.objectives.infonce import InfoNCE


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ZOO_TRACEBACK", raising=False)
    return toy.fit_recipe(tmp_path)


SCHEDULER = "--model.init_args.scheduler=torch.optim.lr_scheduler.OneCycleLR"
OPTIMIZER = "--model.init_args.optimizer=AdamW"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--trainer.accelerator", "nope"], "the trainer can't be built (accelerator nope): You selected an invalid"),
        (["--trainer.strategy", "nope"], "the trainer can't be built (accelerator cpu, strategy nope): You selected"),
        (["--trainer.devices", "0"], "the trainer can't be built (accelerator cpu, devices 0): "),
        (["--trainer.max_steps", "-5"], "the trainer can't be built (accelerator cpu): `max_steps` must be"),
        (["--trainer.accumulate_grad_batches", "0"], "trainer.accumulate_grad_batches is 0"),
        (["--trainer.val_check_interval", "0"], "trainer.val_check_interval is 0"),
        (["--trainer.val_check_interval", "1000"], "trainer: `val_check_interval` (1000) must be less than"),
        (["--seed_everything", "-4"], "trainer: -4 is not in bounds"),
        (["--data.num_workers", "-1"], "num_workers is -1"),
        (["--model.chunk_size", "0"], "chunk_size is 0"),
        (["--model.gather_group", "3"], "1 process can't be divided into groups of 3"),
        (["--trainer.logger", "CometLogger"], "Requirement 'comet-ml"),
        ([OPTIMIZER, "--model.init_args.optimizer.lr", "nan"], "optimizer.lr"),
        ([OPTIMIZER, "--model.init_args.optimizer.lr", ".nan"], "model.optimizer: Invalid learning rate: nan"),
        ([OPTIMIZER, "--model.init_args.optimizer.lr", ".inf"], "model.optimizer: the learning rate is inf"),
        ([OPTIMIZER, "--model.init_args.optimizer.lr", "-1"], "model.optimizer: Invalid learning rate: -1"),
        (
            [SCHEDULER, "--model.init_args.scheduler.max_lr", "0.1"],
            "model.scheduler: You must define either total_steps",
        ),
    ],
)
def test_settings_of_a_fit(options: list[str], said: str, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", "--config", str(recipe), *options]) == 2
    error = capsys.readouterr().err
    last = error.rstrip("\n").splitlines()[-1]
    assert last.startswith("error: ") and said in last and "Traceback" not in error
    assert not Path("runs/mine/bundle").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("gpu", "cuda"):
        assert cli.main(["fit", "--config", str(recipe), "--trainer.accelerator", name]) == 2
        last = capsys.readouterr().err.rstrip("\n").splitlines()[-1]
        assert f"(accelerator {name})" in last and "--trainer.accelerator auto" in last
    for device in ("cuda", "cuda:1", "nope"):
        with pytest.raises(ZooError, match=f"the device '{device}' can't be used here .*zoo doctor"):
            zoo.load("clip-emoji", device=device)
    assert cli.main(["search", "clip-emoji", "a cat", "--in", "emoji", "--device", "cuda"]) == 2
    assert capsys.readouterr().err.startswith("error: the device 'cuda' can't be used here")


@pytest.mark.parametrize(
    ("option", "said"), [({"lr": math.nan}, "Invalid learning rate"), ({"betas": (2, 3)}, "Invalid beta")]
)
def test_an_optimizer_of_a_script(option: dict[str, Any], said: str, tmp_path: Path) -> None:
    module = toy.build(tmp_path, objective=InfoNCE(), optimizer=partial(torch.optim.AdamW, **option))
    with pytest.raises(RecipeError, match=f"model.optimizer: {said}"):
        module.configure_optimizers()


class Breaks(Callback):
    """A loss that is not finite, in the middle of a fit."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 3:
            raise NonFiniteError("the loss is nan at step 3")


@pytest.mark.parametrize("options", [[], ["--trainer.enable_progress_bar", "null"]])
def test_no_bar_is_drawn_into_a_file(options: list[str], recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = yaml.safe_load(recipe.read_text("utf-8"))
    del raw["trainer"]["enable_progress_bar"]
    raw["trainer"] |= {"max_steps": 5, "callbacks": [{"class_path": "test_one_line_errors.Breaks"}]}
    recipe.write_text(yaml.safe_dump(raw), "utf-8")
    assert cli.main(["fit", "--config", str(recipe), *options]) == 2
    out, error = capsys.readouterr()
    assert "\r" not in out + error and "\x1b" not in out + error and "it/s" not in out + error
    assert error.rstrip("\n").splitlines()[-1] == "error: the loss is nan at step 3"
