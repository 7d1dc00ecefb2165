"""The rows of a large PNG, some at a time: Pillow alone decodes all of them before it gives any.

Copied beside exported graphs with `image_arrays.py`, and as free of other imports.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image

_START = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {2: 3, 4: 2, 6: 4}  # colour type -> bytes of a pixel, where it is more than one
_READ = 2**16  # bytes of the file at a time


def png_rows(source: Path | bytes, step: int) -> Iterator[Image.Image] | None:
    """`step` rows after `step` rows from the top, as Pillow decodes them. None = no PNG; or Pillow needs as little memory
    for all (grey, palettes); or rows do not stand in order (interlaced), or have 16 bits a channel.

    Raises:
        ValueError, EOFError, OSError: while rows are asked for: the file is damaged or truncated.
    """
    with _open(source) as file:
        head = file.read(33)
    if len(head) < 33 or not head.startswith(_START) or head[12:16] != b"IHDR":
        return None
    _, _, depth, colours, _, _, interlaced = struct.unpack(">IIBBBBB", head[16:29])
    return _decoded(source, head[16:29], step) if depth == 8 and not interlaced and colours in _CHANNELS else None


def png_exif(source: Path | bytes) -> bytes:
    """The content of the chunk `eXIf`, wherever it stands; empty = there is none."""
    with _open(source) as file:
        file.seek(len(_START))
        while len(head := file.read(8)) == 8:
            length = int.from_bytes(head[:4], "big")
            if head[4:] == b"eXIf":
                return file.read(length)
            file.seek(length + 4, io.SEEK_CUR)
    return b""


def _decoded(source: Path | bytes, header: bytes, step: int) -> Iterator[Image.Image]:
    width, height, _, colours = struct.unpack(">IIBB", header[:10])
    length = 1 + width * _CHANNELS[colours]  # the number of the filter, then the pixels
    above = b""  # the last row before, to which filters refer
    with _open(source) as file:
        transparency = _skipped_to_pixels(file)
        pixels = _Inflated(file)
        for y in range(0, height, step):
            rows = min(step, height - y)
            filtered = (b"\0" + above if above else b"") + pixels.read(rows * length)
            count = rows + bool(above)
            parts = (
                (b"IHDR", struct.pack(">II", width, count) + header[8:]),
                *transparency,
                (b"IDAT", zlib.compress(filtered, 0)),  # stored, not compressed
                (b"IEND", b""),
            )
            with Image.open(io.BytesIO(_START + b"".join(_chunk(*part) for part in parts)), formats=("PNG",)) as band:
                band.load()
                above = band.crop((0, count - 1, width, count)).tobytes()
                yield band.crop((0, count - rows, width, count))
        pixels.check()


class _Inflated:
    """What the chunks `IDAT` of an open PNG hold, from the first one on, inflated."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.left = file, 0
        self.inflate = zlib.decompressobj()

    def read(self, count: int) -> bytes:
        """So many bytes. EOFError if there are not as many, ValueError if they are damaged."""
        found = bytearray()
        while len(found) < count:
            found += self._more(count - len(found))
        return bytes(found)

    def check(self) -> None:
        """Raise ValueError if the sum behind the last row is another one. It may be missing, as Pillow allows."""
        with contextlib.suppress(EOFError):
            while not self.inflate.eof:
                self._more(1)

    def _more(self, most: int) -> bytes:
        data = self.inflate.unconsumed_tail or self._stored()
        try:
            return self.inflate.decompress(data, most)
        except zlib.error as error:
            raise ValueError(f"broken PNG file ({error})") from error

    def _stored(self) -> bytes:
        while not self.left:
            if self.inflate.eof:
                raise EOFError("image file is truncated")
            self.left, name = _next_chunk(self.file)
            if name != b"IDAT":
                raise EOFError("image file is truncated")
            if not self.left:
                self.file.seek(4, io.SEEK_CUR)
        data = self.file.read(min(_READ, self.left))
        if not data or self.inflate.eof:
            raise EOFError("image file is truncated")
        self.left -= len(data)
        if not self.left:
            self.file.seek(4, io.SEEK_CUR)  # the check sum, which Pillow does not look at either
        return data


def _skipped_to_pixels(file: BinaryIO) -> list[tuple[bytes, bytes]]:
    """Go to the length of the first `IDAT`; the chunk that says which colour is transparent, if there is one."""
    file.seek(len(_START))
    found: list[tuple[bytes, bytes]] = []
    while True:
        length, name = _next_chunk(file)
        if name == b"IDAT":
            file.seek(-8, io.SEEK_CUR)
            return found
        if name == b"tRNS":
            found = [(name, file.read(length))]
            file.seek(4, io.SEEK_CUR)
        else:
            file.seek(length + 4, io.SEEK_CUR)


def _next_chunk(file: BinaryIO) -> tuple[int, bytes]:
    head = file.read(8)
    if len(head) < 8:
        raise EOFError("image file is truncated")
    return int.from_bytes(head[:4], "big"), head[4:]


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _open(source: Path | bytes) -> BinaryIO:
    return source.open("rb") if isinstance(source, Path) else io.BytesIO(source)
