"""`zoo.load`: the right weights or a message, by every road that leads to them."""

from __future__ import annotations

import contextlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import toy
import yaml
from huggingface_hub import constants
from safetensors.torch import save_file

import zoo
from zoo import catalog
from zoo import weights as weight_sources
from zoo.bundle import write_bundle
from zoo.errors import RecipeError, UnknownNameError, WeightsError, ZooError
from zoo.loading import build_model, load_weights
from zoo.weights import sha256


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub, no cache, and the recipes of `tmp_path/recipes`."""
    (tmp_path / "recipes").mkdir()
    monkeypatch.setenv("ZOO_RECIPES", str(tmp_path / "recipes"))
    monkeypatch.delenv("ZOO_WEIGHTS", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def module(tmp_path: Path) -> toy.ToyEncoder:
    """The model whose weights are to be found again."""
    return toy.build(tmp_path, seed=3)


def write_recipe(folder: Path, weights: dict[str, Any] | None = None, name: str = "toy", **model: Any) -> Path:
    recipe = toy.recipe(folder, **model)
    recipe["card"]["weights"] = weights or {}
    path = folder / "recipes" / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe), "utf-8")
    return path


def official(folder: Path, module: torch.nn.Module, prefix: str = "") -> Path:
    """The module's tensors in a hub-like folder, keys with a prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({prefix + k: v.clone() for k, v in module.state_dict().items()}, folder / "model.safetensors")
    return folder


def assert_same(embedder: zoo.Embedder, module: toy.ToyEncoder) -> None:
    """The loaded model gives the vectors of `module`."""
    expected = module.encode(module.processor(_samples()).views["target"]).vector
    np.testing.assert_allclose(embedder.encode(["red cat", "blue"]), expected.detach().numpy(), atol=1e-6)


def _samples() -> list[zoo.Sample]:
    return [zoo.Sample(t, {"target": zoo.Item(text=t)}) for t in ("red cat", "blue")]


# ---- roads -----------------------------------------------------------------------------------------------------------


