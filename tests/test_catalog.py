"""Names -> recipes -> cards, the search path, and plug-ins that do not work."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zoo
from zoo import catalog, registry
from zoo.errors import RecipeError, UnknownNameError, ZooError
from zoo.recipe import Card, read_recipe
from zoo.registry import PluginWarning

RECIPE = """\
card:
  title: A small encoder
  family: dual-encoder
  license: MIT
  weights:
    official: {source: "hf:org/repo@v1", sha256: "%s"}
    emoji: {source: "packaged:small-emoji"}
model:
  class_path: Small
  init_args: {lr: 1e-3, day: 2026-11-23}
""" % ("a" * 64)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for the zoo's own recipes: `first.yaml`."""
    package = tmp_path / "zoo"
    (package / "_recipes").mkdir(parents=True)
    (package / "_recipes" / "first.yaml").write_text(RECIPE)
    monkeypatch.setattr(catalog, "_PACKAGE", package)
    return package / "_recipes"


@pytest.fixture
def folder(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of recipes on the search path that holds `small.yaml`."""
    place = tmp_path / "recipes"
    place.mkdir()
    (place / "small.yaml").write_text(RECIPE)
    monkeypatch.setenv("ZOO_RECIPES", str(place))
    return place


@pytest.fixture
def install(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Install a plug-in distribution, as far as Python can tell: `install(name, value, files)`."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def _install(name: str, value: str, files: dict[str, str]) -> Path:
        info = site / f"{name.replace('-', '_')}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[zoo.plugins]\n{name} = {value}\n")
        for path, text in files.items():
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            (site / path).write_text(text)
        return site

    registry.load_plugins.cache_clear()
    yield _install
    registry.load_plugins.cache_clear()


def warned(call: Any) -> tuple[Any, list[str]]:
    """The result of `call()` and the messages of the PluginWarnings that it gave."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    return result, [str(w.message) for w in caught if issubclass(w.category, PluginWarning)]


# ---- names -----------------------------------------------------------------------------------------------------------


def test_find_by_stem_and_tag(folder: Path) -> None:
    recipe, tag = catalog.find("small")
    assert (recipe.name, recipe.path, tag) == ("small", folder / "small.yaml", None)
    assert recipe.card.weights["official"].sources == ["hf:org/repo@v1"]
    assert catalog.find("small.emoji")[1] == "emoji"


def test_a_stem_may_hold_dots(folder: Path) -> None:
    (folder / "small2.5-vl.yaml").write_text(RECIPE)
    assert catalog.find("small2.5-vl")[0].name == "small2.5-vl"
    recipe, tag = catalog.find("small2.5-vl.official")
    assert (recipe.name, tag) == ("small2.5-vl", "official")


@pytest.mark.parametrize(
    ("name", "kind", "suggestion"),
    [("smal", "model", "small"), ("Small", "model", "small"), ("small.oficial", "weights", "official")],
)
def test_unknown_names_suggest_the_nearest(folder: Path, name: str, kind: str, suggestion: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"unknown {kind}.*did you mean '{suggestion}'") as caught:
        catalog.find(name)
    assert isinstance(caught.value, KeyError) and isinstance(caught.value, ZooError)


def test_list_models_filters(folder: Path) -> None:
    (folder / "bare-vlm.yaml").write_text(
        "card: {title: t, family: vlm-encoder, license: MIT}\nmodel: {class_path: X}\n"
    )
    assert zoo.list_models() == ["bare-vlm", "first", "small"]
    assert zoo.list_models("*vlm*") == ["bare-vlm"]
    assert zoo.list_models(family="dual-encoder") == ["first", "small"]
    assert zoo.list_models(pretrained=True) == ["first", "small"]
    assert zoo.list_models(pretrained=False) == ["bare-vlm"]
    assert zoo.list_models("*vlm*", pretrained=True) == []


def test_show_gives_plain_data(folder: Path) -> None:
    facts = zoo.show("small")
    assert facts["card"]["weights"]["official"]["source"] == "hf:org/repo@v1"
    assert facts["recipe"] == RECIPE and facts["origin"] == "ZOO_RECIPES"


def test_find_path_takes_files_and_names(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(RECIPE)
    assert catalog.find_path(str(mine)) == mine
    assert catalog.find_path("small") == folder / "small.yaml"
    with pytest.raises(UnknownNameError, match="did you mean 'small'"):
        catalog.find_path("smal")
    with pytest.raises(
        UnknownNameError, match=r"recipe 'smal'; did you mean 'small'\? \(there is no file 'x/smal.yaml'"
    ):
        catalog.find_path("x/smal.yaml")
    with pytest.raises(RecipeError, match=r"no file 'x/small.yaml'; the entry of that name .*: small$"):
        catalog.find_path("x/small.yaml")


# ---- the search path -------------------------------------------------------------------------------------------------


def test_the_zoo_s_own_recipes_are_all_sound() -> None:
    recipes, messages = warned(catalog.recipes)
    assert recipes and not messages
    assert [r.name for r in recipes] == catalog.names()
    for recipe in recipes:
        assert recipe.name == recipe.name.lower() and "_" not in recipe.name and " " not in recipe.name


def test_a_name_that_is_taken_is_left_out_with_a_warning(folder: Path, tmp_path: Path, monkeypatch) -> None:
    second = tmp_path / "second"
    second.mkdir()
    (second / "small.yaml").write_text(RECIPE.replace("A small encoder", "An impostor"))
    monkeypatch.setenv("ZOO_RECIPES", f"{folder}{os.pathsep}{second}")
    (recipe, _), messages = warned(lambda: catalog.find("small"))
    assert recipe.card.title == "A small encoder"
    assert len(messages) == 1 and str(second / "small.yaml") in messages[0] and "rename" in messages[0]


def test_a_folder_that_is_not_there_is_one_warning(folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("ZOO_RECIPES", f"{folder}{os.pathsep}{folder}-gone")
    found, messages = warned(catalog.names)
    assert found == ["first", "small"] and len(messages) == 1 and f"{folder}-gone" in messages[0]


def test_hidden_files_are_no_recipes(folder: Path) -> None:
    (folder / "._small.yaml").write_bytes(b"\0\5\x16\7")  # macOS
    found, messages = warned(catalog.list_models)
    assert found == ["first", "small"] and not messages


def test_broken_files_are_one_warning_per_place(folder: Path) -> None:
    (folder / "torn.yaml").write_text("card: {title: [")
    (folder / "empty.yaml").write_text("")
    (folder / "typo.yaml").write_text(RECIPE.replace("license", "licence"))
    found, messages = warned(catalog.list_models)
    assert found == ["first", "small"]
    assert len(messages) == 1 and "ZOO_RECIPES" in messages[0] and "and 2 more" in messages[0]
    with pytest.raises(RecipeError, match=r"torn\.yaml is no valid YAML"):
        catalog.find("torn")


# ---- plug-ins --------------------------------------------------------------------------------------------------------


def test_a_plugin_brings_recipes_without_being_imported(install) -> None:
    install("kind-zoo", "kind_zoo", {"kind_zoo/__init__.py": "raise SystemExit", "kind_zoo/recipes/kind.yaml": RECIPE})
    (recipe, _), messages = warned(lambda: catalog.find("kind"))
    assert "kind-zoo" in recipe.origin and "1.5" in recipe.origin and not messages
    assert "kind_zoo" not in sys.modules


def test_a_plugin_can_not_replace_an_entry(install) -> None:
    install("bad-zoo", "bad_zoo", {"bad_zoo/__init__.py": "", "bad_zoo/recipes/first.yaml": RECIPE})
    (recipe, _), messages = warned(lambda: catalog.find("first"))
    assert recipe.origin == "zoo" and len(messages) == 1 and "bad-zoo" in messages[0]


def test_a_plugin_whose_package_is_gone_is_one_warning(install) -> None:
    install("lost-zoo", "lost_zoo.deep:thing", {})
    found, messages = warned(catalog.list_models)
    assert found == ["first"]
    assert len(messages) == 1 and "lost-zoo" in messages[0] and "'lost_zoo'" in messages[0]


def test_a_plugin_with_broken_recipes_is_one_warning(install) -> None:
    files = {"torn_zoo/__init__.py": "", "torn_zoo/recipes/a.yaml": "{", "torn_zoo/recipes/b.yaml": "- 1"}
    install("torn-zoo", "torn_zoo", files)
    found, messages = warned(catalog.list_models)
    assert found == ["first"]
    assert len(messages) == 1 and "torn-zoo" in messages[0]


def test_a_plugin_that_fails_at_import_is_one_warning_and_loaded_once(install) -> None:
    install("sad-zoo", "sad_zoo", {"sad_zoo/__init__.py": "raise ValueError('out of cheese')"})
    _, messages = warned(registry.load_plugins)
    assert len(messages) == 1
    assert all(word in messages[0] for word in ("sad-zoo", "1.5", "ValueError", "out of cheese"))
    assert warned(registry.load_plugins)[1] == []


def test_a_plugin_registers_its_architecture(install, monkeypatch) -> None:
    monkeypatch.setattr(registry, "_architectures", {})
    code = "import zoo\n\n@zoo.register\nclass FromOutside:\n    pass\n"
    install("good-zoo", "good_zoo", {"good_zoo/__init__.py": code})
    registry.load_plugins()
    assert registry._architectures["FromOutside"].__module__ == "good_zoo"


# ---- the registry ----------------------------------------------------------------------------------------------------


def test_register_returns_the_class_and_refuses_a_second_of_that_name(monkeypatch) -> None:
    monkeypatch.setattr(registry, "_architectures", {})

    def one() -> type:
        class Twice: ...

        return Twice

    first, again = one(), one()  # the same class written again, as a notebook cell that runs twice
    assert registry.register(first) is first
    assert registry.register(again) is again

    class Twice: ...

    with pytest.raises(ZooError, match=r"two architectures are called 'Twice'.*one\.<locals>\.Twice.*rename"):
        registry.register(Twice)


def test_architectures_finds_those_of_the_zoo() -> None:
    assert "VlmEncoder" in registry.architectures()


# ---- cards -----------------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {"title": "t", "family": "projector", "license": "MIT"}


def test_the_least_card() -> None:
    card = Card.of(GOOD, "x.yaml")
    assert (card.tiny, card.parameters, card.weights, card.languages) == (False, None, {}, [])


def test_a_plugin_may_bring_a_family_of_its_own() -> None:
    assert Card.of(GOOD | {"family": "late-interaction"}, "x.yaml").family == "late-interaction"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licence": "MIT"}, "unknown key 'licence'; did you mean 'license'"),
        ({"zzz": 1}, "unknown key 'zzz'; there are title"),
        ({"title": None}, "lacks title"),
        ({"title": 7}, "card.title is 7, not text"),
        ({"family": "dual_encoder"}, "did you mean 'dual-encoder'"),
        ({"paper": "2410.05160"}, "is not arXiv:NUMBER"),
        ({"parameters": "2B"}, "card.parameters is '2B', not a whole number"),
        ({"parameters": True}, "card.parameters is True, not a whole number"),
        ({"tiny": "yes"}, "not true or false"),
        ({"languages": ["en", False]}, "put it in quotes"),
        ({"languages": "en"}, "not a list"),
        ({"results": [1]}, "not a mapping"),
        ({"weights": ["a"]}, "card.weights is not a mapping"),
        ({"weights": {"a": "hf:x/y"}}, "card.weights.a is not a mapping"),
        ({"weights": {"a": {"sha256": "0" * 64}}}, "card.weights.a lacks source"),
        ({"weights": {"a": {"source": "hf:x"}}}, "'hf:x' is no hub address"),
        ({"weights": {"a": {"source": ["hf:x/y", "hf:y"]}}}, "'hf:y' is no hub address"),
        ({"weights": {"a": {"source": "hf:x/y", "base": "hf:z"}}}, "'hf:z' is no hub address"),
        ({"weights": {"a": {"source": "hf:x/y", "sha256": "abc"}}}, "'abc' is not a sha256"),
        ({"weights": {"a": {"source": "hf:x/y", "sha256": {"m": "abc"}}}}, "'abc' is not a sha256"),
        ({"weights": {"a": {"source": "hf:x/y", "revison": "v1"}}}, "unknown key 'revison'"),
    ],
)
def test_bad_cards_name_file_key_and_fix(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Card.of(GOOD | change, "x.yaml")
    assert message in str(caught.value) and "x.yaml" in str(caught.value)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_values_are_read_as_jsonargparse_reads_them(folder: Path) -> None:
    from jsonargparse import ArgumentParser

    numbers = "[1e-3, 1.5e-4, .5, -2., 1_000, 12:30, 2026-11-23, .inf, 0x10, 5e-05, +1.0, 1.e5]"
    (folder / "n.yaml").write_text(RECIPE + f"numbers: {numbers}\n")
    ours = read_recipe(folder / "n.yaml").raw["numbers"]
    parser = ArgumentParser()
    parser.add_argument("--numbers", type=list)
    assert ours == parser.parse_string(f"numbers: {numbers}").numbers
    assert ours[0] == 0.001 and ours[6] == "2026-11-23"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff\xfe\x00", "can't be read"),
        (b"card: {a: 1\nmodel: {}", "no valid YAML"),
        (b"just a text", "must be a mapping"),
        (RECIPE.replace("model:", "modle:").encode(), "no `model:` mapping; is 'modle' a slip"),
        (RECIPE.replace("card:", "crad:").encode(), "no `card:` mapping; is 'crad' a slip"),
        (RECIPE.replace("  license: MIT", "  license: MIT\n  license: BSD").encode(), "'license' stands twice"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(text)
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    assert message in str(caught.value) and "bad.yaml" in str(caught.value)


def test_a_file_that_is_gone() -> None:
    with pytest.raises(RecipeError, match=r"gone\.yaml can't be read"):
        read_recipe(Path("gone.yaml"))
