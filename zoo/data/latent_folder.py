"""The latents of one list of parts: a folder of files and a manifest, which is written last and says "complete".

CACHE/latents/<modality>-<key of the encoder>/<key of the list>/part-00000.safetensors ... manifest.json
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.latent_files import LatentError, LatentRows, LeftOutPart, damaged, map_rows, write_rows
from zoo.data.parts import MODALITIES, Keys
from zoo.errors import ZooError
from zoo.files import cache_folder, replacing

MANIFEST = "manifest.json"
FORMAT = 1
_ROWS = {"text": 1024, "image": 256, "place": 256}
"""At least so many rows in a file: what is lost when a short run is stopped, seconds of work of a common encoder."""
_MOST = 100  # files of a list: what is lost of a long one is at most a hundredth
_SHOWN = 16  # digits of a key in the name of a folder
_NAME = re.compile(rf"({'|'.join(MODALITIES)})-[0-9a-f]{{{_SHOWN}}}/[0-9a-f]{{{_SHOWN}}}")
_FILE = re.compile(rf"part-\d{{5,}}\.safetensors|{re.escape(MANIFEST)}|\..+\.partial")


@dataclass(frozen=True, slots=True)
class EncoderKey:
    """What latents depend on besides the parts: weights, architecture, preparation, precision, tokens kept or not."""

    modality: str
    made_of: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Equal for encoders that give equal latents."""
        content = json.dumps({"modality": self.modality, **self.made_of}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.modality}-{self.digest[:_SHOWN]}"

    def changes(self, earlier: Mapping[str, Any]) -> list[str]:
        """Which of the things that another key was made of differ."""
        names = sorted({*self.made_of, *earlier})
        return [name for name in names if self.made_of.get(name) != earlier.get(name)]


