"""`open_clip:CONFIG.TAG`: every configuration and release of open_clip by name, with the settings that belong to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import open_clip.pretrained
import pytest
import torch
import yaml
from huggingface_hub import constants
from open_clip.transform import image_transform
from open_clip_tiny import CONFIGS, official
from PIL import Image
from safetensors.torch import save_file

import zoo
from zoo import catalog
from zoo.cli import main
from zoo.convert import open_clip as convert
from zoo.errors import RecipeError, UnknownNameError, WeightsError
from zoo.loading import build_model, load_weights
from zoo.nn.backbones import open_clip_recipes

WORDS = ["a photo of a cat", "Two DOGS &amp; a ball, isn't it?"]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub, an empty cache."""
    monkeypatch.delenv("ZOO_WEIGHTS", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The registry of open_clip with `tiny-1.5` and two releases of it, whose repositories lie below the path returned."""
    factory = open_clip.factory
    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    (tmp_path / "tiny-1.5.json").write_text(json.dumps(CONFIGS["clip"]))
    open_clip.add_model_config(tmp_path / "tiny-1.5.json")
    tags = {
        "openai": open_clip.pretrained._pcfg(hf_hub="org/quick/", quick_gelu=True),
        "laion": open_clip.pretrained._slpcfg(hf_hub="org/plain/folder/weights.bin"),
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-1.5", tags)
    for folder, file in (("quick", "open_clip_model.safetensors"), ("plain", "folder/weights.safetensors")):
        path = tmp_path / "org" / folder / file
        path.parent.mkdir(parents=True)
        save_file(reference(folder == "quick").state_dict(), path)
    save_file(
        {"vision_model.x": torch.zeros(1)}, tmp_path / "org/quick/model.safetensors"
    )  # the other layout, beside it
    return tmp_path


def reference(quick: bool) -> Any:
    return official(CONFIGS["clip with quickgelu" if quick else "clip"], seed=int(quick))


def assert_same(model: zoo.Embedder, quick: bool, transform: Any) -> None:
    """The embedder gives what open_clip gives for the same texts and pictures."""
    theirs = reference(quick)
    picture = Image.effect_noise((61, 47), 90).convert("RGB")
    with torch.no_grad():
        texts = theirs.encode_text(open_clip.get_tokenizer("ViT-B-32")(WORDS), normalize=True).numpy()
        image = theirs.encode_image(transform(picture)[None], normalize=True).numpy()
    np.testing.assert_allclose(model.encode(WORDS), texts, atol=1e-6)
    np.testing.assert_allclose(model.encode([picture]), image, atol=1e-6)


OPENAI = image_transform(32, is_train=False)
SQUASHED = image_transform(32, is_train=False, mean=(0.5,) * 3, std=(0.5,) * 3, resize_mode="squash")


# ---- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("road", ["weights", "environment", "repositories"])
def test_each_release_with_its_own_settings(small: Path, road: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"openai": True, "laion": True}
    if road == "environment":
        monkeypatch.setenv("ZOO_WEIGHTS", str(small))
    elif road == "repositories":
        given = dict.fromkeys(given, small)
    else:
        given = {"openai": small / "org/quick", "laion": small / "org/plain/folder/weights.safetensors"}
    assert_same(zoo.load("open_clip:tiny-1.5.openai", weights=given["openai"]), True, OPENAI)
    assert_same(zoo.load("open_clip:tiny-1.5.laion", weights=given["laion"]), False, SQUASHED)


def test_a_bundle_needs_nothing_else(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo.load("open_clip:tiny-1.5.openai", weights=small / "org/quick")
    folder = model.save(small / "bundle")
    again = zoo.load(f"path:{folder}")
    assert_same(again, True, OPENAI)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())["model"]["init_args"]
    assert recipe["image"]["init_args"]["quick_gelu"] is recipe["text"]["init_args"]["quick_gelu"] is True
    assert recipe["processor"]["init_args"]["tokenizer"] == "bundle:tokenizer.json"


def test_a_training_checkpoint_under_the_plain_name(small: Path) -> None:
    """As open_clip takes it: the configuration says GELU, whatever some release of it was trained with."""
    state = {f"module.{key}": value for key, value in reference(False).state_dict().items()}
    torch.save({"epoch": 3, "name": "mine", "state_dict": state}, small / "epoch_3.pt")
    assert_same(zoo.load("open_clip:tiny-1.5", weights=small / "epoch_3.pt"), False, OPENAI)


def test_a_plain_name_has_no_weights_but_names_the_tags(small: Path) -> None:
    with pytest.raises(WeightsError, match=r"open_clip:tiny-1.5.openai, open_clip:tiny-1.5.laion.*weights=False"):
        zoo.load("open_clip:tiny-1.5")
    model = zoo.load("open_clip:tiny-1.5", weights=False)
    assert model.encode(["x"]).shape == (1, 48) and "RANDOM" in repr(model)


def test_three_ways_out_where_nothing_can_be_reached(small: Path) -> None:
    (small / "org").rename(small / "elsewhere")
    with pytest.raises(WeightsError) as caught:
        zoo.load("open_clip:tiny-1.5.openai")
    for way in (
        "hf download org/quick open_clip_model.safetensors --revision main",
        'zoo.load("open_clip:tiny-1.5", weights="FOLDER")',
        "FOLDER/org/quick",
        'zoo.load("open_clip:tiny-1.5", weights=False)',
    ):
        assert way in str(caught.value)


def test_the_hub_s_cache_is_asked_for_each_file(small: Path) -> None:
    snapshot = small / "hf/hub/models--org--quick/snapshots/0123"
    (small / "hf/hub/models--org--quick/refs").mkdir(parents=True)
    (small / "hf/hub/models--org--quick/refs/main").write_text("0123")
    snapshot.mkdir(parents=True)
    torch.save(reference(True).state_dict(), snapshot / "open_clip_pytorch_model.bin")  # no safetensors there
    assert_same(zoo.load("open_clip:tiny-1.5.openai"), True, OPENAI)


def test_weights_of_the_other_activation_are_refused(small: Path) -> None:
    (small / "org/quick/open_clip_config.json").write_text('{"model_cfg": {"quick_gelu": true}}')
    with pytest.raises(WeightsError, match="was trained with QuickGELU"):
        zoo.load("open_clip:tiny-1.5.laion", weights=small / "org/quick/open_clip_model.safetensors")


def test_an_architecture_that_is_there_is_filled(small: Path) -> None:
    """As `zoo test` does: its towers state no activation and take that of the weights."""
    recipe = open_clip_recipes.model("tiny-1.5", False, {})
    for tower in ("image", "text"):
        del recipe["init_args"][tower]["init_args"]["quick_gelu"]
    module = build_model(recipe, "tiny")
    load_weights(module, "open_clip:tiny-1.5.openai", small / "org/quick")
    assert module.image.quick_gelu and module.text.quick_gelu


# ---- names -----------------------------------------------------------------------------------------------------------


def test_unknown_names() -> None:
    with pytest.raises(UnknownNameError, match=r"'ViT-B-23'; did you mean 'ViT-B-32'"):
        zoo.load("open_clip:ViT-B-23.openai")
    with pytest.raises(UnknownNameError, match=r"'opneai'; did you mean 'openai'.*laion2b_s34b_b79k"):
        zoo.load("open_clip:ViT-B-32.opneai")
    with pytest.raises(UnknownNameError, match="unknown model 'openclip:ViT-B-32'"):
        zoo.load("openclip:ViT-B-32")


def test_show(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "open_clip:tiny-1.5.openai"]) == 0
    printed = capsys.readouterr().out
    assert "hf:org/quick:open_clip_model.safetensors|open_clip_pytorch_model.bin" in printed
    assert "quick_gelu: true" in printed
    assert main(["show", "open_clip:tiny-1.5.openai", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "open_clip:tiny-1.5"


def test_names_are_no_files_to_train_from() -> None:
    with pytest.raises(RecipeError, match=r"start: open_clip:ViT-B-32\.openai"):
        catalog.find_path("open_clip:ViT-B-32.openai")


# ---- all of them -----------------------------------------------------------------------------------------------------


def test_every_release_has_a_recipe() -> None:
    names = open_clip_recipes.names()
    assert len(names) >= 196
    for name in names:
        recipe, tag = catalog.find(name)
        config = recipe.name.removeprefix("open_clip:")
        published = open_clip.get_pretrained_cfg(config, tag)
        arguments = recipe.raw["model"]["init_args"]
        picture = arguments["processor"]["init_args"]["picture"]
        assert tuple(picture["mean"]) == published["mean"] and tuple(picture["std"]) == published["std"]
        assert (picture["resize"], picture["interpolation"]) == (published["resize_mode"], published["interpolation"])
        quick = published.get("quick_gelu", False) or open_clip.get_model_config(config).get("quick_gelu", False)
        assert all(arguments[tower]["init_args"]["quick_gelu"] is quick for tower in ("image", "text"))
        assert recipe.card.weights[tag].convert == ("open_clip.quick_gelu" if quick else "open_clip.gelu")
        assert recipe.card.weights[tag].source.startswith("hf:" + "/".join(published["hf_hub"].split("/")[:2]) + ":")


def test_every_configuration_has_a_recipe() -> None:
    """144 configurations in open_clip 3.3; image size, length, padding and cleaning are those of the configuration."""
    configs = open_clip.list_models()
    assert len(configs) >= 144
    with_padding = 0
    for config in configs:
        settings = open_clip.get_model_config(config)
        recipe, tag = catalog.find(f"open_clip:{config}")
        assert tag is None and not recipe.card.weights
        processor = recipe.raw["model"]["init_args"]["processor"]["init_args"]
        text = settings["text_cfg"]
        assert processor["picture"]["size"] == settings["vision_cfg"]["image_size"]
        assert processor["caption"]["max_length"] == text.get("context_length", 77)
        assert (processor["tokenizer"] == "open_clip:tokenizer.json") == ("hf_tokenizer_name" not in text)
        sees = text.get("no_causal_mask", False) or text.get("embed_cls", False)
        assert (processor["caption"]["padding"] == "max_length") == sees, config
        with_padding += sees
        sigmoid = recipe.raw["model"]["init_args"]["objective"]["class_path"] == "SigLIP"
        assert sigmoid == ("init_logit_bias" in settings)
        assert recipe.card.convert == ("open_clip.quick_gelu" if settings.get("quick_gelu") else "open_clip.gelu")
    assert with_padding > 40


def test_recipes_of_clip_and_siglip_are_those_of_the_names() -> None:
    clip, _ = catalog.find("clip-vit-b32")
    for tag, name in (("openai", "ViT-B-32.openai"), ("laion2b", "ViT-B-32.laion2b_s34b_b79k")):
        written, written_tag = catalog.find(f"open_clip:{name}")
        entry, listed = clip.card.weights[tag], written.card.weights[str(written_tag)]
        assert (entry.source, entry.convert) == (listed.source, listed.convert)
        assert _settled(clip.raw["model"]) == _settled(written.raw["model"])
    siglip, written = catalog.find("siglip-vit-b16")[0], catalog.find("open_clip:ViT-B-16-SigLIP.webli")[0]
    assert siglip.card.weights["webli"].source == written.card.weights["webli"].source
    assert siglip.card.weights["webli"].convert == written.card.weights["webli"].convert
    assert _settled(siglip.raw["model"]) == _settled(written.raw["model"])


def _settled(model: dict[str, Any]) -> Any:
    """What a section means, defaults filled in, but for the activation, which `clip-vit-b32` leaves to the weights."""
    with torch.device("meta"):
        module: Any = build_model(model, "x")
    processor = module.processor
    state = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    return processor.tokenizer, processor.picture, processor.caption, state, type(module.objective)


@pytest.mark.parametrize(("stem", "count"), [("clip-vit-b32", 151_277_313), ("siglip-vit-b16", 203_155_970)])
def test_published_size(stem: str, count: int) -> None:
    recipe, _ = catalog.find(stem)
    with torch.device("meta"):
        module = build_model(recipe.raw["model"], stem)
    assert sum(p.numel() for p in module.parameters()) == recipe.card.parameters == count


@pytest.mark.slow
def test_every_configuration_builds() -> None:
    """On the meta device, each with as many parameters as open_clip's own model, but for text towers of transformers."""
    from open_clip.model import CLIP, CustomTextCLIP

    built, skipped = 0, 0
    for config in open_clip.list_models():
        settings = open_clip.get_model_config(config)
        if "hf_model_name" in settings["text_cfg"]:
            skipped += 1
            continue
        settings["vision_cfg"]["timm_model_pretrained"] = False
        settings.pop("multimodal_cfg", None)  # CoCa's decoder is left out here
        kind = CustomTextCLIP if settings.pop("custom_text", False) else CLIP
        with torch.device("meta"):
            module: Any = build_model(catalog.find(f"open_clip:{config}")[0].raw["model"], config)
            theirs = kind(**settings)
        wanted = {key: value.shape for key, value in theirs.state_dict().items()}
        state = {k: torch.empty(v.shape, device="meta") for k, v in module.state_dict().items()}
        back = convert.to_open_clip(state, custom_text=kind is CustomTextCLIP)
        assert {key: value.shape for key, value in back.items()} == wanted, config
        built += 1
    assert (built, skipped) == (134, 10)


@pytest.mark.slow
def test_the_real_size(tmp_path: Path) -> None:
    """`clip-vit-b32` from a file as LAION's: 600 MB of random weights, vectors of real texts and pictures."""
    model = open_clip.create_model("ViT-B-32", load_weights=False).eval()
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    loaded = zoo.load("clip-vit-b32.laion2b", weights=tmp_path)
    picture = Image.effect_noise((301, 227), 90).convert("RGB")
    with torch.no_grad():
        texts = model.encode_text(open_clip.get_tokenizer("ViT-B-32")(WORDS), normalize=True).numpy()
        image = model.encode_image(image_transform(224, is_train=False)(picture)[None], normalize=True).numpy()
    np.testing.assert_allclose(loaded.encode(WORDS), texts, atol=1e-6)
    np.testing.assert_allclose(loaded.encode([picture]), image, atol=1e-6)
