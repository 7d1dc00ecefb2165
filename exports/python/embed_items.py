"""Whatever people hand over -> items; and the lines of JSONL files, as `zoo embed` reads them. Used by `embed.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

FIELDS = ("text", "image", "images", "instruction", "place")
_ID = "id"
_BOM = b"\xef\xbb\xbf"


class EmbedError(ValueError):
    """A folder or an item that can't be used; the message says which and why."""


@dataclass(frozen=True)
class Item:
    """One thing to embed. `images` are paths, encoded bytes or PIL images; `place` is latitude and longitude in degrees."""

    text: str | None = None
    images: tuple[Any, ...] = ()
    instruction: str | None = None
    place: tuple[float, float] | None = None


@dataclass(frozen=True)
class Line:
    """A line of a JSONL file that is not blank: where it stands, its id (its number among them, from 0, if it has none),
    and its fields, or why it has none.
    """

    where: str
    id: str
    fields: Mapping[str, Any] | None
    error: str = ""


def is_single(things: Any, sources: ModuleType) -> bool:
    """Whether this is one thing to embed, and not several. sources: `image_sources` of the folder."""
    one = isinstance(things, str | bytes | bytearray | memoryview | Path | Mapping | Item)
    return one or hasattr(things, "getexif") or sources.is_array(things) or sources.is_stream(things)


def to_item(thing: Any, name: str, sources: ModuleType) -> Item:
    """One thing -> Item. EmbedError, beginning with `name`, if there is nothing in it that could be embedded."""
    if isinstance(thing, Item):
        item = thing
    elif isinstance(thing, str):
        item = Item(text=thing)
    elif isinstance(thing, Mapping):
        item = _item_of_fields(thing, name)
    elif is_single(thing, sources):
        item = Item(images=(thing,))
    else:
        raise EmbedError(f"{name}: a {type(thing).__name__} can't be embedded; give a text, an image, or a dict")
    for what in ("text", "instruction"):
        _check_unicode(getattr(item, what), f"{name}: the {what}")
    if item.text is not None and not item.text.strip():
        raise EmbedError(f"{name}: the text is empty; leave it out for an item without text")
    if item.text is None and not item.images and item.place is None:
        raise EmbedError(f"{name}: neither text nor image nor place, there is nothing to embed")
    try:  # a stream can be read once, and items may be looked at twice
        read = [sources.as_source(i, f"{name}: image") if sources.is_stream(i) else i for i in item.images]
    except sources.ImageError as error:
        raise EmbedError(str(error)) from error
    return replace(item, images=tuple(read))


def read_lines(file: Path) -> Iterator[Line]:
    """The lines of a JSONL file: UTF-8 with or without a byte order mark; a line feed alone ends a line; blank ones are
    skipped. Relative paths of images are looked for beside the file, as `zoo embed` does, and then from here.

    Raises:
        EmbedError: the file is UTF-16, no text, or one JSON array. OSError: it can't be read.
    """
    number = 0
    with file.open("rb") as lines:
        for row, line in enumerate(lines, 1):
            if row == 1:
                if line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line[:64]:
                    raise EmbedError(f"{file} is UTF-16, UTF-32 or no text; save it as UTF-8")
                line = line.removeprefix(_BOM)
            if line.strip():
                if not number and _begins_array(line):
                    raise EmbedError(f"{file} is one JSON array, not JSONL: write one object a line")
                yield _line(line, f"{file}, line {row}", number, file.parent)
                number += 1


def printable(text: str) -> str:
    """For a terminal: what would steer it, and what it can't show, as an escape."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _begins_array(line: bytes) -> bool:
    """Whether the first line is that of an array of objects, on this line or on several."""
    if not line.lstrip().startswith(b"["):
        return False
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return True
    return bool(found) and all(isinstance(one, dict) for one in found)


def _line(line: bytes, where: str, number: int, folder: Path) -> Line:
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        return Line(where, str(number), None, f"{where}: no JSON ({error})")
    if not isinstance(record, dict):
        return Line(where, str(number), None, f"{where}: not an object with any of {', '.join(FIELDS)}")
    name = record.get(_ID)
    name = str(number) if name is None or name != name or name == "" else str(name)
    try:
        _check_unicode(name, f"{where}: the id")
    except EmbedError as error:
        return Line(where, str(number), None, str(error))
    fields = {key: value for key, value in record.items() if key in FIELDS}
    for key in ("image", "images"):
        if key in fields:
            cells = fields[key] if isinstance(fields[key], list) else [fields[key]]
            fields[key] = [_beside(cell, folder) for cell in cells if cell is not None and cell != ""]
    return Line(where, name, fields)


def _beside(cell: Any, folder: Path) -> Any:
    """An image of a line: a path, or a mapping that holds one."""
    path = cell.get("path") if isinstance(cell, Mapping) else cell
    try:
        return str(folder / path) if isinstance(path, str) and (folder / path).is_file() else path
    except (OSError, ValueError):  # a name that no file can have: base64, for one
        return path


def _item_of_fields(fields: Mapping[str, Any], name: str) -> Item:
    for key in ("text", "instruction"):
        if fields.get(key) is not None and not isinstance(fields[key], str):
            raise EmbedError(f"{name}: '{key}' is a {type(fields[key]).__name__}, not a str")
    unknown = [key for key in fields if key not in FIELDS]
    if unknown:
        raise EmbedError(f"{name}: unknown field '{unknown[0]}' (there are {', '.join(FIELDS)})")
    images: list[Any] = []
    for key in ("image", "images"):
        value = fields.get(key)
        if value is not None:
            images += value if isinstance(value, list | tuple) else [value]
    return Item(fields.get("text"), tuple(images), fields.get("instruction"), _place(fields.get("place"), name))


def _place(value: Any, name: str) -> tuple[float, float] | None:
    if value is None:
        return None
    numbers = [v for v in value if isinstance(v, int | float)] if isinstance(value, list | tuple) else []
    if len(numbers) != 2 or len(value) != 2:
        raise EmbedError(f"{name}: 'place' is a latitude and a longitude in degrees, e.g. [48.2, 16.4], not {value!r}")
    return float(numbers[0]), float(numbers[1])


def _check_unicode(text: str | None, where: str) -> None:
    """JSON can write half a surrogate pair, which no tokenizer takes."""
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        shown = (text or "")[max(0, error.start - 20) : error.end + 20]
        raise EmbedError(f"{where} is not valid Unicode: {shown!a}; take the broken character out") from error
