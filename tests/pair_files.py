"""Small pictures, pairs and tar files for the tests of sources."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image


def picture(seed: int = 0, size: tuple[int, int] = (4, 3), kind: str = "PNG", mode: str = "RGB") -> bytes:
    """Encoded; another colour for every seed."""
    colour = (seed * 37 % 256, seed * 101 % 256, seed % 256)
    out = io.BytesIO()
    Image.new("RGB", size, colour).convert(mode).save(out, kind)
    return out.getvalue()


def giant_header(side: int = 60_000) -> bytes:
    """A PNG that claims side x side pixels, made without memory for them."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """A header; `content` is only measured."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, link
    return info


def write_tar(
    path: Path,
    files: Mapping[str, bytes] | Sequence[tuple[str, bytes] | tarfile.TarInfo],
    form: int = tarfile.GNU_FORMAT,
) -> Path:
    """Members in this order; a header alone is a link, a device, a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for entry in files.items() if isinstance(files, Mapping) else files:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
            else:
                tar.addfile(member(*entry), io.BytesIO(entry[1]))
    return path


def pairs(count: int, first: int = 0) -> dict[str, bytes]:
    """`0000.png` and `0000.txt` and so on, all different."""
    files = {}
    for number in range(first, first + count):
        files[f"{number:04d}.png"] = picture(number)
        files[f"{number:04d}.txt"] = f"a picture of number {number}".encode()
    return files
