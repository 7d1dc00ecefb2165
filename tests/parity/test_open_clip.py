"""The towers of open_clip in a `DualEncoder` give what open_clip's `encode_image` and `encode_text` give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip_tiny as tiny
import pytest
import torch
from open_clip_tiny import CONFIGS, official, ours, pixels, texts, vectors

import zoo.testing
from zoo.architectures.dual_encoder import DualEncoder
from zoo.convert import open_clip as convert
from zoo.convert.transformers_folder import Checkpoint
from zoo.errors import RecipeError, UnknownNameError, WeightsError
from zoo.nn.backbones.open_clip import OpenClipImage, OpenClipText
from zoo.nn.towers import States

CAUSAL = [name for name in CONFIGS if name not in ("clipa", "siglip", "coca")]


def loaded(name: str, quick: bool | None = None) -> tuple[Any, Any]:
    """open_clip's model, and ours with its weights."""
    reference = official(CONFIGS[name])
    read = convert.quick_gelu if CONFIGS[name].get("quick_gelu") else convert.gelu
    return reference, ours(CONFIGS[name], quick, read(Checkpoint(reference.state_dict())))


@pytest.mark.parametrize("name", CONFIGS)
def test_vectors(name: str) -> None:
    reference, module = loaded(name)
    ids, mask = texts(CONFIGS[name])
    image, text = vectors(module, pixels(CONFIGS[name]), ids, mask)
    with torch.no_grad():
        torch.testing.assert_close(
            image, reference.encode_image(pixels(CONFIGS[name]), normalize=True), rtol=0, atol=1e-6
        )
        torch.testing.assert_close(text, reference.encode_text(ids, normalize=True), rtol=0, atol=1e-6)
    assert (image[0] - image[1]).abs().max() > 1e-3 and (text[0] - text[2]).abs().max() > 1e-3  # they see their input


@pytest.mark.parametrize("name", CAUSAL)
def test_texts_of_causal_towers_need_no_padding(name: str) -> None:
    _, module = loaded(name)
    ids, mask = texts(CONFIGS[name])
    full = vectors(module, pixels(CONFIGS[name]), ids, mask)[1][:3]
    short = vectors(module, pixels(CONFIGS[name]), ids[:3, :10], mask[:3, :10])[1]
    torch.testing.assert_close(short, full, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - set(CAUSAL)))
def test_towers_that_see_the_padding_refuse_another_length(name: str) -> None:
    module = ours(CONFIGS[name])
    ids, mask = texts(CONFIGS[name])
    with pytest.raises(RecipeError, match=rf"needs {ids.shape[1]} tokens, not 10.*padding: max_length"):
        module.text(ids[:, :10], mask[:, :10])


@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_have_the_width_of_the_vectors(name: str) -> None:
    module = ours(CONFIGS[name])
    ids, mask = texts(CONFIGS[name])
    module.image.pooled_only = False
    image, text = module.image(pixels(CONFIGS[name])), module.text(ids, mask)
    assert isinstance(image, States) and isinstance(text, States)
    assert text.tokens.shape == (*ids.shape, module.text.width)
    width = 512 if name == "clip with a resnet" else module.image.width  # its pooling is no linear map
    assert image.tokens.ndim == 3 and image.tokens.shape[2] == width


@pytest.mark.parametrize("name", CONFIGS)
def test_the_pooled_state_and_its_gradients_are_the_same_without_the_others(name: str) -> None:
    module = ours(CONFIGS[name])
    tower: Any = module.image.double()
    pictures = pixels(CONFIGS[name]).double()
    found = []
    for pooled_only in (True, False):
        tower.pooled_only = pooled_only
        tower.zero_grad()
        states = tower(pictures)
        states.pooled.square().sum().backward()
        found.append({n: p.grad for n, p in tower.named_parameters()} | {"pooled": states.pooled.detach()})
    assert found[0].keys() == found[1].keys()
    for key, value in found[1].items():
        torch.testing.assert_close(found[0][key], value, rtol=1e-10, atol=1e-12)


