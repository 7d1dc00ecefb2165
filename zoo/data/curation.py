"""Choosing pairs so that concepts are covered evenly: captions are matched with word lists, and rare concepts come first.

Freeze-align (arXiv:2409.19425) collects the same number of LAION's pairs for each of some thousand classes, by how similar
they are to prototypes of the classes. MetaCLIP (arXiv:2309.16671) finds concepts as words of the caption and keeps pairs by
chance, so that no concept has many more than a given number. Here concepts are found as by MetaCLIP and counted exactly, as
by freeze-align: a reading of both that needs no model. APE (arXiv:2210.03927) curates its pairs to the label space of the
task; that is this with the names of the labels as concepts.
"""

from __future__ import annotations

import csv
import hashlib
import random
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol, runtime_checkable

from zoo.data.pairs import OnDisk, Record, RecordSource
from zoo.data.text_files import lines_of, read_text
from zoo.errors import SampleError, ZooError
from zoo.files import replacing

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
Phrase = tuple[str, ...]


@runtime_checkable
class Captioned(Protocol):
    """A source that can give its captions without its pictures."""

    def captions(self) -> Iterator[tuple[str, ...]]:
        """Those of every record, in order; () for one without."""
        ...


class Concepts:
    """Names, each with the words or phrases that tell that a caption is about it.

    Args:
        phrases: name -> its words and phrases; upper and lower case are the same.

    Raises:
        ZooError: no concepts, or one without a word.
    """

    def __init__(self, phrases: dict[str, Sequence[str]]) -> None:
        self.names = list(phrases)
        self._of: dict[Phrase, set[int]] = {}
        for number, (name, texts) in enumerate(phrases.items()):
            for text in texts:
                if not words_of(text):
                    raise ZooError(f"the concept '{name}' has a phrase without any word: '{text}'")
                self._of.setdefault(words_of(text), set()).add(number)
        if not self._of:
            raise ZooError("there are no concepts: give at least one word")
        self._longest = max(map(len, self._of))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        """Changes when a name or phrase does."""
        content = repr((self.names, sorted((phrase, sorted(of)) for phrase, of in self._of.items())))
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def of(self, captions: Iterable[str]) -> set[int]:
        """Numbers of the concepts that the captions name, as whole words."""
        found: set[int] = set()
        for caption in captions:
            words = words_of(caption)
            for start in range(len(words)):
                for end in range(start + 1, min(start + self._longest, len(words)) + 1):
                    found |= self._of.get(words[start:end], set())
        return found


def words_of(text: str) -> Phrase:
    """Runs of letters and digits, in lower case. Scripts without spaces give one word per sentence, so they don't suit."""
    return tuple(_WORD.findall(text.casefold()))


def read_concepts(path: Path) -> Concepts:
    """One concept per line: its name, or `NAME: WORD, SOME PHRASE, ...`. Empty lines and those with # are left out.

    Raises:
        ZooError: it can't be read, names a concept twice, or holds none; names the line.
    """
    try:
        lines = lines_of(read_text(path))
    except SampleError as error:
        raise ZooError(f"the concepts in {error}") from error
    phrases: dict[str, Sequence[str]] = {}
    for number, text in lines:
        if text.startswith("#"):
            continue
        name, colon, rest = (part.strip() for part in text.partition(":"))
        if name in phrases:
            raise ZooError(f"{path} line {number}: the concept '{name}' stands there twice; join its words in one line")
        phrases[name] = [part.strip() for part in rest.split(",") if part.strip()] if colon else [name]
        if not phrases[name]:
            raise ZooError(f"{path} line {number}: '{name}:' is followed by no word")
    try:
        return Concepts(phrases)
    except ZooError as error:
        raise ZooError(f"{path}: {error}") from error


@dataclass(frozen=True, slots=True)
class Curated:
    """Which records were chosen, in order; per concept, how many there are and how many of the chosen ones name it.

    A chosen pair counts for every concept it names, so common concepts may have more than was asked for.
    """

    rows: list[int]
    available: list[int]
    kept: list[int]


def curate(captions: Iterable[Sequence[str]], concepts: Concepts, per_concept: int, seed: int = 0) -> Curated:
    """Choose records so that every concept has `per_concept` of them, or all there are.

    Concepts are filled from the rarest to the most common one, so that pairs chosen for rare ones count for common ones, and
    few are chosen beyond what was asked for. Records that name no concept are never chosen.

    Args:
        captions: of every record, in order.
        concepts: what is to be covered.
        per_concept: how many pairs each is to have.
        seed: decides which pairs are drawn; the same one gives the same pairs.

    Raises:
        ZooError: `per_concept` below 1, or no record names a concept.
    """
    if per_concept < 1:
        raise ZooError(f"{per_concept} pairs per concept: give at least 1")
    named: dict[int, set[int]] = {}
    members: list[list[int]] = [[] for _ in concepts.names]
    for row, texts in enumerate(captions):
        if found := concepts.of(texts):
            named[row] = found
            for number in found:
                members[number].append(row)
    if not named:
        raise ZooError(f"no caption names one of the {len(concepts):,} concepts; the first is '{concepts.names[0]}'")
    kept = [0] * len(concepts)
    chosen: set[int] = set()
    for number in sorted(range(len(concepts)), key=lambda one: len(members[one])):
        waiting = [row for row in members[number] if row not in chosen]
        missing = min(max(0, per_concept - kept[number]), len(waiting))
        for row in random.Random(f"{seed}/{concepts.names[number]}").sample(waiting, missing):
            chosen.add(row)
            for one in named[row]:
                kept[one] += 1
    return Curated(sorted(chosen), [len(rows) for rows in members], kept)


def write_counts(curated: Curated, concepts: Concepts, folder: Path) -> Path:
    """Write `concepts.csv`: how many pairs name each concept, and how many of those chosen do."""
    path = folder / "concepts.csv"
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["concept", "available", "chosen"])
        writer.writerows(zip(concepts.names, curated.available, curated.kept, strict=True))
    return path


class Chosen:
    """Some records of several sources, as one source. rows: their numbers, counted over all sources."""

    def __init__(self, sources: Sequence[RecordSource], rows: Sequence[int]) -> None:
        self.name = "+".join(source.name for source in sources)
        self.sources, self.rows = list(sources), rows
        self._ends = list(accumulate(map(len, sources)))

    def __len__(self) -> int:
        return len(self.rows)

    def record(self, index: int) -> Record:
        """See `RecordSource`."""
        row = self.rows[index]
        number = bisect_right(self._ends, row)
        return self.sources[number].record(row - (self._ends[number - 1] if number else 0))

    def state(self) -> str:
        """See `OnDisk`: that of all sources."""
        known = "\n".join(source.state() for source in self.sources if isinstance(source, OnDisk))
        return hashlib.sha256(known.encode()).hexdigest()


def captions_of(sources: Iterable[RecordSource]) -> Iterator[Sequence[str]]:
    """The captions of every record of all sources; () where a record can't be used."""
    for source in sources:
        if isinstance(source, Captioned):
            yield from source.captions()
            continue
        for index in range(len(source)):
            try:
                yield source.record(index).captions
            except SampleError:
                yield ()
