"""Whatever people hand to a model -> Items."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from zoo.data.processors.collate import check
from zoo.errors import SampleError, suggest
from zoo.types import Item

_FIELDS = ("text", "image", "images", "instruction", "place")
_SINGLE = (str, bytes, Path, Mapping, Item)


def is_single(things: Any) -> bool:
    """Whether this is one thing rather than a list of things."""
    return isinstance(things, _SINGLE) or not isinstance(things, Iterable)


def to_items(things: Sequence[Any], instruction: str | None = None) -> list[Item]:
    """Things (see `Embedder`) to Items. Raises SampleError, naming the position, for one that holds nothing usable."""
    items = []
    for position, thing in enumerate(things):
        name = f"item {position}"
        item = _item(thing, name)
        if instruction is not None and item.instruction is None:
            item = replace(item, instruction=instruction)
        check(item, name)
        items.append(item)
    return items


def _item(thing: Any, name: str) -> Item:
    if isinstance(thing, Item):
        return thing
    if isinstance(thing, str):
        return Item(text=thing)
    if isinstance(thing, Path | bytes | Image.Image):
        return Item(images=(thing,))
    if isinstance(thing, Mapping):
        return _item_of_fields(thing, name)
    raise SampleError(
        f"{name}: a {type(thing).__name__} can't be embedded; give a str (text), Path, bytes or PIL image (picture), "
        f"a dict with any of {', '.join(_FIELDS)}, or an Item"
    )


def _item_of_fields(fields: Mapping[Any, Any], name: str) -> Item:
    for key in fields:
        if key not in _FIELDS:
            hint = suggest(str(key), _FIELDS)
            raise SampleError(
                f"{name}: unknown field '{key}'{f'; did you mean {hint[0]!r}?' if hint else ''} "
                f"(there are {', '.join(_FIELDS)})"
            )
    for key in ("text", "instruction"):
        if fields.get(key) is not None and not isinstance(fields[key], str):
            raise SampleError(f"{name}: '{key}' is a {type(fields[key]).__name__}, not a str")
    images: list[Any] = []
    for key in ("image", "images"):
        value = fields.get(key)
        if value is not None:
            images += value if isinstance(value, list | tuple) else [value]
    for image in images:
        if not isinstance(image, str | Path | bytes | Image.Image):
            raise SampleError(f"{name}: a picture is a path, bytes or a PIL image, not {type(image).__name__}")
    pictures = tuple(Path(image) if isinstance(image, str) else image for image in images)
    return Item(fields.get("text"), pictures, fields.get("instruction"), place=_place(fields.get("place"), name))


def _place(value: Any, name: str) -> tuple[float, float] | None:
    if value is None:
        return None
    numbers = [v for v in value if isinstance(v, int | float)] if isinstance(value, list | tuple) else []
    if len(numbers) != 2 or len(value) != 2:
        raise SampleError(f"{name}: 'place' is a latitude and a longitude in degrees, e.g. [48.2, 16.4], not {value!r}")
    return float(numbers[0]), float(numbers[1])


def padding_size(item: Item) -> tuple[int, int, int]:
    """Sorts items so that neighbours need little padding: number of pictures, their area, length of the text."""
    area = sum(_area(image) for image in item.images)
    return len(item.images), area, len(item.text or "") + len(item.instruction or "")


def _area(image: Any) -> int:
    """Pixels, from the header alone; 0 for a picture that can't be opened: the processor will say why."""
    if isinstance(image, Image.Image):
        return image.width * image.height
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return opened.width * opened.height
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0
