"""What `zoo embed` reads: the images of a folder, or the rows of Parquet and JSONL files."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from zoo.data.pairs import image_name, read_picture
from zoo.data.patterns import expand
from zoo.data.text_files import JsonLines, check_unicode
from zoo.errors import SampleError, UnknownNameError, ZooError
from zoo.files import TRIED_IMAGES, check_images, file_state, state_of
from zoo.types import ImageSource, Item
from zoo.weights import sha256

_KINDS = (".parquet", ".jsonl", ".ndjson")
_TEXT, _IMAGE, _ID = "text", "image", "id"


@dataclass(frozen=True)
class Row:
    """One thing to embed. `text` may be a caption that is only shown; `error` says why there is no item."""

    number: int
    id: str
    path: str | None
    text: str | None
    item: Item
    error: str = ""


class Rows(Protocol):
    """An input that can be read from any shard on.

    fingerprint: changes when the input does. named_files: changes when a file that a row names does; "" = rows name none.
    columns: what is read of it, for inputs that have columns.
    """

    fingerprint: str
    named_files: str
    columns: list[str]

    def __len__(self) -> int: ...

    def shards(self, size: int, wanted: Collection[int]) -> Iterator[tuple[int, list[Row]]]:
        """The shards whose number is in `wanted`, in order; shard k holds the rows from k * size on."""
        ...


def open_rows(
    sources: Path | Sequence[Path],
    text_column: str | None = None,
    image_column: str | None = None,
    instruction: str | None = None,
    images: Path | None = None,
) -> Rows:
    """A folder of images, or Parquet and JSONL files.

    Args:
        sources: the folder; or files and patterns of files, whose rows come one after the other.
        text_column: default `text` if the files have it; none if `image_column` alone is given.
        image_column: default `image` if the files have it. An image is a path below `images`, bytes,
            `{"bytes": ..., "path": ...}` as in published data sets, or a list of these.
        instruction: for every row.
        images: what the paths of a file's images are relative to, and must lie in; default the file's folder.

    Raises:
        ZooError: nothing there, another kind of file, no such column (with the nearest), no rows.
    """
    given = [sources] if isinstance(sources, Path) else list(sources)
    folders = [source for source in given if source.is_dir()]
    if folders:
        if len(given) > 1:
            raise ZooError(f"{folders[0]} is a folder of images, which is embedded alone: give one folder, or files")
        if text_column or image_column or images:
            raise ZooError(
                f"{folders[0]} is a folder of images; columns and --images belong to Parquet and JSONL files"
            )
        return _Folder(folders[0], instruction)
    try:
        files = expand([str(source) for source in given], ".parquet")
    except ZooError as error:
        raise ZooError(f"{error} (give a folder of images, .parquet or .jsonl files)") from error
    return _Table([_open(file, images) for file in files], text_column, image_column, instruction)


class _Folder:
    def __init__(self, folder: Path, instruction: str | None) -> None:
        from zoo.data.images import OTHER_SUFFIXES, SUFFIXES
        from zoo.data.sources.folder import list_images

        self.columns: list[str] = []
        self.named_files = ""
        self.folder, self.instruction = folder, instruction
        # those of other formats are rows, too, so that they are named and counted with what can't be used
        self.files = list_images(folder, SUFFIXES | OTHER_SUFFIXES)
        if not self.files:
            tables = next((file for file in sorted(folder.iterdir()) if file.suffix.lower() in _KINDS), None)
            hint = f"; for its tables, give '{folder}/*{tables.suffix}'" if tables else ""
            raise ZooError(f"there are no images in {folder} or below it{hint}")
        digest = hashlib.sha256()
        for file in self.files:
            line = f"{file.relative_to(folder).as_posix()}\t{file_state(file)}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def shards(self, size: int, wanted: Collection[int]) -> Iterator[tuple[int, list[Row]]]:
        for k in sorted(wanted):
            yield k, [self._row(number) for number in range(k * size, min((k + 1) * size, len(self)))]

    def _row(self, number: int) -> Row:
        file = self.files[number]
        name, path = file.relative_to(self.folder).as_posix(), str(file.absolute())
        try:
            check_unicode(path, "the name of the file")
        except SampleError as error:
            return Row(number, name, None, None, Item(), str(error))
        return Row(number, name, path, None, Item(images=(file,), instruction=self.instruction))


class _Table:
    """The rows of files, one file after the other."""

    def __init__(self, parts: Sequence[_Part], text: str | None, image: str | None, instruction: str | None) -> None:
        self.parts, self.instruction = parts, instruction
        first, self.length = parts[0].file, sum(map(len, parts))
        if not self.length:
            raise ZooError(f"{first} has no rows")
        names = list(dict.fromkeys(name for part in parts if len(part) for name in part.names()))
        for name in (text, image):
            if name is not None and name not in names:
                raise UnknownNameError(f"column of {first.name}:", name, names, f"(there are {', '.join(names)})")
        given = text is not None or image is not None
        self.text = text if given else _TEXT if _TEXT in names else None
        self.image = image if given else _IMAGE if _IMAGE in names else None
        if self.text is None and self.image is None:
            raise ZooError(
                f"{first} has no column 'text' or 'image': name what to embed with --text-column or --image-column "
                f"(there are {', '.join(names)})"
            )
        self.columns = [name for name in (self.text, self.image) if name]
        digests = [sha256(part.file) for part in parts]
        self.fingerprint = digests[0] if len(parts) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
        if self.image:
            for part in parts:
                check_images(_first_named(part, self.image), len(part), part.file, part.images, "--images")
        self.named_files = self._named_files(self.image) if self.image else ""

    def __len__(self) -> int:
        return self.length

    def shards(self, size: int, wanted: Collection[int]) -> Iterator[tuple[int, list[Row]]]:
        rows: Iterator[Row] = iter(())
        following = -1
        for k in sorted(wanted):
            if k != following:  # shards in a row are read in one go
                rows = self._rows(k * size)
            following = k + 1
            yield k, [next(rows) for _ in range(k * size, min(following * size, self.length))]

    def _rows(self, first: int) -> Iterator[Row]:
        """The rows from number `first` on."""
        columns = list(dict.fromkeys([*self.columns, _ID]))
        number = start = 0
        for part in self.parts:
            begin = min(len(part), max(0, first - start))
            for number, record in enumerate(part.records(begin, columns), start + begin):
                yield self._row(number, record, part.images)
            start += len(part)

    def _row(self, number: int, record: Mapping[str, Any] | str, folder: Path) -> Row:
        if isinstance(record, str):
            return Row(number, str(number), None, None, Item(), record)
        name = image_name(record.get(_ID)) or str(number)
        try:
            check_unicode(name, "the id")
            text = _text(record.get(self.text)) if self.text else None
            images = _images(record.get(self.image), folder) if self.image else ()
            path = next((check_unicode(str(i), "the path") for i in images if isinstance(i, Path)), None)
        except ZooError as error:
            return Row(number, name, None, None, Item(), str(error))
        return Row(number, name, path, text, Item(text, images, self.instruction))

    def _named_files(self, column: str) -> str:
        """A digest of the state of every file that a row names; "" = there are none."""
        values = ((value, part.images) for part in self.parts for value in part.paths(column))
        return state_of(file for value, folder in values for file in _named(value, folder))


class _Part(Protocol):
    """The rows of one file. images: the folder that its paths lead into."""

    file: Path
    images: Path

    def __len__(self) -> int: ...

    def names(self) -> list[str]: ...

    def records(self, first: int, columns: Sequence[str]) -> Iterator[Mapping[str, Any] | str]:
        """Records from number `first` on; a str instead of one says why it can't be read."""
        ...

    def paths(self, column: str) -> Iterator[Any]:
        """The values of a column, where they may name files."""
        ...


