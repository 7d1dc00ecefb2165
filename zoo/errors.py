"""Errors that say what to do next. Every one the zoo raises on bad input derives from `ZooError`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ZooError(Exception):
    """A problem that the message explains and tells how to mend; the command line prints it without a traceback."""


class UnknownNameError(ZooError, KeyError):
    """A name that does not exist, with the nearest ones that do, or else with some of what there is."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        names = list(known)
        self.suggestions = suggest(name, names)
        message = f"unknown {kind} '{name}'"
        if self.suggestions:
            message += f"; did you mean {' or '.join(repr(s) for s in self.suggestions)}?"
        elif names and not any(one in hint for one in names):
            message += f"; there are {some(names)}"
        super().__init__(f"{message} {hint}".strip())

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0])


class SampleError(ZooError, ValueError):
    """A record that can't be used: names the sample and says why."""


class WeightsError(ZooError, OSError):
    """Weights that can't be reached, or are not what the card says."""


class RecipeError(ZooError, ValueError):
    """A recipe or command-line setting that does not fit."""


class NonFiniteError(ZooError, ArithmeticError):
    """A loss, gradient or embedding is NaN or infinite: names the batch."""


class ZooWarning(UserWarning):
    """What a user should know and the run survives; the command line prints it as one line."""


class MissingExtraError(ZooError, ImportError):
    """A feature whose packages are not installed: says which extra brings them."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs packages that are not installed: pip install 'embedding-zoo[{extra}]'")


def some(names: Iterable[str], most: int = 8) -> str:
    """The first of the names in order, and how many more there are."""
    everyone = sorted(names)
    more = f" and {len(everyone) - most} more" if len(everyone) > most + 1 else ""
    return ", ".join(everyone[:most] if more else everyone) + more


def suggest(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """The names in `known` nearest to `name`, best first."""
    by_lower = {k.lower(): k for k in known}
    return [by_lower[k] for k in difflib.get_close_matches(name.lower(), by_lower, n=most, cutoff=0.6)]
