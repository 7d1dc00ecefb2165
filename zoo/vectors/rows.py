"""What `zoo embed` reads: the pictures of a folder, or the rows of a Parquet or JSONL file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from zoo.errors import UnknownNameError, ZooError
from zoo.files import below
from zoo.types import Item
from zoo.weights import sha256

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

    fingerprint: changes when the input does. columns: what is read of it, for inputs that have columns.
    """

    fingerprint: str
    columns: list[str]

    def __len__(self) -> int: ...

    def shards(self, size: int, wanted: Collection[int]) -> Iterator[tuple[int, list[Row]]]:
        """The shards whose number is in `wanted`, in order; shard k holds the rows from k * size on."""
        ...


def open_rows(
    source: Path,
    text_column: str | None = None,
    image_column: str | None = None,
    instruction: str | None = None,
    images: Path | None = None,
) -> Rows:
    """A folder of pictures, a `.parquet` file, or a `.jsonl` file.

    Args:
        source: the folder or file.
        text_column: default `text` if the file has it; none if `image_column` alone is given.
        image_column: default `image` if the file has it. A picture is a path below `images`, bytes,
            `{"bytes": ..., "path": ...}` as in published data sets, or a list of these.
        instruction: for every row.
        images: what the paths of a file's pictures are relative to, and must lie in; default the file's folder.

    Raises:
        ZooError: nothing there, another kind of file, no such column (with the nearest), no rows.
    """
    if source.is_dir():
        if text_column or image_column or images:
            raise ZooError(f"{source} is a folder of pictures; columns and --images belong to Parquet and JSONL files")
        return _Folder(source, instruction)
    if not source.is_file():
        raise ZooError(f"there is no '{source}'; give a folder of pictures, a .parquet or a .jsonl file")
    kinds: dict[str, type[_Records]] = {".parquet": _Parquet, ".jsonl": _JsonLines, ".ndjson": _JsonLines}
    if source.suffix not in kinds:
        raise ZooError(f"{source} can't be embedded: give a folder of pictures, a .parquet or a .jsonl file")
    return kinds[source.suffix](source, text_column, image_column, instruction, images or source.parent)


class _Folder:
    def __init__(self, folder: Path, instruction: str | None) -> None:
        from zoo.data.sources.folder import list_images

        self.columns: list[str] = []
        self.folder, self.instruction = folder, instruction
        self.files = list_images(folder)
        if not self.files:
            raise ZooError(f"there are no pictures in {folder} or below it")
        digest = hashlib.sha256()
        for file in self.files:
            facts = file.stat()
            digest.update(f"{file.relative_to(folder).as_posix()}\t{facts.st_size}\t{facts.st_mtime_ns}\n".encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def shards(self, size: int, wanted: Collection[int]) -> Iterator[tuple[int, list[Row]]]:
        for k in sorted(wanted):
            yield k, [self._row(number) for number in range(k * size, min((k + 1) * size, len(self)))]

    def _row(self, number: int) -> Row:
        file = self.files[number]
        name = file.relative_to(self.folder).as_posix()
        return Row(number, name, str(file.absolute()), None, Item(images=(file,), instruction=self.instruction))


class _Records:
    """Rows of a file as mappings; the kinds of file differ in `names`, `__len__` and `records`."""

    def __init__(self, file: Path, text: str | None, image: str | None, instruction: str | None, images: Path) -> None:
        self.file, self.instruction, self.images = file, instruction, images
        names = self.names()
        for name in (text, image):
            if name is not None and name not in names:
                raise UnknownNameError(f"column of {file.name}:", name, names, f"(there are {', '.join(names)})")
        given = text is not None or image is not None
        self.text = text if given else _TEXT if _TEXT in names else None
        self.image = image if given else _IMAGE if _IMAGE in names else None
        if self.text is None and self.image is None:
            raise ZooError(
                f"{file} has no column 'text' or 'image': name what to embed with --text-column or --image-column "
                f"(there are {', '.join(names)})"
            )
        if not len(self):
            raise ZooError(f"{file} has no rows")
        self.columns = [name for name in (self.text, self.image) if name]
        self.fingerprint = sha256(file)

    def names(self) -> list[str]:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def records(self, first: int) -> Iterator[Mapping[str, Any] | str]:
        """Records from number `first` on; a str instead of one says why it can't be read."""
        raise NotImplementedError

    def shards(self, size: int, wanted: Collection[int]) -> Iterator[tuple[int, list[Row]]]:
        for k in sorted(wanted):
            source = self.records(k * size)
            yield k, [self._row(n, next(source)) for n in range(k * size, min((k + 1) * size, len(self)))]

    def _row(self, number: int, record: Mapping[str, Any] | str) -> Row:
        if isinstance(record, str):
            return Row(number, str(number), None, None, Item(), record)
        name = str(record[_ID]) if record.get(_ID) is not None else str(number)
        try:
            text = _text(record.get(self.text)) if self.text else None
            values = _listed(record.get(self.image)) if self.image else []
            images = tuple(_picture(value, self.images) for value in values)
        except ZooError as error:
            return Row(number, name, None, None, Item(), str(error))
        path = next((str(i) for i in images if isinstance(i, Path)), None)
        return Row(number, name, path, text, Item(text, images, self.instruction))


class _Parquet(_Records):
    def _open(self) -> Any:
        import pyarrow.parquet as pq

        try:
            return pq.ParquetFile(self.file)
        except (OSError, ValueError) as error:
            raise ZooError(f"{self.file} can't be read as Parquet: {error}") from error

    def names(self) -> list[str]:
        return list(self._open().schema_arrow.names)

    def __len__(self) -> int:
        return int(self._open().metadata.num_rows)

    def records(self, first: int) -> Iterator[Mapping[str, Any] | str]:
        file = self._open()
        columns = [c for c in dict.fromkeys((self.text, self.image, _ID)) if c in file.schema_arrow.names]
        start = 0
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if start + rows > first:  # groups before are skipped without being read
                for batch in file.iter_batches(256, row_groups=[group], columns=columns):
                    if start + len(batch) > first:
                        yield from batch.slice(max(0, first - start)).to_pylist()
                    start += len(batch)
            else:
                start += rows


class _JsonLines(_Records):
    def names(self) -> list[str]:
        """Of the first lines together: a line may leave out what it does not have."""
        first = [record for record in islice(self.records(0), 1000) if not isinstance(record, str)]
        if not first:
            raise ZooError(f"{self.file} has no line that is a JSON object")
        return list(dict.fromkeys(name for record in first for name in record))

    def __len__(self) -> int:
        with self.file.open("rb") as lines:
            return sum(1 for line in lines if line.strip())

    def records(self, first: int) -> Iterator[Mapping[str, Any] | str]:
        count = 0
        with self.file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                count += 1
                if count > first:
                    yield _parsed(line, number)


def _parsed(line: bytes, number: int) -> Mapping[str, Any] | str:
    try:
        record = json.loads(line)
    except ValueError as error:
        return f"line {number} is no JSON: {error}"
    return record if isinstance(record, dict) else f"line {number} is no JSON object"


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ZooError(f"the text is a {type(value).__name__}, not a str")
    return value


def _listed(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return value if isinstance(value, list) else [value]


def _picture(value: Any, folder: Path) -> Path | bytes:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value:
        return below(folder, value, "the picture").absolute()
    raise ZooError(f"a picture is a {type(value).__name__}, not a path or bytes")
