"""The recipes of published models: they build at the published size; `zoo.load` fills them from the authors' files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import official_layout
import pytest
import torch
import yaml
from huggingface_hub import constants
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, Trainer
from official_layout import AbcReference, Vlm2VecReference, picture

import zoo
from zoo import catalog
from zoo.convert import abc, vlm2vec
from zoo.errors import WeightsError
from zoo.loading import build_model
from zoo.recipe import read_recipe
from zoo.registry import import_parts

# parameters of the safetensors files on the hub, less the language-model head where it is stored apart from the input
# embedding: Qwen2-VL-7B-Instruct 8,291,375,616 and 152064 x 3584; Qwen2-VL-2B-Instruct 2,208,985,600, tied
PUBLISHED = {
    "abc-qwen2vl": 8_291_375_616 - 152064 * 3584,
    "abc-qwen2vl-pretrain": 8_291_375_616 - 152064 * 3584,
    "vlm2vec-qwen2vl-2b": 2_208_985_600,
}
# what the authors' settings adapt: layers x parts, and for the last one the size of the released adapter file
TRAINED = {"abc-qwen2vl": 40_370_176, "abc-qwen2vl-pretrain": 232_791_553, "vlm2vec-qwen2vl-2b": 4_673_536}


@pytest.mark.parametrize("stem", PUBLISHED)
def test_size(stem: str) -> None:
    recipe = read_recipe(official_layout.RECIPES / f"{stem}.yaml")
    with torch.device("meta"):
        module: Any = build_model(recipe.raw["model"], stem)
    backbone = sum(p.numel() for n, p in module.backbone.named_parameters() if ".lora_" not in n)
    assert backbone == PUBLISHED[stem]
    assert sum(p.numel() for p in module.parameters()) == recipe.card.parameters
    module.apply_freeze()
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == TRAINED[stem]


def test_released_adapter_of_vlm2vec_is_of_rank_8() -> None:
    """The file on the hub has 18.8 MB of fp32: what rank 8 on five layers and DoRA's magnitudes take; 16 does not."""
    assert TRAINED["vlm2vec-qwen2vl-2b"] * 4 == pytest.approx(18.8e6, rel=0.01)


@pytest.mark.parametrize("stem", PUBLISHED)
def test_scale_that_the_converter_assumes(stem: str) -> None:
    adapter = official_layout.recipe(stem)["model"]["init_args"]["adapter"]
    assert adapter["alpha"] / adapter["r"] == (vlm2vec.SCALE if stem.startswith("vlm2vec") else abc.SCALE)


@pytest.mark.parametrize("stem", PUBLISHED)
def test_pictures_are_budgeted_in_merged_patches(stem: str) -> None:
    pixels = official_layout.recipe(stem)["model"]["init_args"]["processor"]["init_args"]["pixels"]
    tokens = {limit: pixels[limit] / 28**2 for limit in ("min_pixels", "max_pixels")}
    assert (
        tokens
        == {
            "abc-qwen2vl": {"min_pixels": 256, "max_pixels": 1024},
            "abc-qwen2vl-pretrain": {"min_pixels": 256, "max_pixels": 512},
            "vlm2vec-qwen2vl-2b": {"min_pixels": 4, "max_pixels": 1280},
        }[stem]
    )
    assert pixels.get("rounded_first", False) == stem.startswith("abc")


@pytest.mark.parametrize("stem", PUBLISHED)
def test_data_and_trainer_sections_name_what_there_is(stem: str) -> None:
    """Parsed only: the data is not here."""
    import_parts()
    raw = official_layout.recipe(stem)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    parser.add_class_arguments(Trainer, "trainer")
    parsed = parser.parse_object({"data": raw["data"], "trainer": raw["trainer"]})
    world = parsed.trainer.devices * parsed.data.init_args.batch_size
    assert world == {"abc-qwen2vl-pretrain": 512, "abc-qwen2vl": 1024, "vlm2vec-qwen2vl-2b": 1024}[stem]


