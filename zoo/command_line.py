"""A command line of `zoo fit`, `validate`, `test` or `predict`, read as layers before the parser sees it.

Layers are recipe files (`--config`) and options, in their order; a later one counts. What the parser can't do is done
here, by putting further `--config` texts between them:

* `--config NAME` becomes the file of that entry, and the files that a bundle's recipe names are found beside it;
* `null` sets a value deep in `model` or `data` to nothing (jsonargparse would hand on the word "None");
* what belonged to training sources or validation tasks that a later layer replaces goes with them;
* `--start` without a `model` brings the model of what it starts from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo import catalog
from zoo.bundle import RECIPE, bundle_around
from zoo.errors import RecipeError
from zoo.files import user_path
from zoo.loading import recipe_of
from zoo.recipe import read_mapping

_CONFIG = ("--config", "-c")
_NULLS = ("null", "Null", "NULL", "~")
_MEAN = "val/primary"  # measured whatever the tasks are
_UNSTATED = Path("run.yaml")


@dataclass
class CommandLine:
    """arguments: for the parser. recipe: the first recipe file. name: of the run.

    stale: keys of the card that only layers state which a later one gave other data or another start.
    bundle: the folder of the last bundle whose recipe is among the layers; its data and trainer are to run no code.
    """

    arguments: list[str]
    recipe: Path
    name: str
    stale: frozenset[str] = frozenset()
    bundle: Path | None = None


@dataclass
class _Layer:
    """A recipe file, or one option: its arguments for the parser, and the values that it gives by dotted key."""

    arguments: list[str]
    values: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None
    name: str = ""
    builds: bool = False
    bundle: Path | None = None


def read_command_line(subcommand: str, argv: Sequence[str]) -> CommandLine:
    """See the module.

    Raises:
        UnknownNameError: `--config` names no entry. RecipeError: a file can't be read, or names files of a bundle that
            it does not lie in. WeightsError: `--start` leads nowhere, or a bundle is damaged.
    """
    layers = [_layer(option, value, raw) for option, value, raw in _options(argv)]
    files = [layer.file for layer in layers if layer.file is not None]
    start = ""
    for layer in layers:
        start = str(layer.values.get("start", start) or "")
    arguments: list[str] = []
    stale: set[str] = set()
    name = next((layer.name for layer in layers if layer.file is not None), "")
    if subcommand == "fit" and start and not any(layer.builds for layer in layers):
        begun, recipe = recipe_of(_place(start))
        name = name or begun
        arguments = _config({key: recipe[key] for key in ("card", "model") if key in recipe})
        restated = {key.removeprefix("card.") for layer in layers for key in layer.values}
        stale = set(recipe.get("card", {})) - restated
    stale |= _written_before(layers)
    known: dict[str, Any] = {}
    stated = {key for layer in layers if layer.file is None for key in layer.values}
    for layer in layers:
        arguments += layer.arguments
        gone = _outdated(layer.values, known, set(layer.values) | (stated if layer.file is None else set()))
        if gone:
            arguments += _config(gone)
        known |= layer.values | dict(_flat(gone))
    if start and _place(start) != start:
        arguments += ["--start", _place(start)]
    bundle = next((layer.bundle for layer in reversed(layers) if layer.bundle is not None), None)
    return CommandLine(arguments, files[0] if files else _UNSTATED, name or _UNSTATED.stem, frozenset(stale), bundle)


def _options(argv: Sequence[str]) -> Iterator[tuple[str, str | None, list[str]]]:
    """Option, its value if it has one, and both as they were written."""
    position = 0
    while position < len(argv):
        option, equals, value = argv[position].partition("=")
        following = argv[position + 1] if position + 1 < len(argv) else None
        if not option.startswith("-") or equals:
            yield option, value if equals else None, [argv[position]]
            position += 1
        elif following is None or following.startswith("--"):
            yield option, None, [option]
            position += 1
        else:
            yield option, following, [option, following]
            position += 2


def _layer(option: str, value: str | None, raw: list[str]) -> _Layer:
    if value is None or not option.startswith("-"):
        return _Layer(raw)
    if option in _CONFIG:
        return _file(catalog.find_path(value))
    key = option.removeprefix("--")
    if value in _NULLS and key.startswith(("model.", "data.")):
        return _Layer(_config(_nested(key, None)), {_short(key): None})
    return _Layer(raw, {_short(key): value}, builds=key == "model")


def _file(path: Path) -> _Layer:
    content = read_mapping(path)
    builds = isinstance(content.get("model"), Mapping) and "class_path" in content["model"]
    # a recipe that lies in a run is called like the run
    layer = _Layer(["--config", str(path)], dict(_flat(content)), path, path.stem, builds)
    if path.name == RECIPE and (path.parent / "checkpoints").is_dir():
        layer.name = path.absolute().parent.name
    if (bundle := bundle_around(path)) is not None:
        layer.name, recipe = recipe_of(f"path:{bundle}")
        layer.arguments, layer.bundle = _config(recipe), bundle
    elif _names_bundle_files(content):
        raise RecipeError(
            f"{path} names files of a bundle (bundle:...), but does not lie in one; copy the whole bundle"
        )
    return layer


def _names_bundle_files(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_names_bundle_files, value.values()))
    if isinstance(value, list):
        return any(map(_names_bundle_files, value))
    return isinstance(value, str) and value.startswith("bundle:")


def _outdated(new: Mapping[str, Any], known: Mapping[str, Any], stated: set[str]) -> dict[str, Any]:
    """What a layer takes from earlier ones: shares of sources that it replaces, and a refit's limit where it has tasks; and
    what all tasks measure decides which step is the best, where its own do not measure what an earlier one wanted.
    """
    gone: dict[str, Any] = {}
    if "data.train" in new and known.get("data.weights") is not None and "data.weights" not in stated:
        gone |= _nested("data.init_args.weights", None)
    own = known.get("best.monitor", _MEAN) != _MEAN and not {"best.monitor", "best.fallback"} & stated
    if new.get("data.val") and own:
        gone["best"] = {"fallback": _MEAN}
    elif "best.monitor" in new and known.get("best.fallback") and "best.fallback" not in stated:
        gone["best"] = {"fallback": ""}
    unmeasured = known.get("trainer.limit_val_batches") == 0
    if new.get("data.val") and unmeasured and "trainer.limit_val_batches" not in stated:
        trainer: dict[str, Any] = {"limit_val_batches": None}
        if not {"trainer.val_check_interval", "trainer.check_val_every_n_epoch"} & stated:
            trainer["check_val_every_n_epoch"] = 1
        gone["trainer"] = trainer
    return gone


def _written_before(layers: Sequence[_Layer]) -> set[str]:
    """Keys of the card that no layer states from the last one on that gives training data or a start."""
    changes = [i for i, one in enumerate(layers) if any(k.startswith(("data.train", "start")) for k in one.values)]
    last = max(changes, default=0)
    stated = [{key.split(".")[1] for key in layer.values if key.startswith("card.")} for layer in layers]
    before, since = set().union(*stated[:last]), set().union(*stated[last:])
    return before - since


def _flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of a recipe without `init_args` -> values, those of mappings on the way included."""
    for name, entry in value.items():
        key = _short(f"{before}{name}")
        if name != "init_args":
            yield key, entry
        if isinstance(entry, Mapping):
            yield from _flat(entry, f"{key}." if key else "")


def _short(key: str) -> str:
    return ".".join(part for part in key.split(".") if part != "init_args")


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    found: dict[str, Any] = value
    return found


def _config(content: Mapping[str, Any]) -> list[str]:
    return ["--config", json.dumps(content)]


def _place(start: str) -> str:
    """What `zoo.load` takes: a folder or file that is called like no entry may be named without its `path:`."""
    if ":" in start or start in catalog.names():
        return start
    return f"path:{start}" if "/" in start or user_path(start).exists() else start
