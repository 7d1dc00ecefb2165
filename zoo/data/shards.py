"""Writing tar shards in WebDataset layout: equal bytes for equal input, and a stopped run goes on with the next shard.

A record is `000000042.jpg`, `000000042.txt` (its first caption) and `000000042.json` (all captions, where it came from).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from zoo.data.pairs import OnDisk, Record, RecordSource
from zoo.data.shard_members import members_of
from zoo.errors import SampleError, ZooError
from zoo.locks import writing
from zoo.machine import usable_cores

MANIFEST = "shards.json"
"""Beside the shards: what they were made of, and where a stopped run goes on."""

_WAITING = "another process is writing into {}; this one waits for it"
_STATE = "state of the files"
_AHEAD = 256  # records that are prepared together


@dataclass(slots=True)
class Shard:
    """One finished shard.

    first, next: numbers of its first record and of the one behind its last, in all sources together;
    left_out: what could not be used between them.
    """

    name: str
    bytes: int
    records: int
    first: int
    next: int
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Written:
    """What a run has done: all shards, and how many of them were there before."""

    shards: list[Shard]
    before: int

    @property
    def records(self) -> int:
        """In all shards."""
        return sum(shard.records for shard in self.shards)

    @property
    def left_out(self) -> list[str]:
        """Why each record that is in no shard could not be used."""
        return [message for shard in self.shards for message in shard.left_out]


def write_shards(
    sources: Sequence[RecordSource],
    out: Path,
    *,
    shard_bytes: int = 256 << 20,
    image_size: int | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Written:
    """Write the records of all sources, one source after the other, as `shard-000000.tar` and so on.

    Every picture is decoded once, so that none that is damaged gets into a shard.

    Args:
        sources: where the records come from.
        out: a folder, new or of an earlier run with the same settings.
        shard_bytes: size of a shard, padding at its end not counted; only a single record may be larger.
        image_size: shrink pictures whose shorter side is longer than this (they become JPEG); None = leave all as they
            are. GIF, BMP and TIFF become PNG.
        options: whatever else decides what is written, as plain values; an earlier run must have had the same.
        progress: told how many records are done, those of an earlier run first.

    Raises:
        ZooError: `out` holds shards of other settings or is not writable; no space; no usable record.
    """
    if shard_bytes < 1 or (image_size is not None and image_size < 1):
        raise ZooError(f"a shard of {shard_bytes} bytes, or a picture of {image_size} pixels, is too small")
    settings = {
        "sources": [[source.name, len(source)] for source in sources],
        "shard_bytes": shard_bytes,
        "image_size": image_size,
        **(options or {}),
    }
    states = [source.state() for source in sources if isinstance(source, OnDisk)]
    if states:
        settings[_STATE] = states
    total = sum(map(len, sources))
    with _writable(out), writing(out, waiting=lambda: print(_WAITING.format(out), file=sys.stderr)):
        shards = _finished(out, settings)
        before, done = len(shards), shards[-1].next if shards else 0
        _write_manifest(out, settings, shards)
        progress(done)
        samples = _samples(_records(sources, done), done, image_size, progress)
        for shard in _shards(samples, out, before, done, shard_bytes):
            shards.append(shard)
            _write_manifest(out, settings, shards)
    written = Written(shards, before)
    if not written.records:
        raise ZooError(f"none of {total:,} records could be used; the first: {''.join(written.left_out[:1])}")
    return written


@dataclass(frozen=True, slots=True)
class _Sample:
    """What goes into a shard for one record; or why nothing does."""

    number: int
    files: dict[str, bytes] = field(default_factory=dict)
    problem: str = ""

    @property
    def size(self) -> int:
        return sum(512 + -(-len(content) // 512) * 512 for content in self.files.values())


def _records(sources: Sequence[RecordSource], start: int) -> Iterator[Record | SampleError]:
    """The records of all sources from number `start` on, or why one can't be read."""
    for source in sources:
        for index in range(start, len(source)):
            try:
                yield source.record(index)
            except SampleError as error:
                yield error
        start = max(0, start - len(source))