def test_the_two_stages_of_abc_are_one_model() -> None:
    """Whatever decides a vector is the same in both, but for the adapter and the resolution."""
    first, second = (official_layout.recipe(s)["model"]["init_args"] for s in ("abc-qwen2vl-pretrain", "abc-qwen2vl"))
    for part in ("pooling", "head", "objective"):
        ignored = {"negatives"}
        a, b = (
            {k: v for k, v in stage[part]["init_args"].items() if k not in ignored}
            | {"class": stage[part]["class_path"]}
            for stage in (first, second)
        )
        assert a == b
    for name in ("text", "vision", "attention", "image_token_id"):
        assert first["backbone"]["init_args"][name] == second["backbone"]["init_args"][name]
    for name in ("template", "position_mode", "padding_side", "max_length", "tokenizer"):
        assert first["processor"]["init_args"][name] == second["processor"]["init_args"][name]


# ---- zoo.load --------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache without network, and the released recipes in a tiny size; returns HF_HOME."""
    monkeypatch.delenv("ZOO_WEIGHTS", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "recipes"
    folder.mkdir()
    for stem in PUBLISHED:
        (folder / f"{stem}.yaml").write_text(yaml.safe_dump(official_layout.tiny_recipe(stem)), "utf-8")
    monkeypatch.setattr(catalog, "_folders", lambda: iter([(folder, "zoo")]))
    return tmp_path / "hf"


ASKED = {"image": picture(1, 40, 23), "instruction": "what is the animal on the left?"}


def assert_official_abc(model: Any, reference: AbcReference) -> None:
    found = model.encode(["a dog", ASKED["image"], ASKED])
    wanted = [
        reference.embed("a dog"),
        reference.embed(image=ASKED["image"]),
        reference.embed(image=ASKED["image"], instruction=ASKED["instruction"]),
    ]
    np.testing.assert_allclose(found, torch.stack(wanted).numpy(), atol=1e-5)


def test_abc_from_a_local_folder(hub: Path, tmp_path: Path) -> None:
    """A folder that holds the three repositories; the tokenizer is taken from there too."""
    reference = AbcReference(tmp_path / "copies")
    assert_official_abc(zoo.load("abc-qwen2vl", weights=tmp_path / "copies"), reference)


def test_abc_from_repositories_without_their_organisation(hub: Path, tmp_path: Path) -> None:
    reference = AbcReference(tmp_path / "copies")
    flat = tmp_path / "flat"
    flat.mkdir()
    for repository in (tmp_path / "copies").glob("*/*"):
        repository.rename(flat / repository.name)
    assert_official_abc(zoo.load("abc-qwen2vl.official", weights=str(flat)), reference)


def test_abc_from_the_hub_cache(hub: Path, tmp_path: Path) -> None:
    reference = AbcReference(tmp_path / "copies")
    for stage in ("Pretrain", "Instruct"):
        official_layout.with_old_adapter_names(tmp_path / f"copies/TIGER-Lab/ABC-Qwen2VL-{stage}")
    official_layout.hub_cache(hub, tmp_path / "copies")
    assert_official_abc(zoo.load("abc-qwen2vl"), reference)


def test_abc_from_zoo_weights(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = AbcReference(tmp_path / "copies")
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path / "copies"))
    assert_official_abc(zoo.load("abc-qwen2vl"), reference)


def test_abc_as_a_bundle(hub: Path, tmp_path: Path) -> None:
    """Loaded once, the model can be kept as one folder, which needs none of its sources."""
    reference = AbcReference(tmp_path / "copies")
    zoo.load("abc-qwen2vl", weights=tmp_path / "copies").save(tmp_path / "bundle")
    (tmp_path / "copies").rename(tmp_path / "gone")
    assert_official_abc(zoo.load(f"path:{tmp_path / 'bundle'}"), reference)


def test_abc_in_the_precision_its_authors_use(hub: Path, tmp_path: Path) -> None:
    reference = AbcReference(tmp_path / "copies")
    model = zoo.load("abc-qwen2vl", weights=tmp_path / "copies", dtype="bfloat16")
    found = model.encode(["a dog", ASKED])
    wanted = [reference.embed("a dog"), reference.embed(image=ASKED["image"], instruction=ASKED["instruction"])]
    assert found.dtype == np.float32
    assert (found * torch.stack(wanted).numpy()).sum(axis=1).min() > 0.99


