"""Data sets that `datasets.Dataset.save_to_disk` wrote, read with pyarrow alone.

Layout: `state.json` names the Arrow files (streaming format) of one split; `dataset_dict.json` lists the folders of splits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.data.sources.parquet_rows import values_of
from zoo.data.text_files import read_json
from zoo.errors import SampleError, UnknownNameError, ZooError

if TYPE_CHECKING:
    import pyarrow


def is_saved_dataset(folder: Path) -> bool:
    """Whether the folder looks like one that `save_to_disk` wrote."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def arrow_files(folder: Path) -> list[Path]:
    """The files of a saved data set, in order.

    Raises:
        ZooError: not readable; several splits, of which one must be chosen; rows that were picked or shuffled without
            being written so.
    """
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        names = ", ".join(map(str, _json(splits).get("splits", ())))
        raise ZooError(f"{folder} holds the splits {names}: give the folder of one, such as {folder / 'train'}")
    state = _json(folder / "state.json")
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise ZooError(f"{folder} keeps the order of its rows apart: call flatten_indices() and save_to_disk again")
    entries = state.get("_data_files")
    names_of = [entry.get("filename") for entry in entries if isinstance(entry, dict)] if entries else []
    if not names_of or not all(isinstance(name, str) and Path(name).name == name for name in names_of):
        raise ZooError(f"{folder / 'state.json'} names no Arrow files beside it; save the data set again")
    return [folder / str(name) for name in names_of]


def _json(file: Path) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise ZooError(f"{file} is no JSON object")
    return content


class ArrowRows:
    """Rows of Arrow files in a row, mapped into memory: only what is read is loaded, and processes share it.

    Args:
        files: at least one.
        columns: those that are read; every file must have them.

    Raises:
        ZooError: a file that can't be read, or without one of the columns.
    """

    def __init__(self, files: Sequence[Path], columns: Sequence[str]) -> None:
        self.files, self.columns = list(files), list(columns)
        self._tables = [_mapped(file) for file in self.files]
        for file, table in zip(self.files, self._tables, strict=True):
            for column in self.columns:
                if column not in table.column_names:
                    there = ", ".join(table.column_names)
                    raise UnknownNameError("column", column, table.column_names, f"({file} has {there})")
        self.types: dict[str, pyarrow.DataType] = {
            name: self._tables[0].schema.field(name).type for name in self.columns
        }
        self._ends = np.cumsum([len(table) for table in self._tables], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getstate__(self) -> dict[str, Any]:  # tables would travel with all their rows
        return {"files": self.files, "columns": self.columns}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def row(self, index: int) -> dict[str, Any]:
        """The columns of one row."""
        file, inside = self._place(index)
        try:
            return {name: self._tables[file].column(name)[inside].as_py() for name in self.columns}
        except UnicodeDecodeError as error:
            raise SampleError(f"{self.where(index)}: a text is not UTF-8: {error}") from error

    def values(self, column: str) -> Iterator[Any]:
        """One column from top to bottom."""
        for table in self._tables:
            for chunk in table.column(column).chunks:
                yield from values_of(chunk)

    def paths(self, column: str) -> Iterator[str | None]:
        """The field `path` of a column of structs, without the bytes beside it."""
        from pyarrow import compute

        for table in self._tables:
            for chunk in table.column(column).chunks:
                yield from values_of(compute.struct_field(chunk, "path"))

    def where(self, index: int) -> str:
        """`FILE/ROW`, rows counted from 0."""
        file, inside = self._place(index)
        return f"{self.files[file].stem}/{inside}"

    def _place(self, index: int) -> tuple[int, int]:
        file = int(np.searchsorted(self._ends, index, side="right"))
        return file, index - (int(self._ends[file - 1]) if file else 0)


def _mapped(file: Path) -> pyarrow.Table:
    import pyarrow

    try:
        mapped = pyarrow.memory_map(str(file))
        try:
            return pyarrow.ipc.open_stream(mapped).read_all()
        except pyarrow.ArrowInvalid:  # the other of Arrow's two formats
            return pyarrow.ipc.open_file(mapped).read_all()
    except (OSError, ValueError, pyarrow.ArrowException) as error:  # ValueError: a name that is not UTF-8
        raise ZooError(f"{file} can't be read as an Arrow file: {error}") from error
