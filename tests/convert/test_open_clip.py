"""Checkpoints of open_clip to our state and back: every tensor, exactly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip_tiny import CONFIGS, official, ours
from safetensors.torch import save_file

from zoo.convert import open_clip as convert
from zoo.convert.transformers_folder import Checkpoint, load_folder
from zoo.errors import WeightsError
from zoo.objectives.infonce import InfoNCE
from zoo.weights import load_strictly

GIVEN_BACK = [name for name in CONFIGS if name != "coca"]


def converted(name: str) -> tuple[Any, Any, dict[str, Any]]:
    reference = official(CONFIGS[name])
    quick = bool(CONFIGS[name].get("quick_gelu"))
    state = (convert.quick_gelu if quick else convert.gelu)(Checkpoint(reference.state_dict()))
    return reference, ours(CONFIGS[name], None, state), state


@pytest.mark.parametrize("name", GIVEN_BACK)
def test_there_and_back(name: str) -> None:
    reference, module, _ = converted(name)
    back = convert.to_open_clip(module.state_dict(), custom_text=CONFIGS[name].get("custom_text", False))
    wanted = reference.state_dict()
    assert back.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(back[key], value), key
    official(CONFIGS[name], seed=9).load_state_dict(back, strict=True)


def test_scale_and_bias_belong_to_the_objective() -> None:
    reference, module, _ = converted("siglip")
    reference.logit_scale.data.fill_(math.log(112.3))  # beyond CLIP's 100, as released ones are
    reference.logit_bias.data.fill_(-16.5)
    state = convert.gelu(Checkpoint(reference.state_dict()))
    load_strictly(module, state, "x")
    assert module.objective.temperature().item() == pytest.approx(112.3)
    assert module.objective.bias.item() == -16.5
    back = convert.to_open_clip(module.state_dict(), custom_text=True)
    assert back["logit_bias"].item() == -16.5 and back["logit_scale"].exp().item() == pytest.approx(112.3)


@pytest.mark.parametrize(("learn", "stored"), [("log", math.log(50)), ("linear", 0.02), ("no", 0.02)])
def test_temperatures_that_are_kept_otherwise(learn: Any, stored: float) -> None:
    state = {"objective.temperature.parameter": torch.tensor(stored)}
    back = convert.to_open_clip(state, custom_text=False, learn=learn)
    assert back["logit_scale"].exp().item() == pytest.approx(50)


@pytest.mark.parametrize("learn", ["log", "linear", "no"])
def test_a_state_says_how_it_keeps_its_temperature(learn: Any) -> None:
    state = {f"objective.{key}": value for key, value in InfoNCE(0.02, learn).state_dict().items()}
    assert convert.to_open_clip(state, custom_text=False)["logit_scale"].exp().item() == pytest.approx(50)


def test_without_an_objective_the_scale_is_where_open_clip_starts() -> None:
    state = {k: v for k, v in converted("clip")[2].items() if not k.startswith("objective.")}
    back = convert.to_open_clip(state, custom_text=False)
    official(CONFIGS["clip"]).load_state_dict(back, strict=True)
    assert back["logit_scale"].exp().item() == pytest.approx(1 / 0.07)


# ---- what open_clip's own loader mends, too --------------------------------------------------------------------------


def test_prefix_of_a_distributed_run() -> None:
    reference, _, state = converted("clip")
    again = convert.gelu(Checkpoint({f"module.{key}": value for key, value in reference.state_dict().items()}))
    assert again.keys() == state.keys() and all(torch.equal(again[k], state[k]) for k in state)


def test_old_flat_text_tower_of_a_custom_model() -> None:
    """MobileCLIP and the first SigLIP of open_clip: the same tensors, laid out as in CLIP."""
    reference, _, state = converted("siglip")
    flat = {key.removeprefix("text."): value for key, value in reference.state_dict().items()}
    again = convert.gelu(Checkpoint(flat))
    assert again.keys() == state.keys() and all(torch.equal(again[k], state[k]) for k in state)


def test_scale_of_shape_one_and_a_missing_bias() -> None:
    tensors = official(CONFIGS["clip"]).state_dict()
    tensors["logit_scale"] = torch.tensor([3.0], dtype=torch.float16)
    state = convert.gelu(Checkpoint(tensors))
    assert torch.equal(state["objective.temperature.parameter"], torch.tensor(3.0))
    assert torch.equal(state["objective.bias"], torch.tensor(0.0))


def test_numbers_beside_the_weights_are_left_out() -> None:
    tensors = official(CONFIGS["clip"]).state_dict()
    extra = {
        "input_resolution": torch.tensor(224),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
    }
    extra["text.transformer.embeddings.position_ids"] = torch.arange(77)
    assert convert.gelu(Checkpoint(tensors | extra)).keys() == convert.gelu(Checkpoint(tensors)).keys()


def test_what_is_not_understood_stays_and_is_refused() -> None:
    tensors = official(CONFIGS["clip"]).state_dict() | {"visual_proj.weight": torch.zeros(2)}
    state = convert.gelu(Checkpoint(tensors))
    with pytest.raises(WeightsError, match=r"1 unexpected: 'visual_proj.weight'"):
        ours(CONFIGS["clip"], None, state)


def test_another_size_is_refused() -> None:
    larger = CONFIGS["clip"] | {"vision_cfg": CONFIGS["clip"]["vision_cfg"] | {"image_size": 40}}
    state = convert.gelu(Checkpoint(official(larger).state_dict()))
    with pytest.raises(WeightsError, match=r"image.model.positional_embedding is \(26, 64\), the model has \(17, 64\)"):
        ours(CONFIGS["clip"], None, state)


# ---- what can't be read ----------------------------------------------------------------------------------------------


def test_other_layouts() -> None:
    with pytest.raises(WeightsError, match=r"layout of transformers.*open_clip_model.safetensors"):
        convert.gelu(Checkpoint({"vision_model.embeddings.class_embedding": torch.zeros(2)}, place="folder"))
    with pytest.raises(WeightsError, match=r"no checkpoint of open_clip.*'weight'"):
        convert.gelu(Checkpoint({"weight": torch.zeros(2)}, place="folder"))


def test_a_head_can_not_be_given_back() -> None:
    state = converted("clip")[1].state_dict() | {"image_head.weight": torch.zeros(2, 2)}
    with pytest.raises(WeightsError, match=r"no place for 'image_head\.weight'"):
        convert.to_open_clip(state, custom_text=False)


@pytest.mark.parametrize("said", [True, False])
def test_the_config_beside_the_weights_knows_the_activation(tmp_path: Path, said: bool) -> None:
    save_file(official(CONFIGS["clip"]).state_dict(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')  # repositories hold both layouts
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": said}}))
    checkpoint = load_folder(tmp_path / "open_clip_model.safetensors")
    right, wrong = (convert.quick_gelu, convert.gelu) if said else (convert.gelu, convert.quick_gelu)
    assert bool(right(checkpoint)["image.quick_gelu"]) is said
    with pytest.raises(WeightsError, match=f"was trained with {'QuickGELU' if said else 'GELU'}"):
        wrong(checkpoint)


def test_archives_with_code_are_refused(tmp_path: Path) -> None:
    """OpenAI's own files are TorchScript."""
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "ViT-B-32.pt"))
    with pytest.raises(WeightsError, match=r"TorchScript archive.*never loaded.*zoo show open_clip:CONFIG.TAG"):
        load_folder(tmp_path / "ViT-B-32.pt")
    torch.save(official(CONFIGS["clip"]), tmp_path / "pickled.pt")
    with pytest.raises(WeightsError, match="pickled Python objects"):
        load_folder(tmp_path / "pickled.pt")
