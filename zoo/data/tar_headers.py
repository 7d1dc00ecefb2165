"""What a tar file holds, read from its headers alone: nothing is unpacked, run or trusted.

The layout is that of POSIX.1-2017 (pax, "ustar Interchange Format") with GNU's long names and binary sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from zoo.errors import ZooError

BLOCK = 512
LONGEST_NAME = 1 << 20
"""Bytes of an extended header that are read (ours): a name takes some hundred."""
LONGEST_END = 1 << 26
"""Zero bytes behind the last member that are looked through (ours): tar pads to 10 KiB."""

FILE, LINK, DEVICE, FOLDER, SPARSE, UNKNOWN = "file", "link", "device", "folder", "sparse file", "unknown"
_KINDS = {
    **dict.fromkeys((b"0", b"\0", b"7"), FILE),
    **dict.fromkeys((b"1", b"2"), LINK),
    **dict.fromkeys((b"3", b"4", b"6"), DEVICE),
    b"5": FOLDER,
    b"S": SPARSE,
}
_MOST_DIGITS = 7  # of the length of an entry in an extended header, which is not longer than the header
_SPARSE = "GNU.sparse"
_EXTENSIONS = (b"x", b"g", b"L", b"K")  # they describe the next member, or all
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_ZEROS = bytes(BLOCK)


class DamagedTarError(Exception):
    """From here on the file can't be read; the members before are whole. Says where and why."""


@dataclass(frozen=True, slots=True)
class Member:
    """One entry: its name as written (never a path to trust), what it is, and where its bytes lie in the tar file."""

    name: str
    kind: str
    offset: int
    size: int


def read_members(path: Path) -> Iterator[Member]:
    """The members in their order. Archives joined by `cat` are read to the end.

    Raises:
        ZooError: no tar file, or a compressed one.
        DamagedTarError: a header that is none, a member that goes on behind the end of the file, or no end: archives close
            with empty blocks, so a file without them was cut off, even if between two members.
    """
    try:
        with path.open("rb", buffering=0) as file:
            _refuse_others(file, path)
            yield from _members(file, path.stat().st_size)
    except OSError as error:
        raise ZooError(f"{path} can't be read: {error.strerror or error}") from error


def _refuse_others(file: BinaryIO, path: Path) -> None:
    first = file.read(BLOCK)
    for magic, name in _COMPRESSED.items():
        if first.startswith(magic):
            raise ZooError(f"{path} is compressed ({name}): samples are read from their place in the file; unpack it")
    if len(first) < BLOCK or (first != _ZEROS and not _checksum_fits(first)):
        raise ZooError(f"{path} is no tar file")


def _members(file: BinaryIO, end: int) -> Iterator[Member]:
    position, extended, closed = 0, dict[str, str](), False
    while position < end:
        header = _read(file, position, BLOCK)
        closed = header == _ZEROS
        if closed:
            position = _behind_zeros(file, position, end)
            continue
        kind, name, size = _parsed(header, position)
        data = position + BLOCK
        if kind in _EXTENSIONS:
            if data + size > end:
                raise DamagedTarError(f"the extended header at byte {position:,} is cut off")
            if kind in (b"x", b"L"):
                extended |= _extended(file, kind, data, size)
            position = data + _padded(size)
            continue
        name, size = extended.get("path", name), _size_of(extended, size, position)
        what = FOLDER if name.endswith("/") and kind == b"\0" else _KINDS.get(kind, UNKNOWN)
        what = SPARSE if _SPARSE in extended else what
        if what in (LINK, DEVICE, FOLDER):
            size = 0
        if data + size > end:
            raise DamagedTarError(f"'{name}' is cut off: {size:,} bytes from {data:,} on, the file ends at {end:,}")
        yield Member(name, what, data, size)
        position, extended = data + _padded(size), {}
    if not closed:
        raise DamagedTarError(f"it ends at {end:,} without the empty blocks that close an archive: it is cut off")


def _parsed(header: bytes, position: int) -> tuple[bytes, str, int]:
    """Type, name and size."""
    if len(header) < BLOCK or not _checksum_fits(header):
        raise DamagedTarError(f"there is no valid header at byte {position:,}")
    name, prefix = _text(header[:100]), _text(header[345:500])
    if prefix and header[257:263] == b"ustar\0":  # GNU's own header has times in this place
        name = f"{prefix}/{name}"
    try:
        size = int.from_bytes(header[125:136], "big") if header[124] == 0x80 else _octal(header[124:136])
    except ValueError:
        size = -1
    if size < 0:
        raise DamagedTarError(f"the header at byte {position:,} has no valid size")
    return header[156:157], name, size


def _checksum_fits(header: bytes) -> bool:
    try:
        written = _octal(header[148:156])
    except ValueError:
        return False
    return written == sum(header) - sum(header[148:156]) + 8 * ord(" ")


def _extended(file: BinaryIO, kind: bytes, position: int, size: int) -> dict[str, str]:
    """What an extended header says about the next member: its path, its size, whether it is sparse."""
    if size > LONGEST_NAME:
        raise DamagedTarError(f"the extended header at byte {position:,} claims {size:,} bytes")
    content = _read(file, position, size)
    if kind == b"L":
        return {"path": _text(content)}
    values, start = {}, 0
    while start < len(content):
        digits, blank, _ = content[start : start + _MOST_DIGITS + 1].partition(b" ")
        end = start + int(digits) if blank and digits.isdigit() else start
        if not start < end <= len(content):
            raise DamagedTarError(f"the extended header at byte {position:,} is not readable")
        key, _, value = content[start + len(digits) + 1 : end - 1].partition(b"=")
        name = _SPARSE if key.startswith(_SPARSE.encode()) else _text(key)
        if name in ("path", "size", _SPARSE):
            values[name] = _text(value)
        start = end
    return values


def _size_of(extended: dict[str, str], size: int, position: int) -> int:
    text = extended.get("size", str(size))
    if not text.isdecimal() or len(text) > 19:
        raise DamagedTarError(f"the header at byte {position:,} has no valid size")
    return int(text)


def _behind_zeros(file: BinaryIO, position: int, end: int) -> int:
    """The next block that is not empty, or the end."""
    start, step = position, 1 << 16
    while position < end:
        block = _read(file, position, step)
        rest = block.lstrip(b"\0")
        if rest:
            return position + (len(block) - len(rest)) // BLOCK * BLOCK
        position += len(block) or step
        if position - start > LONGEST_END:
            raise DamagedTarError(f"there are only zeros from byte {start:,} on")
    return end


def _read(file: BinaryIO, position: int, size: int) -> bytes:
    file.seek(position)
    parts = []
    while size and (part := file.read(size)):  # a raw read may give less than it was asked for
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")


def _octal(field: bytes) -> int:
    return int(_text(field).strip() or "0", 8)