@dataclass(frozen=True, slots=True)
class PartFile:
    """One file as the manifest knows it; `digest` is the blake2b of its bytes."""

    name: str
    rows: int
    bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a complete folder holds. tokens: of the longest row, 0 = none are kept."""

    modality: str
    source: str
    encoder: str
    made_of: dict[str, Any]
    rows: int
    dim: int
    tokens: int
    dtype: str
    parts: list[PartFile]
    left_out: list[LeftOutPart] = field(default_factory=list)
    format: int = FORMAT

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(part.bytes for part in self.parts)


def latents_folder(folder: str | Path = "") -> Path:
    """Where latents are kept: `folder`, else `latents` in the cache of the zoo."""
    return Path(folder).expanduser() if folder else cache_folder() / "latents"


def list_name(keys: Keys) -> str:
    """Name of the folder of a list."""
    return hashlib.sha256(np.ascontiguousarray(keys).tobytes()).hexdigest()[:_SHOWN]


def row_ranges(count: int, modality: str) -> list[tuple[int, int]]:
    """First row, and the one behind the last, of every file of a list; a function of its length and modality alone."""
    size = max(_ROWS[modality], -(-count // _MOST))
    return [(start, min(start + size, count)) for start in range(0, count, size)]


class LatentFolder:
    """The folder of one list, complete or not.

    Args:
        path: the folder.
        keys: (N, 2) of the list, left-out parts included.
        encoder: what the latents must be of.
    """

    def __init__(self, path: Path, keys: Keys, encoder: EncoderKey) -> None:
        self.path, self.keys, self.encoder = path, keys, encoder
        self.ranges = row_ranges(len(keys), encoder.modality)

    @property
    def complete(self) -> bool:
        """Whether all rows are there."""
        return (self.path / MANIFEST).is_file()

    def missing(self) -> list[int]:
        """Numbers of the files that are still to be made; a file that is not whole, or of other parts, is."""
        return [number for number in range(len(self.ranges)) if not self.sound(number)]

    def sound(self, number: int) -> bool:
        """Whether a file is there and holds the rows that it should."""
        start, stop = self.ranges[number]
        try:
            rows = map_rows(self._file(number))
            expected = np.delete(self.keys[start:stop], [part.row - start for part in rows.left_out], axis=0)
        except (LatentError, IndexError):
            return False
        return rows.dtype == self.encoder.made_of["dtype"] and bool(np.array_equal(rows.keys, expected))

    def write(self, number: int, rows: LatentRows) -> None:
        """Keep one file. What another process has written in the meantime stays: its manifest may know it already."""
        if not self.sound(number):
            write_rows(self._file(number), rows)

    def finish(self, source: str) -> Manifest:
        """Write the manifest.

        Raises:
            ZooError: not one part could be used; says why the first could not.
        """
        files = [self._file(number) for number in range(len(self.ranges))]
        mapped = [map_rows(file) for file in files]
        left_out = [part for rows in mapped for part in rows.left_out]
        total = sum(len(rows.keys) for rows in mapped)
        if not total:
            first = f"; the first: {left_out[0].error}" if left_out else ""
            raise ZooError(f"none of the {len(self.keys):,} {self.encoder.modality}s of '{source}' can be used{first}")
        (dim,) = {rows.pooled.shape[1] for rows in mapped if len(rows.keys)}
        parts = [
            PartFile(file.name, len(rows.keys), file.stat().st_size, digest_of(file))
            for file, rows in zip(files, mapped, strict=True)
        ]
        manifest = Manifest(
            modality=self.encoder.modality,
            source=source,
            encoder=self.encoder.digest,
            made_of=dict(self.encoder.made_of),
            rows=total,
            dim=dim,
            tokens=max((rows.tokens.shape[1] for rows in mapped if rows.tokens is not None), default=0),
            dtype=str(self.encoder.made_of["dtype"]),
            parts=parts,
            left_out=left_out,
        )
        with replacing(self.path / MANIFEST) as partial:
            content = json.dumps(asdict(manifest), indent=1, ensure_ascii=False) + "\n"
            partial.write_bytes(content.encode("utf-8", "backslashreplace"))  # as `json_line` does
        return manifest

    def _file(self, number: int) -> Path:
        return self.path / f"part-{number:05d}.safetensors"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a complete folder.

    Raises:
        LatentError: there is none, it can't be read, or a newer zoo wrote it.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["format"] > FORMAT:
            raise LatentError(f"{path} has format {content['format']}, this zoo reads {FORMAT}; upgrade embedding-zoo")
        parts = [PartFile(**part) for part in content.pop("parts")]
        left_out = [LeftOutPart(**part) for part in content.pop("left_out")]
        return Manifest(**content, parts=parts, left_out=left_out)
    except FileNotFoundError as error:
        raise LatentError(f"{folder} is not complete: it has no {MANIFEST}; run `zoo cache` to the end") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, f"can't be read ({error})") from error


def check_encoder(folder: Path, manifest: Manifest, encoder: EncoderKey) -> None:
    """Refuse latents of another encoder. LatentError says what changed."""
    if manifest.encoder == encoder.digest:
        return
    changed = " and ".join(encoder.changes(manifest.made_of)) or "modality"
    raise LatentError(
        f"{folder} holds latents of another {manifest.modality} encoder (changed since: {changed}); "
        "fill the cache again with `zoo cache`, or go back to that encoder"
    )


def open_folder(folder: Path, encoder: EncoderKey | None = None, verify: bool = True) -> list[LatentRows]:
    """All rows of a complete folder, mapped.

    Args:
        folder: of one list.
        encoder: what the latents must be of; None = not asked.
        verify: compare every file with its digest, which reads it once.

    Raises:
        LatentError: not complete; of another encoder; a file that is missing, cut off, changed or has another number of
            rows than the manifest says; names it.
    """
    manifest = read_manifest(folder)
    if encoder is not None:
        check_encoder(folder, manifest, encoder)
    if verify:
        _verify(folder, manifest.parts)
    mapped = []
    for part in manifest.parts:
        rows = map_rows(folder / part.name)
        if len(rows.keys) != part.rows:
            raise damaged(folder / part.name, f"has {len(rows.keys):,} rows, {MANIFEST} says {part.rows:,}")
        mapped.append(rows)
    if manifest.rows != sum(part.rows for part in manifest.parts):
        raise damaged(folder / MANIFEST, f"says {manifest.rows:,} rows, its files have another number")
    return mapped


def folders_in(root: Path) -> Iterator[Path]:
    """The folders of all lists, complete or not, and of nothing else that lies there."""
    for path in sorted(root.glob("*-*/*")):
        if _NAME.fullmatch(path.relative_to(root).as_posix()) and path.is_dir():
            yield path


def foreign_in(folder: Path) -> list[str]:
    """Names in the folder of a list that no zoo wrote."""
    return sorted(path.name for path in folder.iterdir() if not _FILE.fullmatch(path.name) or path.is_dir())


def digest_of(file: Path) -> str:
    """blake2b of a file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def _verify(folder: Path, parts: Sequence[PartFile]) -> None:
    for part in parts:
        file = folder / part.name
        if not file.is_file():
            raise damaged(file, "is missing")
        if file.stat().st_size != part.bytes:
            raise damaged(file, f"has {file.stat().st_size:,} bytes, {MANIFEST} says {part.bytes:,}: it is cut off")
    with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter free
        for part, digest in zip(parts, pool.map(lambda p: digest_of(folder / p.name), parts), strict=True):
            if digest != part.digest:
                raise damaged(folder / part.name, f"has changed: its digest is not the one in {MANIFEST}")
