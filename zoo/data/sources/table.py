"""Image-text pairs in tables: Parquet files, or data sets saved by Hugging Face `datasets`."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from itertools import compress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from zoo.data.captions import CaptionFilter
from zoo.data.left_out import LeftOut
from zoo.data.pairs import PairDrawer, Record, Rows, image_name, label, read_captions, read_picture
from zoo.data.patterns import expand
from zoo.data.source import Source
from zoo.data.sources.hf_dataset import ArrowRows, arrow_files, is_saved_dataset
from zoo.data.sources.parquet_rows import ParquetRows
from zoo.errors import SampleError, ZooError
from zoo.files import below, state_of
from zoo.types import Item, Sample


class TableRows(Protocol):
    """What a table gives: see `ParquetRows` and `ArrowRows`."""

    files: list[Path]
    types: dict[str, Any]

    def __len__(self) -> int: ...

    def row(self, index: int) -> dict[str, Any]: ...

    def values(self, column: str) -> Iterator[Any]: ...

    def paths(self, column: str) -> Iterator[str | None]: ...

    def where(self, index: int) -> str: ...


class TablePairs(Source):
    """Training pairs of a picture and its caption from the rows of a table.

    Args:
        table: Parquet files (names, a folder, patterns with `*` and `{00..12}`, or a list of them), or the folder of a
            data set, or of one of its splits, that `datasets` saved with `save_to_disk`.
        image: column of the pictures: encoded bytes, paths, or structs of `bytes` and `path` as `datasets` writes them.
        caption: column of the captions: a text or a list of texts.
        images: the folder that paths are relative to and must lie in; "" = that of the file.
        image_id: column that names the picture, where several rows show it: they share a label, and are kept out of one
            another's batches. "" = the path does, where `image` has paths; otherwise pictures of equal bytes share a
            label. So it is for a row where the column is null or empty.
        captions: how many are drawn per sample; more than 1 makes the text view a tuple.
        views: of the picture and of the text.
        instructions: view -> instruction of its items.
        caption_filter: which captions are used; reads them all, twice, when the source is made.
        cache_mb: of Parquet row groups that a process keeps in memory.
        name: of the source; "" = that of the file or folder.

    Raises:
        ZooError: nothing there, not readable, a column that is missing or holds something else; names it.
        SampleError: a row without picture or caption; names file and row.
    """

    def __init__(
        self,
        table: list[str] | str,
        image: str = "image",
        caption: str = "caption",
        images: str = "",
        image_id: str = "",
        captions: int = 1,
        views: tuple[str, str] = ("query", "target"),
        instructions: dict[str, str] | None = None,
        caption_filter: CaptionFilter | None = None,
        cache_mb: int = 256,
        name: str = "",
    ) -> None:
        columns = list(dict.fromkeys([image, caption, *([image_id] if image_id else [])]))
        self.rows = _open(table, columns, cache_mb << 20)
        self.image, self.caption, self.image_id = image, caption, image_id
        files = self.rows.files
        self.images = Path(images).expanduser() if images else files[0].parent
        single = len(files) == 1 and files[0].suffix == ".parquet"
        self.name = name or (files[0].stem if single else files[0].absolute().parent.name)
        self._check_types()
        self.drawer, self.left_out = PairDrawer(self.name, views, captions, instructions), LeftOut()
        count = len(self.rows)
        self.chosen = self.drawer.choose(caption_filter, count, self._all_captions, self._where, self.left_out)
        if not len(self):
            raise ZooError(f"source '{self.name}' ({files[0]}) has no usable row: {self.left_out or 'it is empty'}")
        self.left_out.warn(self.name, len(self))
        self._labels: Rows | None = None

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def duplicate_key(self) -> Callable[[int], Hashable] | None:
        """Equal for rows of one picture; None where no column tells."""
        column = self.image_id or (self.image if _kind(self.rows.types[self.image]) == "text" else "")
        if not column:
            return None
        if self._labels is None:
            names = map(image_name, self.rows.values(column))
            codes = [label(name or self._where(number)) for number, name in enumerate(names)]
            self._labels = np.array(codes, np.int64)[self.chosen]
        return self._labels.__getitem__

    def draw(self, index: int, rng: random.Random) -> Sample:
        """One pair."""
        return self.drawer.sample(self.record(index), rng)

    def items(self) -> Iterator[Item]:
        """Every item that `draw` may give, see `zoo.data.source.Listed`."""
        return self.drawer.items(self)

    def record(self, index: int) -> Record:
        """Picture, all captions, and the picture's name."""
        number = int(self.chosen[index])
        where = self._where(number)
        row = self.rows.row(number)
        captions = read_captions(row[self.caption], f"{where} ({self.caption})")
        picture = read_picture(row[self.image], self.images, f"{where} ({self.image})")
        return Record(where, picture, captions, image_name(row[self.image_id]) if self.image_id else "")

    def captions(self) -> Iterator[tuple[str, ...]]:
        """Those of every record, in order, without reading a picture; () for one without."""
        wanted = np.zeros(len(self.rows), bool)
        wanted[self.chosen] = True
        yield from compress(self._all_captions(), wanted)

    def state(self) -> str:
        """See `OnDisk`."""
        return state_of([*self.rows.files, *self._named_files()], self.images)

    def _named_files(self) -> Iterator[Path]:
        found = self.rows.types[self.image]
        if _kind(found) == "text":
            paths: Iterator[str | None] = self.rows.values(self.image)
        else:
            has_paths = _kind(found) == "picture" and found.get_field_index("path") >= 0
            paths = self.rows.paths(self.image) if has_paths else iter(())
        for path in paths:
            with suppress(SampleError):  # said when the row is read
                if path:
                    yield below(self.images, path, "")

    def _where(self, number: int) -> str:
        return f"{self.name}/{self.rows.where(number)}"

    def _all_captions(self) -> Iterator[tuple[str, ...]]:
        for value in self.rows.values(self.caption):
            try:
                yield read_captions(value, "")
            except SampleError:
                yield ()

    def _check_types(self) -> None:
        for column, right, wanted in (
            (self.image, ("bytes", "text", "picture"), "pictures (bytes, paths, or structs of bytes and path)"),
            (self.caption, ("text", "texts"), "captions (texts or lists of texts)"),
        ):
            found = self.rows.types[column]
            if _kind(found) not in right:
                raise ZooError(f"column '{column}' of {self.rows.files[0]} holds {found}, no {wanted}")


def _open(table: list[str] | str, columns: list[str], cache_bytes: int) -> TableRows:
    folder = Path(table).expanduser() if isinstance(table, str) else None
    if folder is not None and is_saved_dataset(folder):
        return ArrowRows(arrow_files(folder), columns)
    return ParquetRows(expand(table, ".parquet"), columns, cache_bytes)


def _kind(found: Any) -> str:
    """What values of an Arrow type can be here; "" = nothing."""
    from pyarrow import types

    if types.is_dictionary(found):
        found = found.value_type
    if types.is_string(found) or types.is_large_string(found) or types.is_string_view(found):
        return "text"
    if types.is_binary(found) or types.is_large_binary(found) or types.is_binary_view(found):
        return "bytes"
    if types.is_list(found) or types.is_large_list(found):
        return "texts" if _kind(found.value_type) == "text" else ""
    if types.is_struct(found):
        names = {found.field(i).name for i in range(found.num_fields)}
        return "picture" if names & {"bytes", "path"} else ""
    return ""
