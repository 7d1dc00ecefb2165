"""Where the files of a tar shard lie, found once and kept beside it, so that any sample can be read without the others."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.left_out import NO_CONTENT, LeftOut
from zoo.data.tar_headers import FILE, FOLDER, DamagedTarError, read_members
from zoo.errors import ZooError
from zoo.files import cache_folder, replacing

VERSION = 3
"""Of the kept index. Raise it when the same tar file would give another one."""

PICKLES = frozenset(("pyd", "pickle", "pkl", "pth", "pt"))
"""Endings that webdataset unpickles, which runs whatever is in them. Here they are never opened."""

APPLE = "._"  # so begin the names of what macOS packs beside each file: its Finder attributes
Ints = np.ndarray[Any, np.dtype[np.int64]]
_READERS = 8  # threads that look through shards: most of their time they wait for the disk


@dataclass(frozen=True, slots=True)
class TarIndex:
    """The files of one shard; those of one key make up a record.

    length, changed: bytes of the shard and its time of change in ns, when it was indexed
    keys: names without endings, one after the other in UTF-8; `key_ends`: (K,) where each ends
    endings: the endings that occur, lower case, without the first dot
    record, ending, offset, size: (M,) of each file: numbers of its key and ending, and the place of its bytes
    left_out: members that are no usable files
    """

    path: Path
    length: int
    changed: int
    keys: bytes
    key_ends: Ints
    endings: tuple[str, ...]
    record: Ints
    ending: Ints
    offset: Ints
    size: Ints
    left_out: LeftOut

    def key(self, record: int) -> str:
        """Name of a record."""
        return self.keys[self.key_ends[record - 1] if record else 0 : self.key_ends[record]].decode()

    def files(self, ending: str) -> Ints:
        """(K,) number of the file with this ending of every record; -1 = it has none."""
        found = np.full(len(self.key_ends), -1, np.int64)
        if ending in self.endings:
            (files,) = np.nonzero(self.ending == self.endings.index(ending))
            found[self.record[files]] = files
        return found


def index_shards(paths: Sequence[Path]) -> list[TarIndex]:
    """The index of every shard, read from its kept file where the shard has not changed since.

    Raises:
        ZooError: a shard that is not there, no tar file, or compressed.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(index_shard, paths))


def index_shard(path: Path) -> TarIndex:
    """The index of one shard. It is kept beside the shard, or in the cache folder where that can't be written."""
    try:
        about = path.stat()
    except OSError as error:
        raise ZooError(f"{path} can't be read: {error.strerror}") from error
    state = {"version": VERSION, "length": about.st_size, "changed": about.st_mtime_ns}
    places = _places(path)
    for place in places:
        kept = _read(place, path, state)
        if kept is not None:
            return kept
    index = _scan(path, about.st_size, about.st_mtime_ns)
    for place in places:
        if _write(index, place, state):
            break
    return index


def split_name(name: str) -> tuple[str, str]:
    """`sub/0001.seg.png` -> (`sub/0001`, `seg.png`), as webdataset splits names; ("", "") for a name without either."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    key, _, ending = file.partition(".")
    return (f"{folder}{slash}{key}", ending.lower()) if key and ending else ("", "")


def _scan(path: Path, length: int, changed: int) -> TarIndex:
    left_out, keys, endings = LeftOut(), dict[str, int](), dict[str, int]()
    rows: list[tuple[int, int, int, int]] = []
    seen: set[tuple[int, int]] = set()
    try:
        for member in read_members(path):
            reason = _refusal(member.name, member.kind)
            key, suffix = split_name(member.name)
            if reason or not key:
                if member.kind != FOLDER:
                    left_out.note(reason or "members without key and ending", member.name[:200])
                continue
            number = keys.setdefault(key, len(keys)), endings.setdefault(suffix, len(endings))
            if number in seen:
                left_out.note("members of a name that was there before", member.name[:200])
                continue
            seen.add(number)
            rows.append((*number, member.offset, member.size))
    except DamagedTarError as error:
        left_out.note("damaged ends", str(error)[:300])
    names = [key.encode() for key in keys]
    ends = np.cumsum([len(name) for name in names], dtype=np.int64)
    record, ending, offset, size = np.array(rows, np.int64).reshape(-1, 4).T.copy()
    files = record, ending, offset, size
    return TarIndex(path, length, changed, b"".join(names), ends, tuple(endings), *files, left_out)


def _refusal(name: str, kind: str) -> str:
    """Why a member is not used; "" if it may be."""
    if kind != FILE:
        return f"members that are no plain files ({kind})"
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        return "members with a path that leads outside"
    if parts[-1].startswith(APPLE):
        return NO_CONTENT
    if parts[-1].startswith("."):
        return "hidden members"
    return "members that are pickles" if split_name(name)[1].rpartition(".")[2] in PICKLES else ""


def _places(path: Path) -> tuple[Path, Path]:
    name = hashlib.blake2b(os.fsencode(path.absolute()), digest_size=16).hexdigest()
    return path.with_name(f"{path.name}.index.npz"), cache_folder() / "shards" / f"{name}.npz"


def _write(index: TarIndex, place: Path, state: dict[str, int]) -> bool:
    """Whether it could be kept there: other processes may do the same at the same time."""
    about = json.dumps(state | {"endings": index.endings, "left_out": index.left_out.as_json()})
    arrays = {name: getattr(index, name) for name in ("key_ends", "record", "ending", "offset", "size")}
    try:
        with replacing(place) as partial, partial.open("wb") as file:
            np.savez(file, about=_as_array(about.encode()), keys=_as_array(index.keys), **arrays)
    except (ZooError, OSError):
        return False
    return True


def _as_array(content: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(content, np.uint8)


def _read(place: Path, path: Path, state: dict[str, int]) -> TarIndex | None:
    """The kept index, if it is one of the shard as it is now."""
    try:
        with np.load(place, allow_pickle=False) as kept:
            about = json.loads(kept["about"].tobytes())
            if any(about[name] != value for name, value in state.items()):
                return None
            arrays = [kept[name].astype(np.int64) for name in ("key_ends", "record", "ending", "offset", "size")]
            keys, left_out = kept["keys"].tobytes(), LeftOut()
        left_out.update({reason: (int(count), list(names)) for reason, (count, names) in about["left_out"].items()})
        key_ends, record, ending, offset, size = arrays
        files = record, ending, offset, size
        endings = tuple(about["endings"])
        index = TarIndex(path, state["length"], state["changed"], keys, key_ends, endings, *files, left_out)
        return index if _is_sound(index) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RecursionError, zipfile.BadZipFile):
        return None  # a damaged one is made again


def _is_sound(index: TarIndex) -> bool:
    """Whether all numbers point to something: a kept file may come from anywhere."""
    count = len(index.record)
    if not all(array.ndim == 1 for array in (index.key_ends, index.record, index.ending, index.offset, index.size)):
        return False
    if not len(index.ending) == len(index.offset) == len(index.size) == count:
        return False
    ends = index.key_ends
    ordered = not len(ends) or (ends[0] >= 0 and ends[-1] == len(index.keys) and bool((np.diff(ends) >= 0).all()))
    return ordered and (
        not count
        or bool(
            ((index.record >= 0) & (index.record < len(ends))).all()
            and ((index.ending >= 0) & (index.ending < len(index.endings))).all()
            and ((index.offset >= 0) & (index.size >= 0) & (index.offset + index.size <= index.length)).all()
        )
    )
