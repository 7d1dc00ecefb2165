"""The parts of an item that frozen encoders see one by one, and the keys under which their latents are kept.

A part is found by its content, never by its place in a data set: equal pictures, texts or places share one latent.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from zoo.errors import SampleError, ZooError
from zoo.types import Item

Keys = np.ndarray[Any, np.dtype[np.uint64]]
"""(N, 2): the first number of a key is looked up, the second tells two contents of one first number apart."""

Content = Any
"""A picture (path, encoded bytes or PIL image), a text, or a place (latitude and longitude in degrees)."""

MODALITIES = ("image", "text", "place")
_BYTES = 16  # of a key


def parts_of(item: Item) -> Iterator[tuple[str, Content]]:
    """Modality and content of every part of an item."""
    for image in item.images:
        yield "image", image
    if item.text is not None:
        yield "text", item.text
    if item.place is not None:
        yield "place", item.place


def item_of(modality: str, content: Content) -> Item:
    """An item of this part alone."""
    if modality == "image":
        return Item(images=(content,))
    return Item(text=content) if modality == "text" else Item(place=content)


def part_key(modality: str, content: Content) -> bytes:
    """16 bytes that are equal for equal content: blake2b of what tells it.

    Encoded bytes and texts are hashed as they are; of a file its absolute path, size and time of change; of a PIL image
    mode, size and pixels; of a place its two float64. A file that is missing has a key, too: whoever opens it can say why.

    Raises:
        SampleError: a PIL image that can't be decoded; something that is no part of an item.
    """
    if isinstance(content, bytes):
        told = content
    elif modality == "text":
        told = content.encode("utf-8", "surrogatepass")
    elif modality == "place":
        latitude, longitude = content
        told = struct.pack("<2d", latitude + 0.0, longitude + 0.0)  # -0.0 becomes 0.0
    else:
        told = _file_facts(content) if isinstance(content, str | Path) else _pixels(content)
    return blake2b(told, digest_size=_BYTES).digest()


def as_keys(raw: bytes | bytearray) -> Keys:
    """Keys in a row, 16 bytes each -> (N, 2)."""
    return np.frombuffer(raw, "<u8").reshape(-1, 2)


def distinct(keys: Keys, where: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Positions of the first key of every content, in their order.

    Raises:
        ZooError: two contents under one first number, which could then not be told apart by it.
    """
    _, first, same = np.unique(keys[:, 0], return_index=True, return_inverse=True)
    (clash,) = np.nonzero(keys[first[same], 1] != keys[:, 1])
    if len(clash):
        number = int(clash[0])
        raise ZooError(
            f"{where}: parts {int(first[same[number]])} and {number} differ but share the key {keys[number, 0]:016x}; "
            "leave one of them out"
        )
    return np.sort(first).astype(np.int64)


def described(modality: str, content: Content) -> str:
    """A part in a few words, for messages."""
    if isinstance(content, bytes):
        return f"{modality} of {len(content):,} bytes"
    if modality == "text":
        return f"text {content[:60]!r}"
    return f"{modality} {content}"


def _file_facts(path: str | Path) -> bytes:
    place = os.path.abspath(path)
    try:
        facts = os.stat(place)
    except (OSError, ValueError):
        return place.encode("utf-8", "surrogatepass")  # a name that no file can have has a key, too
    return f"{place}\0{facts.st_size}\0{facts.st_mtime_ns}".encode("utf-8", "surrogateescape")


def _pixels(image: Any) -> bytes:
    try:
        return f"{image.mode}{image.size}".encode() + bytes(image.tobytes())
    except AttributeError:
        raise SampleError(f"a picture is a path, bytes or a PIL image, not {type(image).__name__}") from None
    except OSError as error:
        raise SampleError(f"a PIL image of {image.size} is damaged: {error}") from error
