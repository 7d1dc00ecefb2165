"""The parts of a list as batches for an encoder; a part that can't be used is named, or left out if the list allows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.data.latent_folder import LatentFolder
from zoo.data.listing import Listing
from zoo.data.parts import item_of
from zoo.errors import SampleError
from zoo.types import Inputs, Sample

_VIEW = "target"


@dataclass(frozen=True, slots=True)
class PartBatch:
    """Parts of one file, prepared for the encoder.

    file: its number. rows: in the file, of the usable parts; names: of these. inputs: of these; None = there are none.
    bad: row -> why this part can't be used. last: whether the file ends here.
    """

    file: int
    rows: list[int]
    names: list[str]
    inputs: Inputs | None
    bad: dict[int, str]
    last: bool


def part_batches(
    processor: Any, listing: Listing, store: LatentFolder, files: Sequence[int], size: int
) -> Iterator[PartBatch]:
    """The batches of some files, one file after the other.

    What is in a batch follows from the list and `size` alone. The longest texts of a file come first: that saves padding,
    and too little memory shows at once. A file that another process has written in the meantime is passed over.

    Raises:
        SampleError: a part that can't be used, unless the listing skips those.
    """
    for number, contents in zip(files, listing.contents([store.ranges[n] for n in files]), strict=True):
        if store.sound(number):
            continue
        first = store.ranges[number][0]
        samples = [
            Sample(listing.name(first + row, content), {_VIEW: item_of(listing.modality, content)})
            for row, content in enumerate(contents)
        ]
        lengths = processor.lengths(contents) if listing.modality == "text" else [0] * len(contents)
        order = sorted(range(len(contents)), key=lambda row: (-lengths[row], row))
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            yield _prepared(processor, number, rows, samples, listing.skip, start + size >= len(order))


def _prepared(
    processor: Any, file: int, rows: list[int], samples: Sequence[Sample], skip: bool, last: bool
) -> PartBatch:
    bad: dict[int, str] = {}
    inputs: Inputs | None
    try:
        inputs = _inputs(processor, [samples[row] for row in rows])
    except SampleError:
        if not skip:
            raise
        bad = _refused(processor, rows, samples)
        rows = [row for row in rows if row not in bad]
        inputs = _inputs(processor, [samples[row] for row in rows]) if rows else None
    return PartBatch(file, rows, [samples[row].id for row in rows], inputs, bad, last)


def _refused(processor: Any, rows: Sequence[int], samples: Sequence[Sample]) -> dict[int, str]:
    bad = {}
    for row in rows:
        try:
            _inputs(processor, [samples[row]])
        except SampleError as error:
            bad[row] = str(error)
    return bad


def _inputs(processor: Any, samples: list[Sample]) -> Inputs:
    inputs: Inputs = processor(samples).views[_VIEW]
    return inputs
