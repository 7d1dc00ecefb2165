"""What a recipe that came from elsewhere may name: a bundle, a run or a hub repository brings data, and no code.

Its classes are those of the zoo, of installed plug-ins, of packages that the environment variable ZOO_TRUST names, and the
modules, optimizers and schedules of a few libraries. Nothing else is imported, called or opened for its sake. What people
write themselves and name on the command line or in Python is their own, and none of this holds for it.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

from zoo.errors import RecipeError, WeightsError
from zoo.registry import plugin_packages, without_working_folder

LIBRARIES = ("torch.nn", "torch.optim", "timm.optim")
"""Where modules, optimizers and schedules of others may come from; nothing else of these libraries may be named."""
_WITH_PROMPTS = ("open_clip",)  # lists of prompts

# what the parser may go on importing while it reads a recipe from elsewhere
_OF_THE_PARSER = ("torch", "lightning", "jsonargparse", "argcomplete")
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_DATA = (bool, int, float, complex, str, bytes, Path, Enum)


@dataclass(frozen=True)
class _Origin:
    """Where recipes come from, and the packages whose code is trusted as a whole."""

    source: str
    packages: tuple[str, ...]


_origin: ContextVar[_Origin | None] = ContextVar("origin", default=None)
_refused: ContextVar[list[str] | None] = ContextVar("refused", default=None)


@contextmanager
def elsewhere(source: str | Path) -> Iterator[None]:
    """Within, recipes come from `source` and get no freedom, those that they lead to included."""
    own = filter(None, re.split(r"[\s,]+", os.environ.get("ZOO_TRUST", "")))
    token = _origin.set(_Origin(str(source), ("zoo", *plugin_packages(), *own)))
    try:
        yield
    finally:
        _origin.reset(token)


def source() -> str:
    """Where the recipe at hand came from; empty = it is the user's own."""
    origin = _origin.get()
    return origin.source if origin is not None else ""


def refusal(name: str) -> WeightsError:
    """The error for a name that a recipe from elsewhere may not use."""
    top = name.partition(".")[0]
    way_out = f"; if that code is yours, set ZOO_TRUST={top}" if _DOTTED.fullmatch(name) else ""
    return WeightsError(
        f"the recipe of {source()} names '{name}', which is never run: it may only name classes of the zoo, of installed "
        f"plug-ins, and modules or optimizers of {', '.join(LIBRARIES)}{way_out}"
    )


# ---- before a recipe is parsed ---------------------------------------------------------------------------------------


def import_named(model: Any) -> None:
    """Import the modules of all classes that `class_path` names, anywhere in `model`.

    Raises:
        WeightsError: one may not be named. RecipeError: one is not there.
    """
    if isinstance(model, Mapping):
        if "class_path" in model:
            _import_module_of(model["class_path"])
        model = list(model.values())
    if isinstance(model, list | tuple):
        for entry in model:
            import_named(entry)


def _import_module_of(path: Any) -> None:
    if not isinstance(path, str) or not _DOTTED.fullmatch(path):
        raise refusal(str(path))
    module = path.rpartition(".")[0]
    if not module:  # a short name: among the classes that are imported already
        return
    if not _may_be_named(module):
        raise refusal(path)
    try:
        with without_working_folder():
            importlib.import_module(module)
    except ImportError as error:
        raise RecipeError(
            f"the recipe of {source()} names '{path}', and there is no such module here: {error}"
        ) from error


def attribute(module: str, name: str) -> Any:
    """The function or list `name` of a module.

    Raises:
        WeightsError: the recipe at hand came from elsewhere, and what it names is no code of the zoo or of a plug-in.
        ImportError, AttributeError: there is none.
    """
    if not source():
        return getattr(importlib.import_module(module), name)
    if not _DOTTED.fullmatch(f"{module}.{name}") or not _is_below(module, (*_packages(), *_WITH_PROMPTS)):
        raise refusal(f"{module}.{name}")
    with without_working_folder():
        found = getattr(importlib.import_module(module), name)
    is_ours = inspect.isfunction(found) and _is_below(found.__module__, _packages())
    if not (is_ours or isinstance(found, list | tuple)):
        raise refusal(f"{module}.{name}")
    return found


# ---- while it is parsed ----------------------------------------------------------------------------------------------