def test_random_weights_are_marked(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    torch.manual_seed(3)
    embedder = zoo.load("toy", weights=False)
    assert "RANDOM WEIGHTS" in repr(embedder) and embedder.weights is None
    torch.manual_seed(3)
    assert_same(embedder, toy.ToyEncoder(embedder.processor))


def test_a_recipe_without_weights_says_what_to_do(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    with pytest.raises(
        WeightsError, match=r"'toy' has no released weights: train it \(zoo fit --config .*weights=False"
    ):
        zoo.load("toy")


def test_bundle(tmp_path: Path, module: toy.ToyEncoder) -> None:
    folder = write_bundle(module, toy.recipe(tmp_path), tmp_path / "released")
    embedder = zoo.load(f"path:{folder}", device="cpu")
    assert_same(embedder, module)
    assert embedder.name == "released" and str(folder) in repr(embedder)
    assert embedder.card["license"] == "Apache-2.0"
    assert embedder.module.linear.weight is embedder.module.tied.weight


def test_bundle_of_half_precision_comes_back_as_fp32(tmp_path: Path, module: toy.ToyEncoder) -> None:
    folder = write_bundle(module, toy.recipe(tmp_path), tmp_path / "released", dtype="float16")
    embedder = zoo.load(f"path:{folder}")
    assert embedder.module.linear.weight.dtype == torch.float32
    np.testing.assert_allclose(
        embedder.module.linear.weight.detach(), module.linear.weight.detach().half().float(), atol=0
    )


def test_saving_what_was_loaded_gives_the_same_model(tmp_path: Path, module: toy.ToyEncoder) -> None:
    first = zoo.load(f"path:{write_bundle(module, toy.recipe(tmp_path), tmp_path / 'a')}")
    second = zoo.load(f"path:{first.save(tmp_path / 'b')}")
    assert second.fingerprint() == first.fingerprint()
    assert_same(second, module)


def test_packaged_bundle_by_name_and_tag(tmp_path: Path, module: toy.ToyEncoder, monkeypatch: Any) -> None:
    monkeypatch.setattr(weight_sources, "PACKAGED", tmp_path / "packaged")
    write_bundle(module, toy.recipe(tmp_path), tmp_path / "packaged" / "toy-emoji")
    write_recipe(tmp_path, {"emoji": {"source": "packaged:toy-emoji"}, "other": {"source": "packaged:gone"}}, width=9)
    for name in ("toy", "toy.emoji"):
        embedder = zoo.load(name)
        assert_same(embedder, module)  # the bundle knows how it was built, whatever the recipe says by now
        assert embedder.name == "toy"
    with pytest.raises(WeightsError, match=r"no '.*gone'.*packaged are: toy-emoji"):
        zoo.load("toy.other")


def test_a_bundle_must_be_the_one_that_the_card_means(tmp_path: Path, module: toy.ToyEncoder, monkeypatch: Any) -> None:
    monkeypatch.setattr(weight_sources, "PACKAGED", tmp_path / "packaged")
    folder = write_bundle(module, toy.recipe(tmp_path), tmp_path / "packaged" / "toy-emoji")
    digest = sha256(folder / "model.safetensors")
    write_recipe(tmp_path, {"emoji": {"source": "packaged:toy-emoji", "sha256": digest}})
    assert_same(zoo.load("toy"), module)
    write_bundle(toy.build(tmp_path, seed=8), toy.recipe(tmp_path), folder)  # sound, but another one
    with pytest.raises(WeightsError, match=r"damaged or another version"):
        zoo.load("toy")
    with pytest.raises(WeightsError, match=r"damaged or another version"):
        load_weights(module, "toy")


def test_unknown_names(tmp_path: Path) -> None:
    write_recipe(tmp_path, {"official": {"source": "hf:org/toy"}})
    with pytest.raises(UnknownNameError, match=r"unknown model 'toi'.*'toy'"):
        zoo.load("toi")
    with pytest.raises(UnknownNameError, match=r"'oficial'; did you mean 'official'"):
        zoo.load("toy.oficial")


def test_hub_weights_that_cannot_be_reached(tmp_path: Path) -> None:
    write_recipe(tmp_path, {"official": {"source": "hf:org/toy@v1"}})
    with pytest.raises(WeightsError) as caught:
        zoo.load("toy")
    for way in (
        "hf download org/toy --revision v1",
        'zoo.load("toy", weights="FOLDER")',
        'zoo.load("toy", weights=False)',
    ):
        assert way in str(caught.value)
    assert zoo.load("toy", weights=False).weights is None


@pytest.mark.parametrize("road", ["weights", "environment", "weights with repositories", "cache"])
def test_every_way_out_works(tmp_path: Path, module: toy.ToyEncoder, monkeypatch: Any, road: str) -> None:
    write_recipe(tmp_path, {"official": {"source": "hf:org/toy@v1"}})
    given: bool | Path = True
    if road == "weights":
        given = official(tmp_path / "copy", module)
    elif road == "weights with repositories":
        official(tmp_path / "all" / "org" / "toy", module)
        given = tmp_path / "all"
    elif road == "environment":
        official(tmp_path / "all" / "toy", module)
        monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path / "all"))
    else:
        repository = tmp_path / "hf" / "hub" / "models--org--toy"
        official(repository / "snapshots" / "a", module)
        (repository / "refs").mkdir()
        (repository / "refs" / "v1").write_text("a")
    assert_same(zoo.load("toy", weights=given), module)


@pytest.mark.parametrize("layout", ["", "toy", "org/toy"])
def test_a_local_copy_also_gives_the_files_of_the_processor(
    tmp_path: Path, module: toy.ToyEncoder, layout: str
) -> None:
    path = write_recipe(tmp_path, {"official": {"source": "hf:org/toy@v1"}})
    words = tmp_path / "words.json"
    path.write_text(path.read_text("utf-8").replace(str(words), "hf:org/toy@v1:words.json"), "utf-8")
    copy = official(tmp_path / "copy" / layout, module)
    words.rename(copy / "words.json")
    assert_same(zoo.load("toy", weights=tmp_path / "copy"), module)