def test_patches_that_nobody_looks_at_are_not_followed_to_the_end() -> None:
    _, module = loaded("clip")
    module.eval()
    rows: list[int] = []
    for block in module.image.model.transformer.resblocks:
        block.mlp.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
    inputs = {"pixels": pixels(CONFIGS["clip"]), "image_rows": torch.arange(3), "rows": torch.arange(3)}
    module.encode(inputs)
    assert rows[-1] == 1 and all(count > 1 for count in rows[:-1])
    rows.clear()
    looking = DualEncoder(module.image, tokens=True, processor=module.processor).eval()
    assert looking.encode(inputs).tokens is not None and rows[-1] == rows[0] > 1


def test_tokens_are_the_projected_states() -> None:
    """The pooled state is the token at the end of the text; a picture's is that of its own class token."""
    _, module = loaded("clip")
    ids, mask = texts(CONFIGS["clip"])
    states = module.text(ids, mask)
    ends = states.tokens[torch.arange(len(ids)), mask.sum(1) - 1]
    torch.testing.assert_close(ends, states.pooled)
    _, averaging = loaded("clipa")  # pools the mean of the patches before the last norm, so the norm alone differs
    image = averaging.image(pixels(CONFIGS["clipa"]))
    assert image.tokens.shape[1] == 16 and torch.isfinite(image.tokens).all()


# ---- the activation --------------------------------------------------------------------------------------------------


def test_weights_bring_their_activation() -> None:
    """A tower that was built without one, or with the other one by default, takes what the weights were trained with."""
    reference, module = loaded("clip with quickgelu")
    plain = ours(CONFIGS["clip"], None, module.state_dict())  # the same sizes, but GELU by its configuration
    ids, mask = texts(CONFIGS["clip"])
    image, text = vectors(plain, pixels(CONFIGS["clip"]), ids, mask)
    with torch.no_grad():
        torch.testing.assert_close(
            image, reference.encode_image(pixels(CONFIGS["clip"]), normalize=True), rtol=0, atol=1e-6
        )
        torch.testing.assert_close(text, reference.encode_text(ids, normalize=True), rtol=0, atol=1e-6)
    back = ours(CONFIGS["clip with quickgelu"], None, loaded("clip")[1].state_dict())
    assert not back.image.quick_gelu and not back.text.quick_gelu
    assert not [m for m in back.modules() if type(m).__name__ == "QuickGELU"]


def test_the_wrong_activation_would_have_been_seen() -> None:
    """What the check protects from: plausible vectors that are off."""
    reference, _ = loaded("clip with quickgelu")
    wrong = ours(CONFIGS["clip"], None, convert.gelu(Checkpoint(reference.state_dict())))
    ids, mask = texts(CONFIGS["clip"])
    text = vectors(wrong, pixels(CONFIGS["clip"]), ids, mask)[1]
    with torch.no_grad():
        difference = (text - reference.encode_text(ids, normalize=True)).abs().max()
    assert difference > 1e-5


def test_a_recipe_that_states_another_activation_is_refused() -> None:
    _, module = loaded("clip with quickgelu", quick=True)
    with pytest.raises(WeightsError, match=r"trained with QuickGELU.*`quick_gelu: false` for OpenClipImage"):
        ours(CONFIGS["clip"], False, module.state_dict())


def test_weights_without_their_activation_are_incomplete() -> None:
    state = loaded("clip")[1].state_dict()
    del state["text.quick_gelu"]
    with pytest.raises(WeightsError, match=r"1 missing: text.quick_gelu"):
        ours(CONFIGS["clip"], None, state)


def test_pretrained_weights_need_a_stated_activation() -> None:
    with pytest.raises(RecipeError, match="state `quick_gelu: true` or `false`"):
        OpenClipText(CONFIGS["clip"], pretrained="path:somewhere")


def test_towers_start_from_a_checkpoint_of_open_clip(tmp_path: Path) -> None:
    reference, module = loaded("clip")
    torch.save(
        {"epoch": 1, "state_dict": {f"module.{k}": v for k, v in reference.state_dict().items()}},
        tmp_path / "epoch_1.pt",
    )
    image = OpenClipImage(CONFIGS["clip"], quick_gelu=False, pretrained=str(tmp_path / "epoch_1.pt")).eval()
    text = OpenClipText(CONFIGS["clip"], quick_gelu=False, pretrained=str(tmp_path / "epoch_1.pt")).eval()
    image.load_pretrained()
    text.load_pretrained()
    ids, mask = texts(CONFIGS["clip"])
    torch.testing.assert_close(image(pixels(CONFIGS["clip"])).pooled, module.image(pixels(CONFIGS["clip"])).pooled)
    torch.testing.assert_close(text(ids, mask).pooled, module.text(ids, mask).pooled)