def test_vlm2vec_from_the_hub_cache(hub: Path, tmp_path: Path) -> None:
    reference = Vlm2VecReference(tmp_path / "copies")
    official_layout.with_old_adapter_names(tmp_path / "copies/TIGER-Lab/VLM2Vec-Qwen2VL-2B")
    official_layout.as_pickle(tmp_path / "copies/TIGER-Lab/VLM2Vec-Qwen2VL-2B")
    official_layout.hub_cache(hub, tmp_path / "copies")
    model = zoo.load("vlm2vec-qwen2vl-2b")
    image = picture(1, 40, 23)
    question = {"image": image, "instruction": "Represent the given image for classification"}
    np.testing.assert_allclose(
        model.encode_query([question]),
        reference.embed("<|image_pad|> Represent the given image for classification\n", image)[None],
        atol=1e-5,
    )
    np.testing.assert_allclose(model.encode_document(["a cat"]), reference.embed("a cat")[None], atol=1e-5)


@pytest.mark.parametrize("stem", PUBLISHED)
def test_three_ways_out_where_nothing_can_be_reached(stem: str, hub: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        zoo.load(stem)
    message = str(caught.value)
    first = official_layout.recipe(stem)["card"]["weights"]["official"]["source"][0].removeprefix("hf:")
    assert f"hf download {first}" in message and "HF_HOME" in message  # fetch on a connected machine
    assert f'zoo.load("{stem}", weights="FOLDER")' in message  # a local copy
    assert f'zoo.load("{stem}", weights=False)' in message  # random weights


def test_a_missing_repository_is_named(hub: Path, tmp_path: Path) -> None:
    AbcReference(tmp_path / "copies")
    (tmp_path / "copies/TIGER-Lab/ABC-Qwen2VL-Instruct").rename(tmp_path / "elsewhere")
    with pytest.raises(WeightsError, match="TIGER-Lab/ABC-Qwen2VL-Instruct"):
        zoo.load("abc-qwen2vl", weights=tmp_path / "copies")


def test_swapped_adapters_are_refused(hub: Path, tmp_path: Path) -> None:
    AbcReference(tmp_path / "copies")
    first, second = (tmp_path / f"copies/TIGER-Lab/ABC-Qwen2VL-{stage}" for stage in ("Pretrain", "Instruct"))
    first.rename(tmp_path / "first")
    second.rename(first)
    (tmp_path / "first").rename(second)
    with pytest.raises(WeightsError, match=r"stage 2 does not train.*mlp_head"):
        zoo.load("abc-qwen2vl", weights=tmp_path / "copies")


def test_an_adapter_of_another_rank_is_refused(hub: Path, tmp_path: Path) -> None:
    Vlm2VecReference(tmp_path / "copies", r=4, alpha=32)
    with pytest.raises(WeightsError, match=r"of another shape.*lora_A"):
        zoo.load("vlm2vec-qwen2vl-2b", weights=tmp_path / "copies")


def test_an_adapter_without_its_config_is_refused(hub: Path, tmp_path: Path) -> None:
    Vlm2VecReference(tmp_path / "copies")
    (tmp_path / "copies/TIGER-Lab/VLM2Vec-Qwen2VL-2B/adapter_config.json").unlink()
    with pytest.raises(WeightsError, match=r"adapter_config.json"):
        zoo.load("vlm2vec-qwen2vl-2b", weights=tmp_path / "copies")


def test_random_weights_are_always_there(hub: Path, tmp_path: Path) -> None:
    official_layout.write_tokenizer(tmp_path / "copies/Qwen/Qwen2-VL-2B-Instruct")
    official_layout.hub_cache(hub, tmp_path / "copies")  # the tokenizer is no weight, and has to be had
    assert zoo.load("vlm2vec-qwen2vl-2b", weights=False).encode(["a cat"]).shape == (1, 32)
