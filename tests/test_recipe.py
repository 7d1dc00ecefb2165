"""Recipes that are made to stop whoever reads them, and parts that can't be built: one line, at once."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import toy
import yaml
from safetensors.torch import save_file

import zoo
from zoo import catalog
from zoo.bundle import MANIFEST, read_bundle, write_bundle
from zoo.cli import main
from zoo.command_line import read_command_line
from zoo.convert.transformers_folder import load_folder
from zoo.data.latent_folder import read_manifest
from zoo.errors import RecipeError, WeightsError, ZooError
from zoo.loading import build_model
from zoo.recipe import read_mapping
from zoo.vectors.files import read_facts, table_of
from zoo.weights import sha256

LEVELS = "".join(f"  l{i + 1}: &l{i + 1} [{', '.join([f'*l{i}'] * 10)}]\n" for i in range(9))
MERGED = "".join(f"  m{i + 1}: &m{i + 1} {{<<: [{', '.join([f'*m{i}'] * 10)}]}}\n" for i in range(9))
HOSTILE = {
    "aliases that explode": (f"card:\n  l0: &l0 [x]\n{LEVELS}", "more than 100,000 values"),
    "merged keys that explode": (f"card:\n  m0: &m0 {{a: 1}}\n{MERGED}", "more than 100,000 values"),
    "a list that holds itself": ("card: {notes: &a [*a]}\n", "'a' holds itself"),
    "a mapping that holds itself": ("card: &a {notes: {title: *a}}\n", "'a' holds itself"),
    "a long number": (f"card: {{parameters: {'9' * 5000}}}\n", "a number of 5,000 digits"),
    "a long number to the base 60": (f"card: {{parameters: {'1:' * 5000}1}}\n", "a number of 10,001 digits"),
    "a long fraction": (f"card: {{parameters: .{'9' * 5000}}}\n", "a number of 5,001 digits"),
    "lists in lists": (f"card: {{notes: {'[' * 3000}{']' * 3000}}}\n", "level"),  # libyaml may say it first
    "mappings in mappings": ("".join(f"{' ' * i}a:\n" for i in range(3000)), "more than 100 levels"),
    "lists in lists, as blocks": (f"card:\n {'- ' * 3000}x\n", "more than 100 levels"),
}


@pytest.fixture(params=HOSTILE.values(), ids=HOSTILE.keys())
def hostile(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Text, and what is said of it."""
    return request.param  # type: ignore[no-any-return]


def assert_told(error: ZooError, message: str, began: float) -> None:
    assert time.monotonic() - began < 5
    assert message in str(error) and "\n" not in str(error) and len(str(error)) < 500


def test_a_recipe_is_refused(tmp_path: Path, hostile: tuple[str, str]) -> None:
    text, message = hostile
    (tmp_path / "bad.yaml").write_text(text, "utf-8")
    for read in (
        lambda: zoo.load(f"path:{tmp_path / 'bad.yaml'}"),
        lambda: read_command_line("fit", ["--config", "bad.yaml"]),
    ):
        began = time.monotonic()
        with pytest.MonkeyPatch.context() as patch, pytest.raises(RecipeError) as caught:
            patch.chdir(tmp_path)
            read()
        assert_told(caught.value, message, began)


