"""Single rows of Parquet files, read by row group: a file is never in memory as a whole."""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.errors import SampleError, UnknownNameError, ZooError, ZooWarning

if TYPE_CHECKING:
    import pyarrow

OPEN_FILES = 64  # per process
SLOW_BYTES = 1 << 24
"""Row groups above this are warned of where they do not all fit into memory (ours): each sample may read a whole one."""


class SlowRowsWarning(ZooWarning):
    """Single rows of a file can only be read at the price of many."""


def values_of(array: pyarrow.Array) -> list[Any]:
    """Arrow values as Python objects; None for a text that is not UTF-8, which Arrow does not check."""
    try:
        return list(array.to_pylist())
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in array]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return None


class ParquetRows:
    """Rows of Parquet files in a row.

    A row can't be read without its row group, so groups are kept, the last used ones up to `cache_bytes` per process.

    Args:
        files: at least one.
        columns: those that are read; every file must have them.
        cache_bytes: per process.

    Raises:
        ZooError: a file that can't be read, or without one of the columns.
    """

    def __init__(self, files: Sequence[Path], columns: Sequence[str], cache_bytes: int = 1 << 28) -> None:
        self.files, self.columns, self.cache_bytes = list(files), list(columns), cache_bytes
        self.types: dict[str, pyarrow.DataType] = {}
        self._forget()
        groups: list[tuple[int, int, int, int]] = []  # file, group, rows, bytes
        for number, file in enumerate(self.files):
            groups += self._groups(number, file)
        self._group = np.array([group[:2] for group in groups], np.int64).reshape(-1, 2)
        self._ends = np.cumsum([group[2] for group in groups], dtype=np.int64)
        self._warn([group[3] for group in groups])

    def _groups(self, number: int, file: Path) -> Iterator[tuple[int, int, int, int]]:
        import pyarrow

        try:
            opened = self._file(number)
            about, schema = opened.metadata, opened.schema_arrow
        except (OSError, ValueError, pyarrow.ArrowException) as error:  # ValueError: a name that is not UTF-8
            raise ZooError(f"{file} can't be read: {error}") from error
        for column in self.columns:
            if column not in schema.names:
                raise UnknownNameError("column", column, schema.names, f"({file} has {', '.join(schema.names)})")
            self.types.setdefault(column, schema.field(column).type)
        for group in range(about.num_row_groups):
            part = about.row_group(group)
            leaves = [part.column(leaf) for leaf in range(part.num_columns)]
            size = sum(c.total_uncompressed_size for c in leaves if c.path_in_schema.split(".")[0] in self.columns)
            yield number, group, part.num_rows, size

    def _warn(self, sizes: Sequence[int]) -> None:
        if sizes and max(sizes) > SLOW_BYTES and sum(sizes) > self.cache_bytes:
            warnings.warn(
                f"{self.files[0]} has row groups of {max(sizes) / 1e6:,.0f} MB, and a sample in random order reads a "
                "whole one; `zoo data shard` makes tar shards of it, which are read sample by sample",
                SlowRowsWarning,
                2,
            )

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict(), "_read": OrderedDict(), "_process": 0}

    def row(self, index: int) -> dict[str, Any]:
        """The columns of one row. SampleError if it can't be read."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        table = self._table(number)
        inside = index - int(self._ends[number]) + len(table)
        try:
            return {name: table.column(name)[inside].as_py() for name in self.columns}
        except UnicodeDecodeError as error:
            raise SampleError(f"{self.where(index)}: a text is not UTF-8: {error}") from error

    def values(self, column: str) -> Iterator[Any]:
        """One column from top to bottom, without the others."""
        import pyarrow

        for number, file in enumerate(self.files):
            try:
                for batch in self._file(number).iter_batches(columns=[column], use_threads=False):
                    yield from values_of(batch.column(0))
            except (OSError, pyarrow.ArrowException) as error:
                raise ZooError(f"column '{column}' of {file} can't be read: {error}") from error

    def paths(self, column: str) -> Iterator[str | None]:
        """The field `path` of a column of structs, without the bytes beside it."""
        yield from (value and value["path"] for value in self.values(f"{column}.path"))

    def where(self, index: int) -> str:
        """`FILE/ROW`, rows counted from 0."""
        file = int(self._group[int(np.searchsorted(self._ends, index, side="right")), 0])
        before = int(np.searchsorted(self._group[:, 0], file))
        return f"{self.files[file].stem}/{index - (int(self._ends[before - 1]) if before else 0)}"

    def _table(self, number: int) -> pyarrow.Table:
        import pyarrow

        self._forget_others()
        if number not in self._read:
            file, group = self._group[number].tolist()
            try:
                table = self._file(file).read_row_group(group, columns=self.columns, use_threads=False)
            except (OSError, pyarrow.ArrowException) as error:
                raise SampleError(f"{self.files[file]}, row group {group}, can't be read: {error}") from error
            self._read[number] = table
            while len(self._read) > 1 and sum(table.nbytes for table in self._read.values()) > self.cache_bytes:
                self._read.popitem(last=False)
        self._read.move_to_end(number)
        return self._read[number]

    def _file(self, number: int) -> Any:
        from pyarrow import parquet

        self._forget_others()
        if number not in self._open:
            if len(self._open) >= OPEN_FILES:
                self._open.popitem(last=False)
            self._open[number] = parquet.ParquetFile(self.files[number])
        return self._open[number]

    def _forget_others(self) -> None:
        if self._process != os.getpid():  # of the parent, before it forked
            self._forget()

    def _forget(self) -> None:
        self._open: OrderedDict[int, Any] = OrderedDict()
        self._read: OrderedDict[int, pyarrow.Table] = OrderedDict()
        self._process = os.getpid()
