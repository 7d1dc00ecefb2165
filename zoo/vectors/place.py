"""Where a command looks for things: a folder of pictures, a file of vectors, or the packaged drawings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.embedder import Embedder
from zoo.errors import ZooError
from zoo.vectors.emoji_rows import EmojiRows
from zoo.vectors.files import VectorFile
from zoo.vectors.rows import open_rows
from zoo.vectors.search import cached_index, read_index


@dataclass(frozen=True)
class Place:
    """Vectors of a place. pictures: by id, those that are no files. remarks: for the user. bad: items that could not be used
    when it was embedded.
    """

    index: VectorFile
    pictures: Mapping[str, Any] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    bad: int = 0

    def picture(self, row: int) -> Any:
        """The picture of a row, as a path or bytes; None where it has none."""
        path = self.index.paths[row]
        return self.pictures.get(self.index.ids[row]) or (Path(path) if path else None)


def open_place(place: str, embedder: Embedder) -> Place:
    """The vectors of a folder (embedded once, then kept until something changes), of a `.parquet` that `zoo embed` wrote, or
    of `emoji`, the packaged drawings.

    Raises:
        ZooError: none of these, or vectors of another model.
    """
    path = Path(place).expanduser()
    if place == "emoji" and not path.exists():
        rows = EmojiRows()
        index, remarks, bad = cached_index(rows, "emoji", embedder)
        return Place(index, rows.pictures, remarks, bad)
    if path.is_dir():
        index, remarks, bad = cached_index(open_rows(path), str(path.absolute()), embedder)
        return Place(index, {}, remarks, bad)
    if path.suffix.lower() == ".parquet" and path.is_file():
        return Place(read_index(path, embedder))
    problem = "is neither" if path.exists() else "does not exist"
    raise ZooError(f"--in {place} {problem}: give a folder of pictures, a .parquet that zoo embed wrote, or emoji")