def test_a_bundle_is_refused(tmp_path: Path, hostile: tuple[str, str]) -> None:
    text, message = hostile
    folder = write_bundle(toy.build(tmp_path), toy.recipe(tmp_path), tmp_path / "b")
    (folder / "recipe.yaml").write_text(text, "utf-8")
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    manifest["files"]["recipe.yaml"]["sha256"] = sha256(folder / "recipe.yaml")
    (folder / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    began = time.monotonic()
    with pytest.raises(RecipeError) as caught:
        zoo.load(f"path:{folder}")
    assert_told(caught.value, message, began)


def test_others_are_listed_all_the_same(
    tmp_path: Path, hostile: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.yaml").write_text(hostile[0], "utf-8")
    monkeypatch.setenv("ZOO_RECIPES", str(tmp_path))
    with pytest.warns(match="left out a recipe of ZOO_RECIPES"):
        assert "clip-emoji" in zoo.list_models()


@pytest.mark.parametrize(
    "text",
    [
        '{"format": ' + "[" * 3000 + "]" * 3000 + "}",
        '{"format": ' + "9" * 5000 + "}",
        '{"format": 1e999, "files": {}}',
        "[]",
    ],
)
def test_manifests_that_stop_the_reader_are_refused(tmp_path: Path, text: str) -> None:
    folder = write_bundle(toy.build(tmp_path), toy.recipe(tmp_path), tmp_path / "b")
    (folder / MANIFEST).write_text(text, "utf-8")
    with pytest.raises(WeightsError, match=r"bundle\.json is damaged") as caught:
        read_bundle(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_the_largest_recipes_are_far_from_the_limits() -> None:
    for recipe in catalog.recipes():
        assert recipe.path is not None
        events = list(yaml.parse(recipe.path.read_text("utf-8")))
        assert len(events) < 2000, recipe.name


def test_aliases_that_do_no_harm_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: &b {x: 1}\nmore: {<<: *b, y: [*b, *b]}\nlong: 'a' \n", "utf-8")
    assert read_mapping(tmp_path / "a.yaml")["more"] == {"x": 1, "y": [{"x": 1}, {"x": 1}]}


# ---- what constructors raise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "arguments", "message"),
    [
        ("text", {"kind": "../../evil"}, r"unknown kind of transformers model '\.\./\.\./evil'"),
        ("text", {"config": {"hidden_dropout_prob": 5}}, "TransformersText can't be built: dropout probability"),
        ("text", {"config": {"hidden_size": -4}}, "TransformersText can't be built: .*negative dimension -4"),
        ("text", {"config": {"num_attention_heads": 0}}, "TransformersText can't be built: ZeroDivisionError"),
        ("image", {"arguments": {"norm_layer": "evil"}}, "TimmImage can't be built: KeyError: 'evil'"),
        ("image", {"arguments": {"checkpoint_path": "w.pth"}}, "name the weights under `pretrained`"),
        ("image_head", {"width": -1}, "Projection can't be built: .*negative dimension"),
    ],
)
def test_a_part_that_cannot_be_built_is_one_line(part: str, arguments: dict[str, Any], message: str) -> None:
    recipe = catalog.find("clip")[0]
    model = yaml.safe_load(yaml.safe_dump(recipe.raw["model"]))
    model["init_args"][part]["init_args"] |= arguments
    with pytest.raises(ZooError, match=message) as caught:
        build_model(model, "clip")
    assert "\n" not in str(caught.value)


def test_the_command_says_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text(HOSTILE["a list that holds itself"][0], "utf-8")
    assert main(["fit", "--config", str(tmp_path / "bad.yaml")]) == 2
    assert "holds itself" in capsys.readouterr().err


# ---- what is kept as JSON -------------------------------------------------------------------------------------------

DEEP = "[" * 3000 + "]" * 3000


def test_configs_of_weights_that_are_too_deep(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(DEEP)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"config\.json can't be read"):
        _ = load_folder(tmp_path).config


@pytest.mark.parametrize("facts", [DEEP, "{", "3", "9" * 5000])
def test_files_of_vectors_that_say_nothing_of_them(tmp_path: Path, facts: str) -> None:
    good = table_of(["a"], [""], ["b"], np.ones((1, 2), np.float32), {"model": "x"})
    bad = good.replace_schema_metadata({next(iter(good.schema.metadata)): facts})
    pq.write_table(bad, tmp_path / "a.parquet")
    with pytest.raises(ZooError, match=r"a\.parquet can't be read as a file of vectors"):
        read_facts(tmp_path / "a.parquet")


def test_manifests_of_latents_that_are_too_deep(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(DEEP)
    with pytest.raises(ZooError, match=r"manifest\.json can't be read"):
        read_manifest(tmp_path)
