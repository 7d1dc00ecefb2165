"""The training data of ABC (arXiv:2503.00329) in the layout of its hub repositories, from folders on this disk.

Both need a copy of the data repository (its parquet files) and the folder in which its pictures were unpacked.
"""

from __future__ import annotations

import random
from collections.abc import Hashable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.data.pairs import read_picture
from zoo.data.source import Source
from zoo.errors import SampleError, ZooError
from zoo.files import below
from zoo.types import Item, Sample

if TYPE_CHECKING:
    import pyarrow


class AbcCaptions(Source):
    """Captioned pictures with mined negatives (TIGER-Lab/ABC-Pretraining-Data): picture -> its caption.

    A record's `negatives` are rows of the same table, the most alike first. Of each of the first `negatives` windows of
    `window` rows one is drawn, so a sample has near and far negatives.

    Args:
        folder: holds the parquet files, directly or in `data/`.
        images: what the paths in the column `image` are relative to.
        negatives: captions of other pictures per sample. 0 = none, and the samples have no such view.
    """

    def __init__(
        self, folder: str, images: str, negatives: int = 7, window: int = 5, name: str = "abc-captions"
    ) -> None:
        self.folder, self.images = Path(folder).expanduser(), Path(images).expanduser()
        self.negatives, self.window, self.name = negatives, window, name

    @cached_property
    def _columns(self) -> dict[str, Any]:
        table = _read(self.folder, ["caption", "image", "negatives"])
        return {name: table.column(name) for name in table.column_names}

    def __len__(self) -> int:
        return len(self._columns["caption"])

    def draw(self, index: int, rng: random.Random) -> Sample:
        """See `Source`. Raises SampleError for too few negatives, or a picture that is not below `images`."""
        picture = read_picture(self._value("image", index), self.images, f"{self.name}/{index}")
        views: dict[str, Item | tuple[Item, ...]] = {
            "query": Item(images=(picture,)),
            "target": Item(text=self._value("caption", index)),
        }
        if self.negatives:
            views["negatives"] = tuple(Item(text=self._value("caption", row)) for row in self._mined(index, rng))
        return Sample(f"{self.name}/{index}", views, source=self.name)

    def duplicate_key(self, index: int) -> Hashable:
        """Equal captions are false negatives of one another."""
        caption = self._value("caption", index)
        return index if caption is None else caption

    def _mined(self, index: int, rng: random.Random) -> list[int]:
        mined = self._value("negatives", index) or []
        needed = self.negatives * self.window
        if len(mined) < needed:
            raise SampleError(
                f"{self.name}/{index} has {len(mined)} negatives, {needed} are needed: lower `negatives` or `window`"
            )
        if not all(row is not None and 0 <= row < len(self) for row in mined[:needed]):
            raise SampleError(f"{self.name}/{index} names negatives that are no rows of the table ({len(self):,} rows)")
        return [mined[k * self.window + rng.randrange(self.window)] for k in range(self.negatives)]

    def _value(self, column: str, index: int) -> Any:
        return self._columns[column][index].as_py()


class AbcInstructions(Source):
    """Pictures with several instructions each (TIGER-Lab/ABC-VG-Instruct): picture and instruction -> phrase.

    A record is one instruction. Its negatives are the other phrases of the same picture, so that only the instruction
    tells them from the target; the authors get the same by putting all instructions of a picture into one batch.
    Pictures with a single phrase are left out.

    Args:
        folder: holds the parquet files, directly or in `data/`. images: holds the pictures, `<number>.jpg`.
    """

    def __init__(self, folder: str, images: str, name: str = "abc-instructions") -> None:
        self.folder, self.images, self.name = Path(folder).expanduser(), Path(images).expanduser(), name

    @cached_property
    def _records(self) -> list[tuple[int, str, str, tuple[str, ...]]]:
        """Picture, instruction, phrase, other phrases of the picture."""
        records = []
        for row in _read(self.folder, None).to_pylist():
            entries = [entry for entry in row.values() if entry is not None]
            for entry in entries:
                others = dict.fromkeys(other["phrase"] for other in entries if other["phrase"] != entry["phrase"])
                if others:
                    records.append((entry["image"], entry["instruction"], entry["phrase"], tuple(others)))
        return records

    def __len__(self) -> int:
        return len(self._records)

    def draw(self, index: int, rng: random.Random) -> Sample:
        """See `Source`. Raises SampleError for a picture that is not below `images`."""
        number, instruction, phrase, others = self._records[index]
        picture = below(self.images, f"{number}.jpg", f"{self.name}/{index}")
        return Sample(
            f"{self.name}/{index}",
            {
                "query": Item(images=(picture,), instruction=instruction),
                "target": Item(text=phrase),
                "negatives": tuple(Item(text=other) for other in others),
            },
            source=self.name,
        )

    def duplicate_key(self, index: int) -> int:
        """A picture stands once in a batch: its other phrases are there already."""
        return self._records[index][0]


def _read(folder: Path, columns: list[str] | None) -> pyarrow.Table:
    import pyarrow
    from pyarrow import parquet

    files = sorted(folder.glob("[!.]*.parquet")) or sorted(folder.glob("data/[!.]*.parquet"))
    if not files:
        raise ZooError(f"there are no parquet files in {folder} or {folder / 'data'}; copy the data repository there")
    try:
        return pyarrow.concat_tables([parquet.read_table(file, columns=columns) for file in files])
    except (OSError, pyarrow.ArrowInvalid, KeyError) as error:
        raise ZooError(
            f"the parquet files in {folder} can't be read ({error}); copy the data repository again"
        ) from error