# ---- building --------------------------------------------------------------------------------------------------------


def test_unknown_configurations() -> None:
    with pytest.raises(UnknownNameError, match=r"'ViT-B32'; did you mean 'ViT-B-32'"):
        OpenClipImage("ViT-B32")
    with pytest.raises(RecipeError, match="has no 'vision_cfg'"):
        OpenClipImage({"embed_dim": 8, "text_cfg": {}})
    broken = CONFIGS["clip"] | {"vision_cfg": {"layer": 2}}
    with pytest.raises(RecipeError, match=r"can't build a tower.*'layer'"):
        OpenClipImage(broken)


def test_a_text_tower_of_transformers_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"hf download FacebookAI/roberta-base config\.json"):
        OpenClipText("roberta-ViT-B-32")


def test_a_text_tower_of_transformers_from_its_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from open_clip.hf_model import HFTextEncoder
    from transformers import RobertaConfig

    folder = tmp_path / "FacebookAI/roberta-base"
    size = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 99,
    }
    RobertaConfig(**size).save_pretrained(folder)
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path))
    tower = OpenClipText("roberta-ViT-B-32").eval()
    reference = HFTextEncoder(str(folder), 512, pooler_type="mean_pooler", proj_type="mlp", pretrained=False).eval()
    reference.load_state_dict(tower.model.state_dict())
    ids = torch.tensor([[0, 9, 8, 2, 1, 1], [0, 5, 2, 1, 1, 1]])  # 1 is roberta's padding
    states = tower(ids, (ids != 1).long())
    torch.testing.assert_close(states.pooled, reference(ids), rtol=0, atol=1e-6)
    assert states.tokens.shape[:2] == states.mask.shape


# ---- contract and export ---------------------------------------------------------------------------------------------


def entry(name: str) -> Any:
    """A model with a small vocabulary that is here, for tests that go through a processor."""
    text = tiny.CONFIGS[name]["text_cfg"] | {"vocab_size": 21727, "context_length": 24}
    text.pop("hf_tokenizer_name", None)
    config = tiny.CONFIGS[name] | {"text_cfg": text}
    from zoo.loading import build_model
    from zoo.nn.backbones import open_clip_recipes

    recipe = open_clip_recipes.model(config, False, {})
    arguments = recipe["init_args"]["processor"]["init_args"]
    arguments |= {"tokenizer": "packaged:emoji-tokenizer.json"}
    arguments["caption"] |= {"bos": "", "eos": "<|endoftext|>", "pad": "<|endoftext|>"}
    torch.manual_seed(0)
    return build_model(recipe, name)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_contract(name: str) -> None:
    zoo.testing.check_architecture(entry(name))


@pytest.mark.parametrize("name", ["clip", "siglip", "coca"])
def test_export(name: str, tmp_path: Path) -> None:
    """In evaluation mode, where torch's fused attention would be taken; any number of rows and, for CLIP, of tokens."""
    module = entry(name).eval()
    text = next(graph for graph in module.export_graphs() if graph.name == "text")
    assert ("sequence" in text.dynamic_axes["input_ids"].values()) == (name == "clip")
    zoo.testing.check_export(module, tmp_path)


def test_patch_dropout_is_for_training_alone() -> None:
    tower = OpenClipImage(CONFIGS["clip"], patch_dropout=0.5)
    assert tower.train()(pixels(CONFIGS["clip"])).tokens.shape[1] == 8
    assert tower.eval()(pixels(CONFIGS["clip"])).tokens.shape[1] == 16


def test_half_precision_keeps_the_direction() -> None:
    _, module = loaded("clip")
    ids, mask = texts(CONFIGS["clip"])
    image, text = vectors(module, pixels(CONFIGS["clip"]), ids, mask)
    half = module.to(torch.bfloat16)
    image_16, text_16 = vectors(half, pixels(CONFIGS["clip"]).bfloat16(), ids, mask)
    assert np.isclose((image * image_16.float()).sum(1).min().item(), 1, atol=1e-2)
    assert np.isclose((text * text_16.float()).sum(1).min().item(), 1, atol=1e-2)
