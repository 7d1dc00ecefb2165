"""Whatever people hand over as an image -> a path, encoded bytes or a PIL image; and files without their metadata.

Copied beside exported graphs with `image_arrays.py`, and as free of other imports.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # two letters or more: C:/ is a path
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{32,}={0,2}\s*")
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_STARTS = (_PNG, _JPEG, b"GIF8", b"RIFF", b"II*\0", b"MM\0*")  # of encoded images
_CHANNELS = (1, 3, 4)


class ImageError(ValueError):
    """An image that can't be used; the message says which and why. damaged: its metadata may be to blame."""

    def __init__(self, message: str, damaged: bool = False) -> None:
        super().__init__(message)
        self.damaged = damaged


def is_array(thing: Any) -> bool:
    """Whether this may be the pixels of one image: an array or tensor of two or three axes."""
    return hasattr(thing, "shape") and hasattr(thing, "dtype") and len(thing.shape) in (2, 3)


def is_stream(thing: Any) -> bool:
    """Whether this is an open file, or acts as one."""
    return callable(getattr(thing, "read", None))


def is_address(path: str | Path) -> bool:
    """Whether this names something on the network rather than a file."""
    return _ADDRESS.match(str(path)) is not None


def is_content(text: str) -> bool:
    """Whether this is an image itself, as a `data:` address or base64, rather than where one lies."""
    return text.startswith("data:") or _of_base64(text) is not None


def as_source(thing: Any, where: str) -> Path | bytes | Image.Image:
    """A path, encoded bytes or a PIL image from any of these, a `data:` address, base64, an open binary file, a numpy array
    (H, W), (H, W, 3) or (H, W, 4) of uint8, or a torch tensor (H, W), (3, H, W) or (H, W, 3) of uint8.

    Raises:
        ImageError: anything else, an address of another kind, no such file, or nothing in it; begins with `where`.
    """
    if isinstance(thing, Image.Image):
        return thing
    if isinstance(thing, bytes | bytearray | memoryview):
        return _filled(bytes(thing), where)
    if isinstance(thing, str) and thing.startswith("data:"):
        return _filled(_of_data_address(thing, where), where)
    if isinstance(thing, str) and (content := _of_base64(thing)) is not None:
        return content
    if isinstance(thing, str | Path):
        return _file(thing, where)
    if is_stream(thing):
        content = thing.read()
        if not isinstance(content, bytes):
            raise ImageError(f"{where} is a file opened as text; open it with 'rb'")
        return _filled(content, where)
    if is_array(thing):
        return _of_array(thing, where)
    raise ImageError(
        f"{where} is a {type(thing).__name__}, not a path, encoded bytes, an open file, a PIL image, an array or a tensor"
    )


def _filled(content: bytes, where: str) -> bytes:
    if not content:
        raise ImageError(f"{where} is empty (0 bytes)")
    return content


def _of_data_address(address: str, where: str) -> bytes:
    head, comma, data = address.partition(",")
    try:
        if not comma:
            raise ValueError("it has no comma")
        return (
            base64.b64decode(unquote_to_bytes(data), validate=True)
            if head.endswith(";base64")
            else unquote_to_bytes(data)
        )
    except ValueError as error:  # binascii's, too
        raise ImageError(f"{where} {address[:40]}... is no valid data: address: {error}") from error


def _of_base64(text: str) -> bytes | None:
    """The bytes, if this can be nothing but an encoded image."""
    if not _BASE64.fullmatch(text[:64]) or not _BASE64.fullmatch(text):
        return None
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error:
        return None
    return content if content.startswith(_STARTS) or content[4:8] == b"ftyp" else None


def _file(path: str | Path, where: str) -> Path:
    """The path of a file that can be read and holds something."""
    if is_address(path):
        raise ImageError(
            f"{where} {str(path)[:80]} is an address, and nothing is fetched from addresses: download it and give the path, "
            "or fetch it yourself and give the bytes"
        )
    where, path = f"{where} {path}", Path(path)
    try:
        if path.is_dir():
            raise ImageError(f"{where} is a folder, not a file")
        if not path.is_file():
            raise ImageError(f"{where} does not exist")
        if path.stat().st_size == 0:
            raise ImageError(f"{where} is empty (0 bytes)")
        with path.open("rb"):
            return path
    except (OSError, ValueError) as error:  # no permission, a name that no file can have
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{where} can't be read: {error}") from error


def _of_array(thing: Any, where: str) -> Image.Image:
    tensor = hasattr(thing, "detach")
    pixels = thing.detach().cpu().numpy() if tensor else np.asarray(thing)
    if pixels.dtype != np.uint8:
        raise ImageError(
            f"{where} is an array of {pixels.dtype}, not of uint8: scale it to 0 to 255, round it, and convert it yourself"
        )
    if pixels.ndim == 3 and (pixels.shape[2] not in _CHANNELS or (tensor and pixels.shape[0] in _CHANNELS)):
        pixels = pixels.transpose(1, 2, 0)  # channels first, as torch has them
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if not pixels.size or (pixels.ndim == 3 and pixels.shape[2] not in _CHANNELS):
        raise ImageError(
            f"{where} is an array of shape {tuple(thing.shape)}: give height, width and 1, 3 or 4 channels"
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


# ---- metadata --------------------------------------------------------------------------------------------------------


def without_metadata(source: Path | bytes | Image.Image) -> bytes | None:
    """A PNG or JPEG file without what says nothing about its pixels; the orientation stays. None = nothing was left out."""
    if isinstance(source, Image.Image):
        return None
    try:
        content = source.read_bytes() if isinstance(source, Path) else source
    except OSError:  # removed meanwhile; what is known of it already is said
        return None
    if not content.startswith((_PNG, _JPEG)):
        return None
    parts = list(_png_parts(content) if content.startswith(_PNG) else _jpeg_parts(content))
    kept = b"".join(part for part, needed in parts if needed)
    return kept if 0 < len(kept) < len(content) else None


def _png_parts(content: bytes) -> Iterator[tuple[bytes, bool]]:
    """The chunks of a PNG, and whether pixels need them: those with a capital first letter, transparency, orientation."""
    yield content[:8], True
    at = 8
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        chunk = content[at:end]
        name = chunk[4:8]
        sound = int.from_bytes(chunk[-4:], "big") == zlib.crc32(chunk[4:-4])
        yield chunk, name[:1].isupper() or name == b"tRNS" or (name == b"eXIf" and sound)
        at = end


def _jpeg_parts(content: bytes) -> Iterator[tuple[bytes, bool]]:
    """The segments in front of a JPEG's pixels, and whether pixels need them: all but comments and applications' own, of
    which Adobe's says what the colours are and Exif which side is up.
    """
    at = 2
    yield content[:at], True
    while content[at : at + 1] == b"\xff" and content[at + 1 : at + 2] not in (b"\xda", b""):
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        segment = content[at:end]
        own = 0xE0 <= segment[1] <= 0xEF or segment[1] == 0xFE
        adobe = segment[4:9] == b"Adobe" and len(segment) >= 16
        yield segment, not own or adobe or segment[4:10] == b"Exif\0\0"
        at = end
    yield content[at:], True
