"""Every recipe whose card says `tiny` keeps the contract; new entries are covered without writing a test."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import zoo.testing
from zoo import catalog
from zoo.identity import vector_settings
from zoo.loading import build_model

TINY = [recipe for recipe in catalog.recipes() if recipe.card.tiny]


def test_there_are_tiny_entries() -> None:
    assert {"vlm2vec", "vlm2vec-emoji", "abc-emoji"} <= {recipe.name for recipe in TINY}


def with_own_vectors() -> list[catalog.Recipe]:
    """One entry of all that make their vectors alike: the others differ in how they are trained alone."""
    chosen: dict[str, catalog.Recipe] = {}
    for recipe in TINY:
        chosen.setdefault(json.dumps(vector_settings(recipe.raw), sort_keys=True), recipe)
    return list(chosen.values())


def with_own_graphs() -> list[catalog.Recipe]:
    """All with variances, and one of all others that have the same frozen encoders: these are nearly all of a graph, and
    take a minute to export. The heads behind them are exported in `tests/architectures/test_projector.py`.
    """
    chosen: dict[str, catalog.Recipe] = {}
    for recipe in OWN:
        frozen = recipe.raw["model"].get("init_args", {}).get("encoders")
        alone = not frozen or recipe.card.family == "probabilistic"
        chosen.setdefault(recipe.name if alone else json.dumps(frozen, sort_keys=True), recipe)
    return list(chosen.values())


OWN = with_own_vectors()


def need_packages(recipe: catalog.Recipe) -> None:
    """Skip an entry whose tokenizer comes in a package of the extra `offline` that is not installed here."""
    for module in re.findall(r"package:(\w+)", json.dumps(recipe.raw["model"]["init_args"].get("processor"))):
        pytest.importorskip(module, reason="needs embedding-zoo[offline]")


@pytest.mark.parametrize("recipe", TINY, ids=lambda recipe: recipe.name)
def test_architecture(recipe: catalog.Recipe) -> None:
    need_packages(recipe)
    torch.manual_seed(0)
    module = build_model(recipe.raw["model"], recipe.name)
    assert sum(p.numel() for p in module.parameters()) == recipe.card.parameters
    if recipe in OWN:
        zoo.testing.check_variances(module)
        zoo.testing.check_architecture(module)
    else:
        zoo.testing.check_training(module)


def test_entries_with_variances_are_exported() -> None:
    """Their variances then have to reach the runtime without torch (see `zoo.testing.check_export`)."""
    probabilistic = {recipe.name for recipe in OWN if recipe.card.family == "probabilistic"}
    assert probabilistic and probabilistic <= {recipe.name for recipe in with_own_graphs()}


@pytest.mark.parametrize("recipe", with_own_graphs(), ids=lambda recipe: recipe.name)
def test_export(recipe: catalog.Recipe, tmp_path: Path) -> None:
    need_packages(recipe)
    zoo.testing.check_export(build_model(recipe.raw["model"], recipe.name), tmp_path)
