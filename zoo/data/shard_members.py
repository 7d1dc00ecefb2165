"""The files that a record becomes in a tar shard."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

from PIL import Image

from zoo.data.images import open_image
from zoo.data.pairs import Record
from zoo.data.processors.image_arrays import Fit
from zoo.errors import SampleError

QUALITY = 92
"""Of pictures that are shrunk, as JPEG (ours)."""

_KEPT = {  # first bytes of the formats that go into a shard as they are
    "jpg": re.compile(rb"\xff\xd8\xff"),
    "png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "webp": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
}
_CHECKED = 64  # pixels: the side of what is made of an image that stays as it is, only to see whether it can be read


def members_of(record: Record, image_size: int | None = None) -> dict[str, bytes]:
    """Ending -> content: the picture (see `write_shards`), its first caption, and all captions with the record's names.

    Raises:
        SampleError: the picture can't be read or decoded.
    """
    ending, picture = _picture(record, image_size)
    about: dict[str, Any] = {"captions": record.captions, "id": record.id}
    if record.image_id:
        about["image_id"] = record.image_id
    text = json.dumps(about, ensure_ascii=False, sort_keys=True)
    return {ending: picture, "txt": record.captions[0].encode(), "json": text.encode("utf-8", "replace")}


def _picture(record: Record, image_size: int | None) -> tuple[str, bytes]:
    content = _content(record)
    kind = next((ending for ending, first in _KEPT.items() if first.match(content)), None)
    shrinks = False

    def size(width: int, height: int) -> tuple[int, int] | None:
        nonlocal shrinks
        shorter = min(width, height)
        shrinks = image_size is not None and shorter > image_size
        if image_size is not None and shrinks:
            return max(1, round(width * image_size / shorter)), max(1, round(height * image_size / shorter))
        return (min(width, _CHECKED), min(height, _CHECKED)) if kind else None

    opened = open_image(content, record.id, fit=Fit(size, Image.Resampling.LANCZOS))
    if shrinks:
        return "jpg", _encoded(opened, "JPEG", quality=QUALITY)
    return (kind, content) if kind else ("png", _encoded(opened, "PNG"))


def _content(record: Record) -> bytes:
    if isinstance(record.image, bytes):
        return record.image
    if not isinstance(record.image, str | Path):
        raise SampleError(f"{record.id}: a {type(record.image).__name__} is neither a path nor encoded bytes")
    try:
        return Path(record.image).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        why = getattr(error, "strerror", None) or error
        raise SampleError(f"{record.id}: image {record.image} can't be read: {why}") from error


def _encoded(picture: Image.Image, kind: str, **settings: Any) -> bytes:
    stream = io.BytesIO()
    picture.info.clear()
    picture.save(stream, kind, **settings)
    return stream.getvalue()
