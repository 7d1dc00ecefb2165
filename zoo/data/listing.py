"""What a training run can ask encoders for, listed beforehand: the distinct parts of all items of its sources and tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.data.parts import Content, Keys, as_keys, described, distinct, part_key, parts_of
from zoo.data.source import Listed, Source
from zoo.errors import RecipeError, SampleError, ZooError
from zoo.types import Item, RetrievalTask

if TYPE_CHECKING:
    from zoo.data.datamodule import EmbeddingData

_GONE = object()


@dataclass(frozen=True)
class Listing:
    """The distinct parts of one modality, in the order in which a source first gives them.

    source: its name. keys: (N, 2). positions: (N,) int64, which of all parts of the modality each one is, repetitions
    counted. total: of these. walk: gives the items again, the same ones in the same order; their content is not kept,
    because a million pictures need not fit into memory. skip: leave out parts that can't be used.
    """

    source: str
    modality: str
    keys: Keys
    positions: np.ndarray[Any, np.dtype[np.int64]]
    total: int
    walk: Callable[[], Iterable[Item]]
    skip: bool = False

    def __len__(self) -> int:
        return len(self.keys)

    def contents(self, ranges: Sequence[tuple[int, int]]) -> Iterator[list[Content]]:
        """The parts of each range of rows; ranges ascend.

        Raises:
            ZooError: the source gives other items than before.
        """
        parts = (content for item in self.walk() for modality, content in parts_of(item) if modality == self.modality)
        passed = 0
        for start, stop in ranges:
            chosen = []
            for row in range(start, stop):
                position = int(self.positions[row])
                chosen.append(next(islice(parts, position - passed, None), _GONE))
                passed = position + 1
            self._check(start, chosen)
            yield chosen

    def name(self, row: int, content: Content) -> str:
        """A part for messages."""
        return f"{self.source}, {self.modality} {row} ({described(self.modality, content)})"

    def _check(self, start: int, contents: list[Content]) -> None:
        for row, content in enumerate(contents, start):
            if _vanished(content):  # whoever opens it says so
                continue
            if content is _GONE or part_key(self.modality, content) != self.keys[row].tobytes():
                raise ZooError(
                    f"'{self.source}' changed while it was read: its {self.modality} {row} is not what it was at first; "
                    "run the same command again when nothing writes there"
                )


def _vanished(content: Content) -> bool:
    return isinstance(content, Path) and not content.exists()


def list_parts(source: str, walk: Callable[[], Iterable[Item]], skip: bool = False) -> list[Listing]:
    """One listing per modality that occurs.

    Args:
        source: the name.
        walk: gives all items, the same ones in the same order on every call.
        skip: see `Listing`.

    Raises:
        SampleError: an item with an instruction: a frozen encoder that sees part by part has no place for it.
        ZooError: two contents under one key.
    """
    keys: dict[str, bytearray] = {}  # lists of small objects would take four times the memory
    for item in walk():
        if item.instruction:
            raise SampleError(
                f"'{source}' gives items with the instruction {item.instruction!r}, which the latents of single pictures "
                "and texts can't hold; leave instructions out of this source"
            )
        for modality, content in parts_of(item):
            keys.setdefault(modality, bytearray()).extend(part_key(modality, content))
    found = []
    for modality, raw in keys.items():
        every = as_keys(raw)
        positions = distinct(every, f"'{source}', {modality}")
        found.append(Listing(source, modality, every[positions], positions, len(every), walk, skip))
    return found


def list_source(source: Source, skip: bool = False) -> list[Listing]:
    """The parts that a training source can draw.

    Raises:
        RecipeError: it can't say beforehand which these are.
    """
    if not isinstance(source, Listed):
        raise RecipeError(
            f"source '{source.name}' ({type(source).__name__}) can't say beforehand what it will draw, so its latents "
            "can't be cached: give it a method `items()` (see zoo.data.source.Listed), or set cache.enabled: false"
        )
    return list_parts(source.name, source.items, skip)


def list_tasks(name: str, tasks: Sequence[RetrievalTask]) -> list[Listing]:
    """The parts of all queries and candidates of some tasks."""
    return list_parts(name, lambda: _items_of(tasks))


def list_data(data: EmbeddingData) -> list[Listing]:
    """Everything that a fit asks for: training sources, validation and test tasks.

    Raises:
        RecipeError: augmentation, whose results can't be listed; a source that can't be listed.
    """
    if data.augment:
        names = ", ".join(type(change).__name__ for change in data.augment)
        raise RecipeError(
            f"data.init_args.augment ({names}) and cached latents exclude each other: a latent is that of the unchanged "
            "item. Leave `augment` out, or set cache.enabled: false"
        )
    skip = data.on_bad_sample == "skip"
    found = [listing for source in data.train for listing in list_source(source, skip)]
    for stage in ("val", "test"):
        found += list_tasks(stage, data.tasks(stage))
    return found


def _items_of(tasks: Iterable[RetrievalTask]) -> Iterator[Item]:
    for task in tasks:
        yield from task.queries
        yield from task.candidates
        yield from _items_of(task.also)
