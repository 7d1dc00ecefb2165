"""One file of latents: a safetensors file that is mapped into memory, so that only the rows that are asked for are read.

Shapes: N rows, D width of a latent, L tokens of the longest row.

keys     (N, 2) uint64      of the parts, see `zoo.data.parts`
pooled   (N, D)             float32 or float16
tokens   (N, L, D)          where tokens are kept; behind the length of a row there are zeros
lengths  (N,) int64         tokens of each row
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from zoo.data.parts import Keys
from zoo.errors import ZooError
from zoo.files import replacing

Array = np.ndarray[Any, Any]
StorageDtype = Literal["float32", "float16"]

_DTYPES: Mapping[str, str] = {"F32": "<f4", "F16": "<f2", "U64": "<u8", "I64": "<i8"}
_WANTED: Mapping[str, tuple[str, ...]] = {"keys": ("U64",), "pooled": ("F32", "F16"), "lengths": ("I64",)}
_LEFT_OUT = "left_out"
_MOST_HEADER = 100_000_000  # bytes; the limit of safetensors itself


class LatentError(ZooError):
    """A file or folder of latents that can't be used: says which, why, and the way out."""


@dataclass(frozen=True, slots=True)
class LeftOutPart:
    """A part without a latent: its row in the list, its key in hexadecimal, and why it could not be used."""

    row: int
    key: str
    error: str


@dataclass(frozen=True, slots=True)
class LatentRows:
    """The rows of one file, in the order of the list; `left_out` are those that could not be used."""

    keys: Keys
    pooled: Array
    tokens: Array | None = None
    lengths: Array | None = None
    left_out: tuple[LeftOutPart, ...] = ()

    @property
    def dtype(self) -> str:
        """float32 or float16."""
        return str(self.pooled.dtype)


def write_rows(path: Path, rows: LatentRows) -> None:
    """Write a file, whole or not at all.

    Raises:
        ZooError: no space left, or the place can't be written.
    """
    from safetensors.numpy import save

    tensors = {"keys": rows.keys, "pooled": rows.pooled}
    if rows.tokens is not None and rows.lengths is not None:
        tensors |= {"tokens": rows.tokens, "lengths": rows.lengths}
    facts = {_LEFT_OUT: json.dumps([asdict(part) for part in rows.left_out])}
    content = save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, facts)
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # or a power cut may leave a name without its bytes


def map_rows(path: Path) -> LatentRows:
    """The rows of a file without reading them.

    Raises:
        LatentError: missing, half-written, or not of this layout; says so.
    """
    try:
        header, start, size = _header(path)
        # torch maps without keeping the file open: there may be more of them than a process may have open
        raw = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()
        raw.flags.writeable = False
        left_out = json.loads(header.pop("__metadata__", {}).get(_LEFT_OUT, "[]"))
        found = {name: _tensor(path, name, entry, raw[start:]) for name, entry in header.items()}
    except FileNotFoundError as error:
        raise damaged(path, "is missing") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, struct.error) as error:
        raise damaged(path, f"is half-written or no file of latents ({error})") from error
    for name in ("keys", "pooled"):
        if name not in found:
            raise damaged(path, f"has no `{name}`")
    counts = {name: len(tensor) for name, tensor in found.items()}
    if len(set(counts.values())) != 1:
        raise damaged(path, f"does not have as many rows in each part: {counts}")
    parts = tuple(LeftOutPart(**part) for part in left_out)
    return LatentRows(found["keys"], found["pooled"], found.get("tokens"), found.get("lengths"), parts)


def damaged(path: Path, why: str) -> LatentError:
    """The error for a file that must not be used, with the way out."""
    folder, encoder = path.parent, path.parent.parent
    return LatentError(
        f"{path} {why}; remove its folder (zoo cache --folder {encoder.parent} --remove {encoder.name}/{folder.name}) "
        "and let it be filled again"
    )


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Name -> dtype, shape and place of every tensor; where the tensors begin; size of the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(size, _MOST_HEADER):
            raise ValueError(f"its header claims {length:,} of {size:,} bytes")
        header: dict[str, Any] = json.loads(file.read(length))
    end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    if 8 + length + end != size:
        raise ValueError(f"it has {size:,} bytes, its header names {8 + length + end:,}")
    return header, 8 + length, size


def _tensor(path: Path, name: str, entry: Mapping[str, Any], raw: Array) -> Array:
    kind, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if kind not in _WANTED.get(name, _WANTED["pooled"]) or not shape:
        raise damaged(path, f"holds `{name}` as {kind} of {shape}")
    values: Array = raw[start:stop].view(_DTYPES[kind])
    if values.size != np.prod(shape, dtype=np.int64):
        raise damaged(path, f"holds {values.size:,} values of `{name}`, not {shape}")
    return values.reshape(shape)
