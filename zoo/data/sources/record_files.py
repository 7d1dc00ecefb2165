"""Parquet and JSONL files as one table in memory, with errors that name file, line and column."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import SampleError, ZooError, suggest

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".parquet", ".jsonl", ".ndjson")


class Records:
    """Rows of files that have the same columns. Kept as Arrow columns: a fifth of the memory of Python objects.

    Args:
        path: a Parquet or JSONL file, or a folder of them.
        columns: those that every file must have.
        optional: those that are read where all files have them.
        split: of a folder, only the files whose name begins with this; "" = all.

    Raises:
        ZooError: nothing there, a file that can't be read, a column that is missing (with the nearest one there is).
    """

    def __init__(self, path: Path, columns: Sequence[str], optional: Sequence[str] = (), split: str = "") -> None:
        import pyarrow

        self.path = path
        self.files = _files(path, split)
        tables = [_read(file, columns, optional) for file in self.files]
        shared = [name for name in (*columns, *optional) if all(name in table.column_names for table in tables)]
        self._lengths = [len(table) for table in tables]
        try:
            table = pyarrow.concat_tables([table.select(shared) for table in tables], promote_options="permissive")
        except pyarrow.ArrowInvalid as error:
            raise ZooError(f"the files in {path} do not have columns of the same kinds: {error}") from error
        self.columns = {name: table.column(name) for name in shared}
        if not len(self):
            raise ZooError(f"there are no rows in {path}")

    def __len__(self) -> int:
        return sum(self._lengths)

    def value(self, column: str, row: int, kind: type = str) -> Any:
        """One value; None is the empty one of `kind`, and so is a column that is not there. SampleError for another kind."""
        found = self.columns[column][row].as_py() if column in self.columns else None
        if found is None:
            return kind()
        if not isinstance(found, kind):
            raise SampleError(f"{self.where(row)}: '{column}' is a {type(found).__name__}, not a {kind.__name__}")
        return found

    def where(self, row: int) -> str:
        """File and row in it, for messages; rows are counted from 0."""
        for file, length in zip(self.files, self._lengths, strict=True):
            if row < length:
                return f"{file} row {row}"
            row -= length
        raise IndexError(row)


def _files(path: Path, split: str) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ZooError(f"there is no file or folder {path}")
    found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    if not found:
        raise ZooError(f"there is no Parquet or JSONL file in {path}")
    chosen = [file for file in found if file.name.startswith(split)]
    if not chosen:
        names = [file.name for file in found]
        raise ZooError(f"no file in {path} begins with '{split}' (there are {', '.join(names[:6])}); set `split`")
    return chosen


def _read(file: Path, columns: Sequence[str], optional: Sequence[str]) -> pyarrow.Table:
    import pyarrow
    from pyarrow import parquet

    try:
        if file.suffix == ".parquet":
            names = parquet.read_schema(file).names
            _check_columns(file, names, columns)
            return parquet.read_table(file, columns=[name for name in (*columns, *optional) if name in names])
        return _json_lines(file, columns, optional)
    except (OSError, pyarrow.ArrowException) as error:
        raise ZooError(f"{file} can't be read: {error}") from error


def _json_lines(file: Path, columns: Sequence[str], optional: Sequence[str]) -> pyarrow.Table:
    import pyarrow

    known: set[str] = set()
    rows: list[list[Any]] = []
    for line, record in _objects(file):
        _check_columns(f"{file} line {line}", list(record), columns)
        known |= record.keys()
        rows.append([record.get(name) for name in (*columns, *optional)])
    values = (
        dict(zip((*columns, *optional), zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(columns, ())
    )
    return pyarrow.table({name: pyarrow.array(value) for name, value in values.items() if name in known or not rows})


def _objects(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ZooError(f"{file} line {number} is no JSON: {error}") from error
            if not isinstance(record, dict):
                raise ZooError(f"{file} line {number} is no JSON object")
            yield number, record


def _check_columns(where: object, names: Sequence[str], wanted: Sequence[str]) -> None:
    for column in wanted:
        if column not in names:
            near = suggest(column, names)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ZooError(f"{where} has no column '{column}'{hint} (there are {', '.join(names)})")
