"""Vectors of the same items by several encoders, and which row of one belongs to which row of another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.data.text_files import JsonLines
from zoo.errors import ZooError
from zoo.vectors.files import LOG_VAR_NPY, read_vectors

_KINDS = (".parquet", ".npy")
Indexes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Side:
    """The vectors (N, D) of one encoder, possibly still on disk. ids: of the rows, None where nothing tells them."""

    name: str
    path: Path
    rows: Any
    ids: Sequence[str] | None

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def places(self) -> dict[str, int]:
        """Id -> row. Raises ZooError for an id that stands twice, or where there are no ids."""
        if self.ids is None:
            raise ZooError(f"{self.path} has no ids")
        places = {name: row for row, name in enumerate(self.ids)}
        if len(places) != len(self.ids):
            twice = next(name for row, name in enumerate(self.ids) if places[name] != row)
            raise ZooError(f"the id '{twice}' stands twice in {self.path}: rows can't be paired by their ids")
        return places


def open_sides(places: Sequence[Path]) -> list[Side]:
    """The vectors of files and of all files in folders, named by their stems (with the folder where stems are equal).

    Raises:
        ZooError: nothing there, another kind of file, one that can't be read or holds no rows of vectors; names it.
    """
    files = [file for place in places for file in _files(place)]
    stems = [file.stem for file in files]
    names = [f.stem if stems.count(f.stem) == 1 else f"{f.parent.name}/{f.stem}" for f in files]
    return [_open(name, file) for name, file in zip(names, files, strict=True)]


def paired_rows(left: Side, right: Side) -> tuple[Indexes, Indexes]:
    """Rows of both sides that are the same item, (P,) each: by ids where both have some in common, else by position.

    `zoo embed` gives an item the id of its row, and leaves out rows that it can't use: files of the same table pair by ids
    even if one of them lacks some.

    Raises:
        ZooError: no ids in common and different numbers of rows; names both files.
    """
    if left.ids is not None and right.ids is not None and not set(left.ids).isdisjoint(right.ids):
        common = [name for name in left.places if name in right.places]
        found = [[side.places[name] for name in common] for side in (left, right)]
        return np.array(found[0], np.int64), np.array(found[1], np.int64)
    if len(left) != len(right):
        why = "have no ids in common" if left.ids and right.ids else "don't both have ids"
        raise ZooError(
            f"{left.path} has {len(left):,} rows and {right.path} has {len(right):,}, and they {why}, so nothing tells "
            "which belong together: embed the same table twice with `zoo embed` (--image-column, --text-column), or give "
            ".npy files whose row i is the same pair"
        )
    everything = np.arange(len(left), dtype=np.int64)
    return everything, everything


def blocks(left: Side, right: Side, size: int = 4096) -> Iterator[tuple[Any, Any]]:
    """The paired rows of both sides as arrays (n, D) and (n, E), at most `size` at a time."""
    here, there = paired_rows(left, right)
    for start in range(0, len(here), size):
        part = slice(start, start + size)
        yield np.asarray(left.rows[here[part]]), np.asarray(right.rows[there[part]])


# ---- reading ---------------------------------------------------------------------------------------------------------


def _files(place: Path) -> list[Path]:
    if place.is_dir():
        found = sorted(file for file in place.iterdir() if _holds_vectors(file.name))
        if not found:
            raise ZooError(f"there is no file of vectors (.parquet of `zoo embed`, .npy) in {place}")
        return found
    if not place.is_file():
        raise ZooError(f"there is no file or folder '{place}'")
    if place.suffix.lower() not in _KINDS:
        raise ZooError(f"{place} holds no vectors: give .parquet files of `zoo embed`, .npy files, or folders of them")
    return [place]


def _holds_vectors(name: str) -> bool:
    return name.lower().endswith(_KINDS) and not name.endswith(LOG_VAR_NPY) and not name.startswith(".")


def _open(name: str, file: Path) -> Side:
    if file.suffix.lower() == ".parquet":
        found = read_vectors(file)
        return Side(name, file, found.vectors, found.ids)
    try:
        rows = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ZooError(f"{file} can't be read as .npy: {error}") from error
    if rows.ndim != 2 or rows.dtype.kind != "f":
        raise ZooError(f"{file} holds {rows.dtype} of shape {rows.shape}, not rows of vectors (N, D)")
    return Side(name, file, rows, _ids_beside(file, len(rows)))


def _ids_beside(file: Path, count: int) -> list[str] | None:
    """The ids that `zoo embed` writes beside an .npy file."""
    path = file.with_name(f"{file.name}.ids.jsonl")
    if not path.is_file():
        return None
    try:
        lines = JsonLines(path)
        ids = [str(lines[row]["id"]) for row in range(len(lines))]
    except (ZooError, KeyError) as error:
        raise ZooError(f"{path} is damaged ({error}): embed again, or remove it to pair rows by position") from error
    if len(ids) != count:
        raise ZooError(f"{path} has {len(ids):,} ids for the {count:,} rows of {file}: embed again")
    return ids
