"""Counting what can't be used, so that nothing is dropped in silence."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping

from zoo.errors import ZooWarning

NO_CONTENT = "hidden members that hold no content"
"""A reason that costs nothing: macOS packs such a file beside every other one."""

NAMED = 3  # that many of each kind are named, the others counted


class LeftOutWarning(ZooWarning):
    """Records of a source that can't be used and are left out of it."""


class LeftOut:
    """Counts by reason, with the names of the first few.

    Attributes:
        counts: reason -> how many.
        names: reason -> the first of them.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.names: dict[str, list[str]] = {}

    def note(self, reason: str, name: str) -> None:
        """One more."""
        self.add(reason, 1, [name])

    def add(self, reason: str, count: int, names: list[str]) -> None:
        """Several of one kind; the names of the first are enough."""
        if count:
            self.counts[reason] += count
            known = self.names.setdefault(reason, [])
            known += names[: NAMED - len(known)]

    def warn(self, source: str, kept: int, what: str = "records") -> None:
        """One warning for all of them, if there are any."""
        if self.counts:
            warnings.warn(f"source '{source}' has {kept:,} usable {what}; left out: {self}", LeftOutWarning, 3)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        return "; ".join(f"{count:,} {reason} ({self._named(reason)})" for reason, count in self.counts.items())

    def _named(self, reason: str) -> str:
        names = self.names[reason]
        return ", ".join(names) + (", ..." if self.counts[reason] > len(names) else "")

    @property
    def lost(self) -> int:
        """How many could have been records."""
        return self.counts.total() - self.counts[NO_CONTENT]

    def as_json(self) -> dict[str, tuple[int, list[str]]]:
        """For a file."""
        return {reason: (count, self.names[reason]) for reason, count in self.counts.items()}

    def update(self, other: LeftOut | Mapping[str, tuple[int, list[str]]], prefix: str = "") -> None:
        """Add the counts of another; `prefix` goes before its names."""
        for reason, (count, names) in (other.as_json() if isinstance(other, LeftOut) else other).items():
            self.add(reason, count, [f"{prefix}{name}" for name in names])
