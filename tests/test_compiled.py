"""Weights of models that were compiled or wrapped are those of the model; names keep their meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import toy
import yaml
from torch import nn

from zoo import load
from zoo.bundle import write_bundle
from zoo.nn.fingerprint import weights_digest
from zoo.nn.momentum import Momentum
from zoo.nn.start import start_from
from zoo.objectives.infonce import InfoNCE


def compiled(folder: Path, seed: int = 0, **settings: Any) -> toy.ToyEncoder:
    module = toy.build(folder, seed, objective=InfoNCE(), **settings)
    module.linear = torch.compile(module.linear)  # nothing is compiled before it runs
    assert "linear._orig_mod.weight" in module.state_dict()
    return module


def rewritten(state: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    renamed = {
        "a part compiled": lambda name: name.replace("linear.", "linear._orig_mod."),
        "all compiled": lambda name: f"_orig_mod.{name}",
        "all compiled, a part again": lambda name: f"_orig_mod.{name}".replace("linear.", "linear._orig_mod."),
        "data-parallel": lambda name: f"module.{name}",
        "data-parallel and compiled": lambda name: f"module._orig_mod.{name}",
    }[how]
    return {renamed(name): value for name, value in state.items()}


@pytest.mark.parametrize(
    "how",
    ["a part compiled", "all compiled", "all compiled, a part again", "data-parallel", "data-parallel and compiled"],
)
def test_checkpoints_of_wrapped_models(how: str, tmp_path: Path) -> None:
    module = toy.build(tmp_path, 1, objective=InfoNCE())
    checkpoint = {"state_dict": rewritten(module.state_dict(), how)}
    run = tmp_path / "run" / "checkpoints"
    run.mkdir(parents=True)
    torch.save(checkpoint, run / "last.ckpt")
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(toy.recipe(tmp_path)), "utf-8")
    loaded = load(f"path:{tmp_path / 'run'}").module  # as --start does
    assert torch.equal(loaded.linear.weight, module.linear.weight)
    for other in (toy.build(tmp_path, objective=InfoNCE()), compiled(tmp_path)):  # as --ckpt_path does
        other.on_load_checkpoint(again := dict(checkpoint))
        other.load_state_dict(again["state_dict"], strict=True)
        assert torch.equal(other.linear.weight, module.linear.weight)


def test_a_compiled_model_is_started_written_and_named_as_any(tmp_path: Path) -> None:
    module, plain = compiled(tmp_path), toy.build(tmp_path, 1, objective=InfoNCE())
    start_from(module, plain, "plain")
    assert torch.equal(module.linear.weight, plain.linear.weight)
    assert weights_digest(module) == weights_digest(plain)
    with_model = toy.recipe(tmp_path)
    bundles = [write_bundle(one, with_model, tmp_path / name) for one, name in ((module, "one"), (plain, "two"))]
    first, second = (load(f"path:{folder}") for folder in bundles)
    assert first.fingerprint() == second.fingerprint()
    assert torch.equal(first.module.linear.weight, plain.linear.weight)
    first.module.linear = torch.compile(first.module.linear)
    assert first.fingerprint() == second.fingerprint()


def test_patterns_and_slow_copies_know_compiled_parts(tmp_path: Path) -> None:
    module = toy.build(tmp_path, objective=InfoNCE(), freeze=[r"linear\.bias"], rates={r"linear\.weight": 0.5})
    slow = Momentum(module, 0.5)
    module.linear = torch.compile(module.linear)
    module.setup("fit")
    assert not module.linear.bias.requires_grad and module.linear.weight.requires_grad
    rates = {group["lr"] for group in module.configure_optimizers().param_groups}
    assert rates == {5e-4, 1e-3}
    with torch.no_grad():
        module.linear.bias += 1
    before = slow.model.linear.bias.clone()
    slow.take_modes(module)
    slow.follow(module)
    torch.testing.assert_close(slow.model.linear.bias, before + 0.5)
    slow.restart(module)
    assert torch.equal(slow.model.linear.bias, module.linear.bias)


def test_digests_of_modules_made_in_inference_mode() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(3, 2)
    with torch.inference_mode():
        module = nn.Linear(3, 2)
        module.load_state_dict(plain.state_dict())
        assert weights_digest(module) == weights_digest(plain)
        module.weight.mul_(2)  # nothing counts changes of such tensors
        assert weights_digest(module) != weights_digest(plain)
