"""Parquet and JSONL files as one list of rows, with errors that name file, row and column."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from zoo.data.patterns import files_in
from zoo.data.text_files import JsonLines
from zoo.errors import SampleError, ZooError, suggest

SUFFIXES = (".parquet", ".jsonl", ".ndjson")


class _Rows(Protocol):
    """The rows of one file."""

    def __len__(self) -> int: ...

    def value(self, column: str, row: int) -> Any: ...


class Records:
    """Rows of files that have the same columns. Of Parquet the columns are kept as Arrow has them, a fifth of the memory of
    Python objects; of JSONL, where each line begins.

    Args:
        path: a Parquet or JSONL file, or a folder of them.
        columns: those that every file must have.
        optional: those that are read where a file has them.
        split: of a folder, only the files whose name begins with this; "" = all.

    Raises:
        ZooError: nothing there, a file that can't be read, a column that is missing (with the nearest one there is).
    """

    def __init__(self, path: Path, columns: Sequence[str], optional: Sequence[str] = (), split: str = "") -> None:
        self.path = path
        self.files = _files(path, split)
        self._parts = [_opened(file, columns, optional) for file in self.files]
        self._ends = list(accumulate(map(len, self._parts)))
        if not len(self):
            raise ZooError(f"there are no rows in {path}")

    def __len__(self) -> int:
        return self._ends[-1]

    def value(self, column: str, row: int, kind: type = str) -> Any:
        """One value; None is the empty one of `kind`, and so is a column that is not there. SampleError for another kind, or
        a line that is no JSON object.
        """
        file, inside = self._place(row)
        found = self._parts[file].value(column, inside)
        if found is None:
            return kind()
        if not isinstance(found, kind):
            raise SampleError(f"{self.where(row)}: '{column}' is a {type(found).__name__}, not a {kind.__name__}")
        return found

    def where(self, row: int) -> str:
        """File and row in it, for messages; rows are counted from 0."""
        file, inside = self._place(row)
        return f"{self.files[file]} row {inside}"

    def _place(self, row: int) -> tuple[int, int]:
        if not 0 <= row < len(self):
            raise IndexError(row)
        file = bisect_right(self._ends, row)
        return file, row - (self._ends[file - 1] if file else 0)


class _Table:
    """The columns of a Parquet file."""

    def __init__(self, file: Path, columns: Sequence[str], optional: Sequence[str]) -> None:
        import pyarrow
        from pyarrow import parquet

        try:
            names = parquet.read_schema(file).names
            check_columns(file, names, columns)
            table = parquet.read_table(file, columns=[name for name in (*columns, *optional) if name in names])
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise ZooError(f"{file} can't be read: {error}") from error
        self.columns = {name: table.column(name) for name in table.column_names}
        self.file, self.rows = file, len(table)

    def __len__(self) -> int:
        return self.rows

    def value(self, column: str, row: int) -> Any:
        try:
            return self.columns[column][row].as_py() if column in self.columns else None
        except UnicodeDecodeError as error:
            raise SampleError(f"{self.file} row {row}: '{column}' is not UTF-8: {error}") from error


def _opened(file: Path, columns: Sequence[str], optional: Sequence[str]) -> _Rows:
    if file.suffix.lower() == ".parquet":
        return _Table(file, columns, optional)
    lines = JsonLines(file)
    if len(lines):
        check_columns(file, lines.names(), columns)
    return lines


def _files(path: Path, split: str) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ZooError(f"there is no file or folder {path}")
    found = files_in(path, SUFFIXES)
    if not found:
        raise ZooError(f"there is no Parquet or JSONL file in {path}")
    chosen = [file for file in found if file.name.startswith(split)]
    if not chosen:
        names = [file.name for file in found]
        raise ZooError(f"no file in {path} begins with '{split}' (there are {', '.join(names[:6])}); set `split`")
    return chosen


def check_columns(where: object, names: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise ZooError for the first column that is not there, with the nearest that is."""
    for column in wanted:
        if column not in names:
            near = suggest(column, names)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ZooError(f"{where} has no column '{column}'{hint} (there are {', '.join(names)})")
