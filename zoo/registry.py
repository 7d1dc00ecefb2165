"""Architectures by name, and the packages that add to the zoo from outside.

A plug-in is a distribution with one entry point in the group `zoo.plugins`, whose value is its top-level package:

    [project.entry-points."zoo.plugins"]
    my-encoders = "my_encoders"

Importing that package registers its architectures; its recipes lie in `my_encoders/recipes/` (see `zoo.catalog`).
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from zoo.errors import ZooError, ZooWarning

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from zoo.module import EmbeddingModule

GROUP = "zoo.plugins"
# Packages whose classes a recipe may name. jsonargparse finds a short class name among the classes that are imported.
_PARTS = ("architectures", "nn", "objectives", "data", "callbacks")

Architecture = TypeVar("Architecture", bound="type[EmbeddingModule]")
_architectures: dict[str, type[EmbeddingModule]] = {}


class PluginWarning(ZooWarning):
    """Something that was added to the zoo does not work and is left out; the rest of the zoo goes on."""


def register(architecture: Architecture) -> Architecture:
    """Class decorator: make an architecture known under its class name.

    Raises:
        ZooError: another class has that name already; names both.
    """
    name = architecture.__name__
    known = _architectures.get(name)
    if known is not None and _origin(known) != _origin(architecture):
        raise ZooError(
            f"two architectures are called '{name}': {_origin(known)} and {_origin(architecture)}; rename one of them"
        )
    _architectures[name] = architecture
    return architecture


def _origin(architecture: type) -> str:
    return f"{architecture.__module__}.{architecture.__qualname__}"


def architectures() -> Mapping[str, type[EmbeddingModule]]:
    """Class name -> class, of the zoo and of all plug-ins."""
    _import_package("zoo.architectures")
    load_plugins()
    return MappingProxyType(_architectures)


def import_parts() -> None:
    """Import whatever a recipe may name by its short class name: the zoo's parts and the plug-ins."""
    for package in _PARTS:
        _import_package(f"zoo.{package}")
    load_plugins()


@cache
def _import_package(name: str) -> None:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        importlib.import_module(module.name)


def plugins() -> list[EntryPoint]:
    """The entry points of all installed plug-ins, by name; imports none of them. What lies in the folder that Python was
    started in is not installed.
    """
    from importlib.metadata import entry_points

    with without_working_folder():
        return sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))


def plugin_packages() -> list[str]:
    """The top-level packages of all installed plug-ins."""
    return [point.value.partition(":")[0].partition(".")[0] for point in plugins()]


@cache
def load_plugins() -> None:
    """Import all plug-ins, once. One that can't be imported is a `PluginWarning` that names its distribution."""
    for point in plugins():
        try:
            with without_working_folder():
                point.load()
        except Exception as error:  # a plug-in may fail in any way; that must not break the zoo
            warnings.warn(
                f"the plug-in {describe(point)} can't be imported and is left out: {type(error).__name__}: {error}",
                PluginWarning,
                stacklevel=2,
            )


def describe(point: EntryPoint) -> str:
    """A plug-in for people: `'my-encoders' (distribution my-encoders 1.0)`."""
    if point.dist is None:
        return f"'{point.name}'"
    return f"'{point.name}' (distribution {point.dist.name} {point.dist.version})"


@contextmanager
def without_working_folder() -> Iterator[None]:
    """Within, nothing is imported from the working folder only because Python was started there: a stranger's files may lie
    in it. Where PYTHONPATH names it, or an installation in place does, it stays.
    """
    removed = [(index, entry) for index, entry in enumerate(sys.path) if _is_where_python_started(index, entry)]
    for _, entry in removed:
        sys.path.remove(entry)
    try:
        yield
    finally:
        for index, entry in removed:
            sys.path.insert(index, entry)


def _is_where_python_started(index: int, entry: str) -> bool:
    if not entry:
        return True
    named = {os.path.abspath(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place}
    library = sysconfig.get_path("stdlib")
    installed = library in sys.path and index > sys.path.index(library)  # as `pip install --editable` does
    return not installed and entry not in named and os.path.realpath(entry) == os.path.realpath(os.getcwd())
