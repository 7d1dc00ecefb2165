"""Which weights are on this disk already. Asks what `zoo.load` would ask, with the network switched off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoo.errors import ZooError
from zoo.recipe import Recipe
from zoo.weights import fetch_file, fetch_folder


def local_copy(source: str) -> Path | None:
    """The folder or file of a source (see `zoo.weights`), or None if it would have to be fetched or is not there."""
    fetch = fetch_file if source.startswith("hf:") and source.count(":") > 1 else fetch_folder
    try:
        if not source.startswith("hf:"):
            return fetch(source)
        with _offline():
            return fetch(source)
    except (ZooError, ImportError):  # ImportError: the hub's library itself is missing
        return None


def missing_sources(recipe: Recipe, tag: str) -> list[str]:
    """What `zoo.load("NAME.TAG")` would have to fetch: weights, their base, files that the model's parts name."""
    weights = recipe.card.weights[tag]
    needed = [*weights.sources, *([weights.base] if weights.base else [])]
    needed += _named(recipe.raw["model"], "package:")  # frozen encoders, which are in no bundle
    if any(source.startswith("hf:") for source in weights.sources):  # a bundle brings the files of its processor
        files = [file for file in _named(recipe.raw["model"], "hf:") if file.count(":") > 1]
        needed += [file for file in files if file.rpartition(":")[0] not in needed]
    return [source for source in dict.fromkeys(needed) if local_copy(source) is None]


def _named(part: Any, kind: str) -> Iterator[str]:
    """Every address that begins with `kind` in a part of a recipe: encoders, tokenizers and the like."""
    if isinstance(part, dict):
        part = list(part.values())
    if isinstance(part, list):
        for entry in part:
            yield from _named(entry, kind)
    elif isinstance(part, str) and part.startswith(kind):
        yield part


@contextmanager
def _offline() -> Iterator[None]:
    """The hub's library reads its switch from the environment once, at import; here it is turned for a moment."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
