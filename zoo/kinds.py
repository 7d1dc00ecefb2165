"""Kinds of parts: which kind of class is due at a place of a recipe, and which classes of the zoo are of it.

Kinds are compared by name, as messages of the parser and annotations hold them.
"""

from __future__ import annotations

import inspect
import re
import sys

_SUBTYPES = re.compile(r"Subtypes: \[(?P<types>.*)\]$")
_DOTTED = re.compile(r"(?:\w+\.)+(?P<name>[A-Z]\w*)")
_SHORT = re.compile(r"\b[A-Z]\w+")
_OF_PYTHON = {
    "Any",
    "Callable",
    "Iterable",
    "List",
    "Literal",
    "Mapping",
    "None",
    "NoneType",
    "Optional",
    "Sequence",
    "Union",
}
_MOST = 8


def kinds_of_subtypes(line: str) -> list[str]:
    """The kinds in the parser's line `Subtypes: [...]`; what a factory is given is not one that is due."""
    match = _SUBTYPES.match(line)
    due = re.sub(r"Callable\[\[.*?\], ", "", match["types"]) if match else ""
    return list(dict.fromkeys(name for name in _DOTTED.findall(due) if name not in _OF_PYTHON))


def kinds_of_argument(owner: str, argument: str) -> list[str]:
    """The kinds that a class (its dotted path) takes for an argument, from its annotation."""
    module, _, name = owner.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    for base in inspect.getmro(found) if inspect.isclass(found) else ():
        parameter = (
            inspect.signature(vars(base)["__init__"]).parameters.get(argument) if "__init__" in vars(base) else None
        )
        if parameter is not None:
            names = _SHORT.findall(inspect.formatannotation(parameter.annotation))
            return [name.removesuffix("Callable") for name in names if name not in _OF_PYTHON]
    return []


def classes(kinds: list[str] | None = None) -> set[str]:
    """Names of the classes that imported modules of the zoo define, of these kinds alone where some are given."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("zoo.")]
    return {
        name
        for module in modules
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
        and (kinds is None or _is_one_of(value, kinds))
    }


def _is_one_of(value: type, kinds: list[str]) -> bool:
    can_be_made = not inspect.isabstract(value) and not getattr(value, "_is_protocol", False)
    return can_be_made and any(base.__name__ in kinds for base in inspect.getmro(value))


def wrong_kind(name: str, kinds: list[str]) -> str:
    """What to say of a class of another kind than those that are due."""
    fitting = sorted(classes(kinds) - {name, *kinds})
    listed = ", ".join(fitting[:_MOST]) + (f" and {len(fitting) - _MOST} more" if len(fitting) > _MOST else "")
    article = "an" if kinds[0].startswith(("A", "E", "I", "LR", "O", "U")) else "a"
    examples = f", such as {listed}" if listed else ""
    return f"'{name}' does not fit here: {article} {' or '.join(kinds)} is wanted{examples}"