def test_digest_of_the_card_is_checked(tmp_path: Path, module: toy.ToyEncoder) -> None:
    folder = official(tmp_path / "there", module)
    digest = sha256(folder / "model.safetensors")
    write_recipe(tmp_path, {"official": {"source": f"path:{folder}", "sha256": digest}})
    assert_same(zoo.load("toy"), module)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-3] ^= 4
    (folder / "model.safetensors").write_bytes(content)
    for given in (True, folder):
        with pytest.raises(WeightsError, match=r"model\.safetensors is damaged or another version"):
            zoo.load("toy", weights=given)


def converters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A converter in `zoo.convert`, and one elsewhere."""
    here = types.ModuleType("zoo.convert.toys")
    here.strip = lambda checkpoint: {k.removeprefix("model."): v for k, v in checkpoint.tensors.items()}
    here.halves = lambda first, second: here.strip(first) | here.strip(second)
    monkeypatch.setitem(sys.modules, "zoo.convert.toys", here)
    monkeypatch.setitem(sys.modules, "elsewhere", here)


@pytest.mark.parametrize("convert", ["toys.strip", "elsewhere:strip"])
def test_converter(tmp_path: Path, module: toy.ToyEncoder, monkeypatch: Any, convert: str) -> None:
    converters(monkeypatch)
    folder = official(tmp_path / "there", module, prefix="model.")
    write_recipe(tmp_path, {"official": {"source": f"path:{folder}", "convert": convert}})
    assert_same(zoo.load("toy"), module)
    write_recipe(tmp_path, {"official": {"source": f"path:{folder}", "convert": "toys.none"}})
    with pytest.raises(RecipeError, match=r"no converter 'toys\.none'"):
        zoo.load("toy")


def test_several_sources_are_joined_by_the_converter(tmp_path: Path, module: toy.ToyEncoder, monkeypatch: Any) -> None:
    converters(monkeypatch)
    state = {k: v.clone() for k, v in module.state_dict().items()}
    for name, keys in (("one", ["linear.weight", "tied.weight"]), ("two", ["linear.bias", "tied.bias"])):
        (tmp_path / "mine" / "org" / name).mkdir(parents=True)
        save_file({f"model.{k}": state[k] for k in keys}, tmp_path / "mine" / "org" / name / "model.safetensors")
    sources = ["hf:org/one@v1", "hf:org/two@v1"]
    digest = sha256(tmp_path / "mine/org/two/model.safetensors")
    write_recipe(tmp_path, {"official": {"source": sources, "convert": "toys.halves", "sha256": [None, digest]}})
    assert_same(zoo.load("toy", weights=tmp_path / "mine"), module)
    write_recipe(tmp_path, {"official": {"source": sources}})
    with pytest.raises(RecipeError, match=r"need a converter.*to join"):
        zoo.load("toy", weights=tmp_path / "mine")


def test_recipe_file(tmp_path: Path, module: toy.ToyEncoder) -> None:
    path = write_recipe(tmp_path, {"official": {"source": str(official(tmp_path / "there", module))}})
    assert_same(zoo.load(f"path:{path}"), module)
    assert zoo.load(f"path:{path}", weights=False).weights is None


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_run_folder_prefers_bundle_then_best_then_last(tmp_path: Path, module: toy.ToyEncoder) -> None:
    run = tmp_path / "runs" / "toy"
    (run / "checkpoints").mkdir(parents=True)
    (run / "recipe.yaml").write_text(yaml.safe_dump(toy.recipe(tmp_path)), "utf-8")
    with pytest.raises(WeightsError, match="neither a bundle"):
        zoo.load(f"path:{run}")
    others = [toy.build(tmp_path, seed=s) for s in (11, 12)]
    checkpoint = {"hyper_parameters": {"_instantiator": "os.system"}, "epoch": 1}
    torch.save(checkpoint | {"state_dict": others[0].state_dict()}, run / "checkpoints" / "last.ckpt")
    assert_same(zoo.load(f"path:{run}"), others[0])
    torch.save(checkpoint | {"state_dict": others[1].state_dict()}, run / "checkpoints" / "best.ckpt")
    assert_same(zoo.load(f"path:{run}"), others[1])
    assert_same(zoo.load(f"path:{run}/checkpoints/last.ckpt"), others[0])
    assert zoo.load(f"path:{run}", weights=False).weights is None
    write_bundle(module, toy.recipe(tmp_path), run / "bundle")
    assert_same(zoo.load(f"path:{run}"), module)


def test_checkpoint_without_recipe(tmp_path: Path, module: toy.ToyEncoder) -> None:
    torch.save({"state_dict": module.state_dict()}, tmp_path / "mine.ckpt")
    with pytest.raises(RecipeError, match=r"no recipe\.yaml.*zoo\.load\('NAME', weights='.*mine\.ckpt'\)"):
        zoo.load(f"path:{tmp_path / 'mine.ckpt'}")
    write_recipe(tmp_path, {"official": {"source": "hf:org/toy", "convert": "not.ours"}})
    assert_same(zoo.load("toy", weights=tmp_path / "mine.ckpt"), module)


def test_places_and_weights_that_contradict_or_are_not_there(tmp_path: Path, module: toy.ToyEncoder) -> None:
    folder = write_bundle(module, toy.recipe(tmp_path), tmp_path / "released")
    with pytest.raises(WeightsError, match="brings its own weights"):
        zoo.load(f"path:{folder}", weights=tmp_path)
    with pytest.raises(WeightsError, match="there is no"):
        zoo.load("path:nowhere")
    write_recipe(tmp_path)
    with pytest.raises(WeightsError, match="there is no 'nowhere' to take the weights of 'toy' from"):
        zoo.load("toy", weights="nowhere")


# ---- strictness ------------------------------------------------------------------------------------------------------


def test_foreign_and_missing_tensors_are_errors(tmp_path: Path, module: toy.ToyEncoder) -> None:
    state = {k: v.clone() for k, v in module.state_dict().items() if k != "linear.bias"}
    save_file(state | {"liner.bias": torch.zeros(4)}, tmp_path / "model.safetensors")
    write_recipe(tmp_path, {"official": {"source": str(tmp_path)}})
    with pytest.raises(WeightsError, match=r"1 unexpected: 'liner\.bias' \(did you mean 'linear\.bias'\?\); 1 missing"):
        zoo.load("toy")


def test_the_objective_may_be_there_or_not(tmp_path: Path, module: toy.ToyEncoder) -> None:
    folder = official(tmp_path / "there", module)
    write_recipe(tmp_path, {"official": {"source": str(folder)}})
    save_file({**_state(folder), "objective.parameter": torch.tensor(3.0)}, folder / "model.safetensors")
    assert_same(zoo.load("toy"), module)
    module.objective = torch.nn.Module()
    module.objective.register_parameter("parameter", torch.nn.Parameter(torch.tensor(0.0)))
    load_weights(module, "toy")
    assert module.objective.parameter.item() == 3.0
    official(folder, toy.build(tmp_path, seed=3))
    load_weights(module, "toy")


def test_layers_of_the_objective_that_the_weights_lack_are_drawn(tmp_path: Path, module: toy.ToyEncoder) -> None:
    """The model was built without drawing; what lay in memory must not be saved or trained further."""
    write_recipe(tmp_path, {"official": {"source": str(official(tmp_path / "there", module))}})
    module.objective = torch.nn.ModuleDict({"linear": torch.nn.Linear(64, 64), "norm": torch.nn.LayerNorm(64)})
    for parameter in module.objective.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    load_weights(module, "toy")
    assert module.objective["norm"].weight.eq(1).all()
    weight = module.objective["linear"].weight  # U(-1/8, 1/8)
    assert weight.abs().max() <= 1 / 8 and abs(weight.std().item() - 1 / 8 / 3**0.5) < 0.005


def _state(folder: Path) -> dict[str, torch.Tensor]:
    return weight_sources.read_state(folder)


@pytest.fixture
def adapted(tmp_path: Path) -> Path:
    """A checkpoint of the trained part, and a recipe whose frozen backbone has published weights."""
    backbone = {"body.weight": torch.eye(3) * 2, "body.bias": torch.ones(3)}
    (tmp_path / "hubs" / "org" / "base").mkdir(parents=True)
    save_file(backbone, tmp_path / "hubs" / "org" / "base" / "model.safetensors")
    part = {"class_path": "toy.ToyBackbone", "init_args": {"pretrained": "hf:org/base@v1"}}
    recipe = toy.recipe(tmp_path, backbone=part, freeze=["backbone"])
    recipe["model"]["class_path"] = "toy.ToyAdapted"
    official(tmp_path / "there", toy.build(tmp_path, seed=3))
    recipe["card"]["weights"] = {"official": {"source": str(tmp_path / "there")}}
    (tmp_path / "recipes" / "adapted.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    return tmp_path / "hubs"


def test_a_frozen_backbone_is_read_from_where_fitting_started(adapted: Path, monkeypatch: Any) -> None:
    with pytest.raises(WeightsError, match="hf download org/base"):
        zoo.load("adapted")
    monkeypatch.setenv("ZOO_WEIGHTS", str(adapted))
    embedder = zoo.load("adapted")
    assert torch.equal(embedder.module.backbone.body.weight, torch.eye(3) * 2)


def test_only_frozen_tensors_may_be_missing(adapted: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("ZOO_WEIGHTS", str(adapted))
    state = _state(tmp_path / "there")
    del state["linear.bias"]
    save_file(state, tmp_path / "there" / "model.safetensors")
    with pytest.raises(WeightsError, match=r"missing: .*linear\.bias"):
        zoo.load("adapted")
    recipe = yaml.safe_load((tmp_path / "recipes" / "adapted.yaml").read_text())
    recipe["model"]["init_args"]["freeze"] = []
    (tmp_path / "recipes" / "adapted.yaml").write_text(yaml.safe_dump(recipe))
    official(tmp_path / "there", toy.build(tmp_path, seed=3))
    with pytest.raises(WeightsError, match=r"2 missing: backbone\.body\.bias, backbone\.body\.weight"):
        zoo.load("adapted")


# ---- recipes that can't be built -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widht": 3}, r"recipe 'toy': model \(ToyEncoder\): unknown option 'widht'; did you mean 'width'\?"),
        ({"chunksize": 3}, r"unknown option 'chunksize'; did you mean 'chunk_size'\?"),
        ({"width": "wide"}, r"model\.width \(ToyEncoder\): wide is not a whole number"),
        (
            {"processor": {"class_path": "toy.ToyProcesor"}},
            r"model\.processor .*toy has no 'ToyProcesor'; did you mean 'ToyProcessor'",
        ),
        ({"processor": {"class_path": "toy.ToyProcessor"}}, r"model\.processor \(ToyProcessor\).*required: words"),
    ],
)
def test_slips_are_named_with_their_place(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_recipe(tmp_path, **change)
    with pytest.raises(RecipeError, match=message) as caught:
        zoo.load("toy", weights=False)
    assert "Union" not in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_unknown_architecture_is_suggested(tmp_path: Path) -> None:
    recipe = toy.recipe(tmp_path)
    recipe["model"]["class_path"] = "VlmEncodr"
    (tmp_path / "recipes" / "toy.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    with pytest.raises(RecipeError, match="there is no class 'VlmEncodr'; did you mean 'VlmEncoder'"):
        zoo.load("toy", weights=False)


# ---- precision, randomness -------------------------------------------------------------------------------------------


def test_dtype(tmp_path: Path, module: toy.ToyEncoder) -> None:
    module.register_buffer("frequencies", torch.tensor([1.0001]), persistent=False)
    folder = write_bundle(module, toy.recipe(tmp_path), tmp_path / "released")
    embedder = zoo.load(f"path:{folder}", dtype="bfloat16")
    assert {p.dtype for p in embedder.module.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32
    assert zoo.load(f"path:{folder}", dtype=torch.float16).module.linear.weight.dtype == torch.float16
    with pytest.raises(ZooError, match="unknown dtype 'int8'"):
        zoo.load(f"path:{folder}", dtype="int8")
    assert torch.get_default_dtype() == torch.float32


def test_loading_leaves_the_random_numbers_alone(tmp_path: Path, module: toy.ToyEncoder) -> None:
    folder = write_bundle(module, toy.recipe(tmp_path), tmp_path / "released")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    zoo.load(f"path:{folder}")
    assert torch.equal(torch.rand(3), expected)


def test_random_values_that_loading_overwrites_are_not_drawn(
    tmp_path: Path, module: toy.ToyEncoder, monkeypatch: Any
) -> None:
    folder = write_bundle(module, toy.recipe(tmp_path), tmp_path / "released")
    drawn: list[bool] = []
    sevens = torch.full((2,), 7.0)
    monkeypatch.setattr(
        torch.nn.Linear,
        "reset_parameters",
        lambda self: drawn.append(not torch.equal(sevens.clone().uniform_(), sevens)),
    )
    assert_same(zoo.load(f"path:{folder}"), module)
    zoo.load(f"path:{folder}", weights=False)
    assert drawn == [False, False, True, True]  # two layers each


PAYLOAD = {"class_path": "logging.FileHandler", "init_args": {"filename": "canary"}}  # making one writes a file


@pytest.mark.parametrize(
    "place",
    ["", "processor", "objective", "optimizer", "scheduler", "text", "vision", "pooling", "head", "adapter"],
)
def test_recipes_make_nothing_but_parts(tmp_path: Path, monkeypatch: Any, place: str) -> None:
    """A stranger's recipe may name any class there is, but only one of the right kind is made."""
    monkeypatch.chdir(tmp_path)
    model: dict[str, Any] = {
        "class_path": "VlmEncoder",
        "init_args": {
            "processor": {"class_path": "VlmProcessor", "init_args": {"tokenizer": "tokenizer.json"}},
            "backbone": {"class_path": "Qwen2VL", "init_args": {"text": dict(tiny.TEXT), "vision": dict(tiny.VISION)}},
        },
    }
    arguments, parts = model["init_args"], model["init_args"]["backbone"]["init_args"]
    if place == "":
        model = PAYLOAD
    elif place in parts:
        parts[place]["more"] = PAYLOAD  # beside the sizes: without them transformers would build its largest model
    else:
        arguments[place] = PAYLOAD
    recipe = toy.recipe(tmp_path) | {"model": model}
    (tmp_path / "recipes" / "bad.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    with contextlib.suppress(ZooError, TypeError, ValueError, AttributeError):
        zoo.load("bad", weights=False)
    assert not (tmp_path / "canary").exists()


def test_what_takes_anything_makes_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    """A parameter typed Any gets what the recipe says, not an object of a class that the recipe names."""
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path, notes={"a": PAYLOAD, "b": [PAYLOAD]})
    embedder = zoo.load("toy", weights=False)
    assert not (tmp_path / "canary").exists()
    assert "FileHandler" not in type(embedder.module.notes["a"]).__name__


def test_building_leaves_the_recipe_as_it_is() -> None:
    """It is written into bundles, and compared."""
    recipe, _ = catalog.find("probvlm-emoji")
    before = yaml.safe_dump(recipe.raw)
    with torch.device("meta"):
        build_model(recipe.raw["model"], recipe.name)
    assert yaml.safe_dump(recipe.raw) == before