def _samples(
    records: Iterator[Record | SampleError], start: int, image_size: int | None, progress: Callable[[int], None]
) -> Iterator[_Sample]:
    """In order; pictures are decoded by several threads (Pillow lets them run beside one another)."""

    def sample(number: int, record: Record | SampleError) -> _Sample:
        try:
            if isinstance(record, SampleError):
                raise record
            return _Sample(number, members_of(record, image_size))
        except SampleError as error:
            return _Sample(number, problem=str(error))

    with ThreadPoolExecutor(usable_cores()) as pool:
        while several := list(itertools.islice(records, _AHEAD)):
            for made in pool.map(sample, itertools.count(start), several):
                yield made
                progress(1)
            start += len(several)


def _shards(samples: Iterator[_Sample], out: Path, number: int, first: int, most: int) -> Iterator[Shard]:
    """Fill shards one by one; each takes its name when it is whole."""
    held = next(samples, None)
    while held is not None:
        name = f"shard-{number:06d}.tar"
        shard = Shard(name, 0, 0, first, first)
        partial = out / f"{name}.partial"
        size = 0
        try:
            with partial.open("wb") as file:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                    while held is not None and (not shard.records or size + held.size <= most):
                        _add(tar, held, shard)
                        size, held = size + held.size, next(samples, None)
                file.flush()
                os.fsync(file.fileno())
            shard.bytes = partial.stat().st_size
            os.replace(partial, out / name)
        finally:
            partial.unlink(missing_ok=True)
        yield shard
        number, first = number + 1, shard.next


def _add(tar: tarfile.TarFile, sample: _Sample, shard: Shard) -> None:
    shard.next = sample.number + 1
    if sample.problem:
        shard.left_out.append(sample.problem)
        return
    shard.records += 1
    for ending, content in sample.files.items():
        member = tarfile.TarInfo(f"{sample.number:09d}.{ending}")  # its other fields are the same everywhere
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


def _finished(out: Path, settings: dict[str, Any]) -> list[Shard]:
    """The shards of an earlier run that are still there, up to the first that is not."""
    file = out / MANIFEST
    if not file.is_file():
        if any(out.glob("shard-*.tar")):
            raise ZooError(f"{out} holds shards, but no {MANIFEST} that says of what; choose another folder")
        return []
    try:
        manifest = json.loads(file.read_text("utf-8"))
        kept, shards = manifest["settings"], [Shard(**shard) for shard in manifest["shards"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ZooError(f"{file} can't be read ({error}); delete it and the shards, or choose another folder") from error
    if _STATE not in kept:  # of an earlier version, which did not ask whether files change
        settings = {name: value for name, value in settings.items() if name != _STATE}
    elif kept | {_STATE: settings.get(_STATE)} == settings != kept:
        raise ZooError(
            f"{out} holds shards of the same sources in another state: their files have changed since, or others lie there "
            "now; choose another folder, or delete the shards"
        )
    if kept != settings:
        raise ZooError(
            f"{out} holds shards of other settings ({kept}, now {settings}); choose another folder, or delete them"
        )
    for number, shard in enumerate(shards):
        place = out / shard.name
        if not place.is_file() or place.stat().st_size != shard.bytes:
            return shards[:number]
    return shards


def _write_manifest(out: Path, settings: dict[str, Any], shards: list[Shard]) -> None:
    partial = out / f"{MANIFEST}.partial"
    content = {"settings": settings, "shards": [asdict(shard) for shard in shards]}
    partial.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    os.replace(partial, out / MANIFEST)


@contextlib.contextmanager
def _writable(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, ZooError):
            raise
        raise ZooError(
            f"{out} can't be written: {error.strerror or error}; finished shards stay, and the same command goes on"
        ) from error
