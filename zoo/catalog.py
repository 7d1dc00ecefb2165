"""The entries of the zoo: name -> recipe -> card. Never imports torch, nor any plug-in.

Recipes are looked for, in this order, in
    1. the zoo itself: `recipes/` of the repository, or their copy inside the installed package;
    2. the folders named by the environment variable ZOO_RECIPES, separated like those of PATH;
    3. `recipes/` inside the package of every installed plug-in (see `zoo.registry`).
The file stem is the public name. Where two files have the same name the first one wins, and the other is left out with
a warning: nobody can change what a name of the zoo means by being installed. What is broken (a plug-in whose package
is gone, a file that is no recipe) is left out with one warning per place.

Names with a prefix, such as `open_clip:ViT-B-32.openai`, are no files: what knows that library writes their recipe when it
is asked for, so they are not listed.
"""

from __future__ import annotations

import fnmatch
import importlib
import os
import warnings
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zoo.errors import RecipeError, UnknownNameError
from zoo.files import user_path
from zoo.recipe import Card, Recipe, read_recipe
from zoo.registry import PluginWarning, describe, plugins

_PACKAGE = Path(__file__).parent
_WRITERS = {"open_clip": "zoo.nn.backbones.open_clip_recipes"}
"""Prefix of a name -> the module whose function `recipe` writes it. By name: it needs the library, and with it torch."""


def list_models(pattern: str = "*", *, family: str | None = None, pretrained: bool | None = None) -> list[str]:
    """Names of the entries. `zoo.load` takes them, with or without the tag of one of their weights (`NAME.TAG`), and also
    `open_clip:CONFIG.TAG` and `path:PLACE`, which are not listed.

    Args:
        pattern: shell-style, over the name: `"*vlm*"`.
        family: only entries of this family, e.g. `"vlm-encoder"`.
        pretrained: True = only entries with released weights, False = only those without.
    """
    return [
        recipe.name
        for recipe in recipes()
        if fnmatch.fnmatch(recipe.name, pattern)
        and family in (None, recipe.card.family)
        and pretrained in (None, bool(recipe.card.weights))
    ]


def show(name: str) -> dict[str, Any]:
    """Everything about one entry, as plain data: name, file, origin, card, and the recipe's text.

    Raises:
        UnknownNameError: no such entry; says which ones are near.
    """
    return find(name)[0].facts()


def find(name: str) -> tuple[Recipe, str | None]:
    """`STEM` or `STEM.TAG` -> the recipe and the tag.

    Raises:
        UnknownNameError: no such recipe, or it has no weights of that tag. RecipeError: the recipe is broken.
    """
    prefix, colon, rest = name.partition(":")
    if colon and prefix in _WRITERS:
        entry, written_tag, raw = importlib.import_module(_WRITERS[prefix]).recipe(rest)
        return Recipe(entry, None, Card.of(raw["card"], name), raw, prefix), written_tag
    known = _index()
    stem, tag = _split(name, known)
    path, origin = known[stem]
    recipe = read_recipe(path, origin)
    if tag is not None and tag not in recipe.card.weights:
        there = ", ".join(recipe.card.weights) or "none"
        raise UnknownNameError(f"weights of '{stem}':", tag, recipe.card.weights, f"(there are {there})")
    return recipe, tag


def find_path(name_or_file: str) -> Path:
    """The recipe file that is meant by a path to it, or by an entry's name.

    Raises:
        UnknownNameError: neither; says which names are near. RecipeError: a file that is not there, of an entry's name.
    """
    path = user_path(name_or_file)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml"):
        if path.stem in _index():
            raise RecipeError(
                f"there is no file '{path}'; the entry of that name is called without folder and ending: {path.stem}"
            )
        raise UnknownNameError("recipe", path.stem, _index(), f"(there is no file '{path}')")
    found = find(name_or_file)[0].path
    if found is None:
        raise RecipeError(
            f"'{name_or_file}' has no file to train from: write a recipe with the towers that `zoo show {name_or_file}` "
            f"prints, and start from the weights (`start: {name_or_file}`)"
        )
    return found


def names() -> list[str]:
    """Names of all entries, read from the file names alone."""
    return sorted(_index())


def recipes() -> list[Recipe]:
    """All entries, by name; broken ones are left out with a warning."""
    found: list[Recipe] = []
    broken: dict[str, list[str]] = {}
    for _, (path, origin) in sorted(_index().items()):
        try:
            found.append(read_recipe(path, origin))
        except RecipeError as error:
            broken.setdefault(origin, []).append(str(error))
    for origin, problems in broken.items():
        others = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        _warn(f"left out a recipe of {origin}: {problems[0]}{others}")
    return found


def _split(name: str, known: dict[str, tuple[Path, str]]) -> tuple[str, str | None]:
    """A stem may hold dots itself (`qwen2.5-vl.official`), so the longest known one counts."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        stem = ".".join(parts[:length])
        if stem in known:
            return stem, ".".join(parts[length:]) or None
    raise UnknownNameError("model", name, known, "(`zoo list` prints all)")


def _index() -> dict[str, tuple[Path, str]]:
    """Name -> (file, who brought it), over the whole search path."""
    found: dict[str, tuple[Path, str]] = {}
    for folder, origin in _folders():
        for path in sorted(folder.glob("[!.]*.yaml")):
            if path.stem not in found:
                found[path.stem] = path, origin
            elif path.resolve() != found[path.stem][0].resolve():
                first = found[path.stem]
                _warn(
                    f"left out {path} of {origin}: {first[1]} has a recipe '{path.stem}' ({first[0]}); rename the file"
                )
    return found


def _folders() -> Iterator[tuple[Path, str]]:
    packaged = _PACKAGE / "_recipes"
    yield packaged if packaged.is_dir() else _PACKAGE.parent / "recipes", "zoo"
    for entry in filter(None, os.environ.get("ZOO_RECIPES", "").split(os.pathsep)):
        folder = Path(entry).expanduser()
        if folder.is_dir():
            yield folder, "ZOO_RECIPES"
        else:
            _warn(f"ZOO_RECIPES names '{folder}', which is no folder")
    for point in plugins():
        package = point.value.partition(":")[0].partition(".")[0]
        spec = _spec(package)
        if spec is None:
            _warn(f"the plug-in {describe(point)} is left out: its package '{package}' is not there")
            continue
        for location in spec.submodule_search_locations or ():
            yield Path(location) / "recipes", f"the plug-in {describe(point)}"


def _spec(package: str) -> ModuleSpec | None:
    """Where a top-level package lies (asking for a submodule would import its parents)."""
    try:
        return find_spec(package)
    except (ImportError, ValueError):
        return None


def _warn(message: str) -> None:
    warnings.warn(message, PluginWarning, stacklevel=3)
