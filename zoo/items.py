"""Whatever people hand to a model -> Items."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from zoo.data.processors.collate import check
from zoo.data.processors.image_arrays import size_of
from zoo.data.processors.image_sources import ImageError, as_source, is_address, is_array, is_content, is_stream
from zoo.errors import SampleError, suggest
from zoo.types import ImageSource, Item

_FIELDS = ("text", "image", "images", "instruction", "place")
_SINGLE = (str, bytes, bytearray, memoryview, Path, Mapping, Item)


def is_single(things: Any) -> bool:
    """Whether this is one thing rather than a list of things."""
    return isinstance(things, _SINGLE) or is_array(things) or is_stream(things) or not isinstance(things, Iterable)


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
        return replace(thing, images=tuple(_image(image, name) for image in thing.images)) if thing.images else thing
    if isinstance(thing, str):
        return Item(text=thing)
    if isinstance(thing, Path | Image.Image) or _is_bytes(thing) or is_array(thing) or is_stream(thing):
        return Item(images=(_image(thing, name),))
    if isinstance(thing, Mapping):
        return _item_of_fields(thing, name)
    raise SampleError(
        f"{name}: a {type(thing).__name__} can't be embedded; give a str (text), a Path, bytes, an open file, a PIL image, "
        f"an array or a tensor (image), a dict with any of {', '.join(_FIELDS)}, or an Item"
    )


def _is_bytes(thing: Any) -> bool:
    return isinstance(thing, bytes | bytearray | memoryview)


def _image(thing: Any, name: str) -> ImageSource:
    """Paths are looked at where they are opened: a batch may leave out what can't be."""
    if isinstance(thing, Path) or (isinstance(thing, str) and not is_content(thing)):
        return Path(thing) if not is_address(thing) else str(thing)
    try:
        return as_source(thing, f"{name}: image")
    except ImageError as error:
        raise SampleError(str(error)) from error


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
    return Item(
        fields.get("text"),
        tuple(_image(image, name) for image in images),
        fields.get("instruction"),
        place=_place(fields.get("place"), name),
    )


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


def _area(image: ImageSource) -> int:
    """Pixels, from the header alone; 0 for an image that can't be opened: the processor will say why."""
    try:
        width, height = size_of(image)
    except ImageError:
        return 0
    return width * height