def _open(file: Path, images: Path | None) -> _Part:
    suffix = file.suffix.lower()
    if suffix not in _KINDS:
        raise ZooError(f"{file} can't be embedded: give a folder of images, .parquet or .jsonl files")
    return (_Parquet if suffix == ".parquet" else _JsonLines)(file, images or file.parent)


class _Parquet:
    def __init__(self, file: Path, images: Path) -> None:
        self.file, self.images = file, images
        opened = self._open()
        self.schema, self.rows = opened.schema_arrow, int(opened.metadata.num_rows)

    def _open(self) -> Any:
        import pyarrow
        from pyarrow import parquet

        try:
            return parquet.ParquetFile(self.file)
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise ZooError(f"{self.file} can't be read as Parquet: {error}") from error

    def __len__(self) -> int:
        return self.rows

    def names(self) -> list[str]:
        return list(self.schema.names)

    def records(self, first: int, columns: Sequence[str]) -> Iterator[Mapping[str, Any] | str]:
        import pyarrow

        file, start = self._open(), 0
        wanted = [name for name in columns if name.partition(".")[0] in self.schema.names or name in self.schema.names]
        for group in range(file.metadata.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            try:
                if end > first:  # groups before are skipped without being read
                    for batch in file.iter_batches(256, row_groups=[group], columns=wanted):
                        yield from _records(batch.slice(min(len(batch), max(0, first - start))))
                        start += len(batch)
            except (OSError, ValueError, pyarrow.ArrowException) as error:
                yield from [f"row group {group} can't be read: {error}"] * (end - max(start, first))
            start = end

    def paths(self, column: str) -> Iterator[Any]:
        from pyarrow import types

        kind = self.schema.field(column).type if column in self.schema.names else None
        if kind is None or types.is_binary(kind) or types.is_large_binary(kind):
            return
        paths = types.is_struct(kind) and kind.get_field_index("path") >= 0  # the bytes beside them need not be read
        for record in self.records(0, [f"{column}.path" if paths else column]):
            if not isinstance(record, str):
                yield record[column]


def _records(batch: Any) -> Iterator[Mapping[str, Any] | str]:
    """The rows of a batch; Arrow does not check whether texts are UTF-8."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for row in range(len(batch)):
            try:
                yield from batch.slice(row, 1).to_pylist()
            except UnicodeDecodeError as error:
                yield f"a text is not UTF-8: {error}"


class _JsonLines:
    def __init__(self, file: Path, images: Path) -> None:
        self.file, self.images, self.lines = file, images, JsonLines(file)

    def __len__(self) -> int:
        return len(self.lines)

    def names(self) -> list[str]:
        return self.lines.names()

    def records(self, first: int, columns: Sequence[str]) -> Iterator[Mapping[str, Any] | str]:
        for row in range(first, len(self)):
            try:
                yield self.lines[row]
            except SampleError as error:
                yield str(error)

    def paths(self, column: str) -> Iterator[Any]:
        yield from (record.get(column) for record in self.records(0, ()) if not isinstance(record, str))


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise SampleError(f"the text is a {type(value).__name__}, not a str")
    return check_unicode(value, "the text")


def _images(value: Any, folder: Path) -> tuple[ImageSource, ...]:
    """The images of a cell: none, one, or a list."""
    cells = [_content(one) for one in (value if isinstance(value, list) else [value])]
    found = [read_picture(one, folder, "the image") for one in cells if one is not None and one != ""]
    return tuple(image.absolute() if isinstance(image, Path) else image for image in found)


def _named(value: Any, folder: Path) -> list[Path]:
    """The files that a cell names."""
    try:
        return [image for image in _images(value, folder) if isinstance(image, Path)]
    except ZooError:  # said when the row is embedded
        return []


def _first_named(part: _Part, column: str) -> list[Path]:
    """The files that the first rows name; bytes that stand beside a path are the image."""
    records = islice(part.records(0, [column]), TRIED_IMAGES)
    return [
        file for record in records if not isinstance(record, str) for file in _named(record.get(column), part.images)
    ]


def _content(cell: Any) -> Any:
    """Bytes, or else the path, of a struct."""
    return cell.get("bytes") or cell.get("path") if isinstance(cell, Mapping) else cell