@contextmanager
def sealed() -> Iterator[list[str]]:
    """Within, nothing is imported that a recipe from elsewhere may not name; gives the names that were refused."""
    refused: list[str] = []
    token = _refused.set(refused)
    try:
        with without_working_folder():
            yield refused
    finally:
        _refused.reset(token)


@contextmanager
def parsing(bundle: Path | None) -> Iterator[None]:
    """Within, a recipe is parsed: of a bundle, what it may not name is a WeightsError. None = the user's own recipe."""
    if bundle is None:
        yield
        return
    with elsewhere(bundle), sealed() as refused:
        try:
            yield
        except Exception as error:  # the parser says in its own way what it could not import
            if refused:
                raise refusal(refused[0]) from error
            raise
        if refused:  # the parser found another reading, which whoever makes the parts might read again
            raise refusal(refused[0])


@contextmanager
def making(bundle: Path | None) -> Iterator[None]:
    """Within, the parts that a parsed recipe describes are made."""
    if bundle is None:
        yield
        return
    with elsewhere(bundle), without_working_folder():
        yield


class _Seal(MetaPathFinder):
    """Asked first whenever this process imports a module that it does not have yet."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> None:
        """None = look elsewhere. ImportError: a recipe that is being parsed may not have it."""
        refused = _refused.get()
        if refused is None or _may_be_imported(name):
            return
        refused.append(name)
        raise ImportError(f"'{name}' is not imported for a recipe from elsewhere", name=name)


sys.meta_path.insert(0, _Seal())


def _may_be_imported(name: str) -> bool:
    top = name.partition(".")[0]
    if name.endswith("__main__"):  # importing it runs a program
        return False
    running = top in sys.stdlib_module_names and top in sys.modules
    return running or top in _OF_THE_PARSER or _may_be_named(name)


# ---- before what it describes is made --------------------------------------------------------------------------------


def check_parsed(settings: Any, owner: type | None = None) -> None:
    """Raise WeightsError unless all that the parser made of a recipe is data, or a class that may be named.

    Args:
        settings: what the parser gives: namespaces, lists, values.
        owner: the class whose arguments they are; its own defaults may be anything.
    """
    if isinstance(settings, list | tuple | set | frozenset):
        for entry in settings:
            check_parsed(entry, owner)
    elif _is_mapping(settings):
        values = dict(vars(settings) if not isinstance(settings, Mapping) else settings)
        if "__path__" in values:
            raise refusal(str(values["__path__"]))
        if "class_path" in values:
            owner = _class_at(values.pop("class_path"))
        for entry in values.values():
            check_parsed(entry, owner)
    elif settings is not None and not isinstance(settings, _DATA) and not _is_default(settings, owner):
        raise refusal(_called(settings))


def _is_mapping(value: Any) -> bool:
    from jsonargparse import Namespace

    return isinstance(value, Mapping | Namespace)


def _class_at(path: Any) -> type:
    """The class of a path that the parser has resolved. WeightsError: it may not be named."""
    module, _, name = str(path).rpartition(".")
    while module and module not in sys.modules:  # a class inside a class
        module, _, outer = module.rpartition(".")
        name = f"{outer}.{name}"
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not inspect.isclass(found) or not _may_be_made(found):
        raise refusal(str(path))
    return found


def _may_be_made(found: type) -> bool:
    from torch import nn, optim

    if _is_below(found.__module__, _packages()):
        return True
    kinds = (nn.Module, optim.Optimizer, optim.lr_scheduler.LRScheduler)
    return _is_below(found.__module__, LIBRARIES) and issubclass(found, kinds)


def _is_default(value: Any, owner: type | None) -> bool:
    for base in inspect.getmro(owner) if owner is not None else ():
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            if any(parameter.default is value for parameter in parameters):
                return True
    return False


def _called(value: Any) -> str:
    name = getattr(value, "__qualname__", None)
    return f"{value.__module__}.{name}" if name else type(value).__name__


# ---- names -----------------------------------------------------------------------------------------------------------


def _may_be_named(module: str) -> bool:
    return _is_below(module, (*_packages(), *LIBRARIES))


def _packages() -> tuple[str, ...]:
    origin = _origin.get()
    return origin.packages if origin is not None else ()


def _is_below(module: str, packages: Sequence[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)
