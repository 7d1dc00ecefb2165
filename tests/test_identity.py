"""What tells the vectors of two models apart, and what must not."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import toy
from torch import nn

import zoo
from zoo import catalog, identity
from zoo.bundle import write_bundle
from zoo.embedder import Embedder
from zoo.identity import fingerprint, vector_settings

# sha256 as the first version gave it (commit 0fc4fd1), in a folder without such files
FIRST = {
    "clip-emoji": "ba1e4566ae6c7442",
    "vlm2vec-emoji": "9cc235f013c1af90",
    "probvlm-emoji": "b9df2cea04ecd9f9",
}


@pytest.mark.parametrize("name", FIRST)
def test_vectors_that_people_have_stay_valid(name: str) -> None:
    assert zoo.load(name).fingerprint().startswith(FIRST[name])


def texts(value: Any) -> set[str]:
    """All texts of a recipe."""
    if isinstance(value, dict):
        return texts(list(value.values()))
    if isinstance(value, list):
        return {text for entry in value for text in texts(entry)}
    return {value} if isinstance(value, str) else set()


def test_files_of_the_working_folder_decide_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the name of every option that any recipe has: `squash`, `bert`, `mean`, names of models."""
    recipes = {recipe.name: recipe.raw for recipe in catalog.recipes()}
    before = {name: vector_settings(raw) for name, raw in recipes.items()}
    monkeypatch.chdir(tmp_path)
    for text in set().union(*(texts(raw["model"]) for raw in recipes.values())):
        if text and "/" not in text and len(text) < 200:
            (tmp_path / text).write_text("another content")
    assert (tmp_path / "squash").is_file() and (tmp_path / "bert").is_file()
    assert {name: vector_settings(raw) for name, raw in recipes.items()} == before


def test_a_file_that_is_named_counts_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the working folder and by its full path; wherever it lies, and whatever it is called."""
    monkeypatch.chdir(tmp_path)
    digest = hashlib.sha256(b"{}").hexdigest()
    for name in ("tokenizer.json", "sub/words.txt", str(tmp_path / "no_ending")):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("{}")
        recipe = {"model": {"class_path": "X", "init_args": {"words": name, "list": [name]}}}
        assert vector_settings(recipe) == {"class_path": "X", "init_args": {"words": digest, "list": [digest]}}


def test_a_bundle_keeps_its_fingerprint_wherever_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_bundle(toy.build(tmp_path), toy.recipe(tmp_path), tmp_path / "b")
    before = zoo.load(f"path:{folder}").fingerprint()
    monkeypatch.chdir(tmp_path)
    embedder = zoo.load("path:b")
    monkeypatch.chdir("/")
    assert embedder.fingerprint() == before


@pytest.fixture
def two_packages(monkeypatch: pytest.MonkeyPatch) -> tuple[type, type]:
    """Plug-ins that call different heads the same."""
    classes = []
    for package in ("first_plugin", "second_plugin"):
        module = ModuleType(package)
        module.Head = type("Head", (nn.Linear,), {"__module__": package})  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, package, module)
        classes.append(module.Head)
    monkeypatch.setattr(identity, "plugin_packages", lambda: ["first_plugin", "second_plugin"])
    return classes[0], classes[1]


def with_head(path: str) -> dict[str, Any]:
    return {"model": {"class_path": "DualEncoder", "init_args": {"head": {"class_path": path}}}}


def test_classes_of_one_name_are_told_apart(two_packages: tuple[type, type]) -> None:
    state = {"head.weight": torch.zeros(2, 2)}
    first, second = (fingerprint(with_head(f"{name}_plugin.Head"), state) for name in ("first", "second"))
    assert first != second
    assert fingerprint(with_head("Head"), state) == first  # the short name of the first
    long, short = (fingerprint(with_head(path), state) for path in ("zoo.nn.pooling.MeanPooling", "MeanPooling"))
    assert long == short


def test_vectors_of_a_plugin_that_people_have_stay_valid(two_packages: tuple[type, type], tmp_path: Path) -> None:
    """The first version told classes apart by their short names: its digest, made by hand."""
    module = toy.build(tmp_path)
    recipe = with_head("first_plugin.Head")
    settings = {"class_path": "DualEncoder", "init_args": {"head": {"class_path": "Head"}}}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(key.encode() + tensor.numpy().tobytes())
    embedder = Embedder(module, recipe, name="toy", weights="a test")
    assert embedder.gave(digest.hexdigest()) and embedder.gave(embedder.fingerprint())
    assert digest.hexdigest() != embedder.fingerprint()
    assert not embedder.gave("0" * 64)
