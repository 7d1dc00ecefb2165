"""Every small recipe as the command takes it: all of its sections parse, its data can be had, and it trains a step."""

from __future__ import annotations

import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.cli import LightningArgumentParser

import zoo
import zoo.testing
from zoo import catalog
from zoo.commands import fit
from zoo.data.datamodule import EmbeddingData
from zoo.recipe import Card, Recipe

SMALL = [recipe for recipe in catalog.recipes() if recipe.card.tiny and recipe.origin == "zoo"]
BY_NAME = {recipe.name: recipe for recipe in SMALL}
ALWAYS = ("clip", "vlm2vec")  # the others train a step with -m slow


class Stopped(Exception):
    """Raised where the command would build what it parsed."""


@pytest.fixture(scope="module")
def parser() -> LightningArgumentParser:
    """The parser of `zoo fit`."""
    built: list[fit.ZooCLI] = []

    def stop(self: fit.ZooCLI) -> None:
        built.append(self)
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit.ZooCLI, "instantiate_classes", stop)
        with pytest.raises(Stopped):
            fit.run_lightning("fit", ["--config", str(BY_NAME["clip"].path)])
    found: LightningArgumentParser = built[0].parser
    return found


@pytest.mark.parametrize("recipe", SMALL, ids=lambda recipe: recipe.name)
def test_all_sections_parse_and_the_data_is_there(recipe: Recipe, parser: LightningArgumentParser) -> None:
    settings = parser.parse_args(["fit", "--config", str(recipe.path)])
    Card.of(settings.fit.card, recipe.name)
    assert settings.fit.trainer.max_steps > 0 or settings.fit.trainer.max_epochs > 0
    assert set(recipe.raw) <= set(vars(settings.fit)), "a section that the command does not have"
    data = build(settings.fit.data)
    samples = [source.draw(0, random.Random(0)) for source in data.train]
    assert all(len(sample.views) > 1 for sample in samples)
    assert any(source.tasks() for source in data.val)


def build(settings: Any) -> EmbeddingData:
    """The data module that a parsed section `data` describes."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(EmbeddingData, "data", required=True)
    found: EmbeddingData = parser.instantiate(parser.parse_object({"data": settings.as_dict()})).data
    return found


def chosen(recipe: Recipe) -> Any:
    """Slow, but for `ALWAYS`."""
    return pytest.param(recipe, id=recipe.name, marks=() if recipe.name in ALWAYS else pytest.mark.slow)


@pytest.mark.parametrize("recipe", [chosen(recipe) for recipe in SMALL])
def test_a_step_and_its_bundle(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`zoo fit` for one step on small batches; what its bundle gives is what was trained."""
    check_start(recipe)
    trained: list[Any] = []
    after_fit = fit.ZooCLI.after_fit

    def keep(self: fit.ZooCLI) -> None:
        after_fit(self)
        trained.append(self.model)

    monkeypatch.setattr(fit.ZooCLI, "after_fit", keep)
    run = tmp_path / recipe.name
    options = {
        "run_dir": run,
        "trainer.max_steps": 1,
        "trainer.limit_val_batches": 0,
        "trainer.enable_progress_bar": "false",
        "trainer.logger": "false",
        "data.init_args.batch_size": 16,
        "data.init_args.num_workers": 0,
        "data.init_args.val": "[]",
        "data.init_args.test": "[]",
        "cache.enabled": "false",
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    assert fit.run_lightning("fit", ["--config", str(recipe.path), *arguments]) == 0
    (module,) = trained
    items = zoo.testing.accepted_items(module)
    again = zoo.load(f"path:{run / 'bundle'}", device="cpu").module
    expected, found = (zoo.testing.embed_items(one, items).vector for one in (module.cpu(), again))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def check_start(recipe: Recipe) -> None:
    """Skip where the weights that fitting starts from are not on this machine: those of a run, or of an extra."""
    for place in pretrained(recipe.raw["model"]):
        kind, _, rest = place.partition(":")
        if kind == "package" and find_spec(rest.partition("/")[0]) is None:
            pytest.skip(f"{place} is not installed (embedding-zoo[offline])")
        if kind == "path" and not Path(rest).exists():
            pytest.skip(f"{rest} is what another run of this repository writes")


def pretrained(part: Any) -> list[str]:
    """All places that a recipe's model starts from."""
    if isinstance(part, list):
        return [place for entry in part for place in pretrained(entry)]
    if not isinstance(part, dict):
        return []
    own = [part["pretrained"]] if isinstance(part.get("pretrained"), str) else []
    return own + [place for entry in part.values() for place in pretrained(entry)]
