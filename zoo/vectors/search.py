"""Exact search, and the index of a folder that is kept until the folder or the model changes."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from zoo.embedder import Embedder
from zoo.errors import ZooError
from zoo.files import cache_folder
from zoo.metrics.search import search
from zoo.vectors.files import VectorFile, Vectors, read_vectors
from zoo.vectors.rows import Rows
from zoo.vectors.run import embed_rows

Index = tuple[VectorFile, list[str], int]
EXIT_SOME_BAD = 3  # as of `zoo embed`


@dataclass(frozen=True)
class Hit:
    """A row of a vector file and its cosine to the query."""

    row: int
    score: float


def nearest(query: Vectors, vectors: Vectors, count: int) -> list[Hit]:
    """The `count` rows of unit `vectors` (N, E) with the largest cosine to `query` (E,), best first, ties by row."""
    with warnings.catch_warnings():  # vectors of a file can't be written to, and nothing here does
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        found = search(torch.from_numpy(query[None]), torch.from_numpy(vectors), count)
    return [Hit(row, score) for row, score in zip(found.indexes[0].tolist(), found.scores[0].tolist(), strict=True)]


def read_index(path: Path, embedder: Embedder) -> VectorFile:
    """A file of `zoo embed`. Raises ZooError if its vectors were made by another model or other weights."""
    index = read_vectors(path)
    if not embedder.gave(str(index.facts.get("fingerprint"))):
        other = index.facts.get("model", "another model")
        version = " in another version" if other == embedder.name else ""
        raise ZooError(
            f"{path} holds vectors of {other}{version}: those of {embedder.name} can't be compared with them; embed again "
            f"with zoo embed {embedder.name} ..."
        )
    return index


def cached_index(rows: Rows, place: str, embedder: Embedder, *, batch_size: int = 32) -> Index:
    """The vectors of `rows`: read from the cache if neither they nor the model changed, else made and kept there.

    Args:
        rows: what to search in.
        place: what the rows are; a later index of the same place takes the room of this one.
        embedder: the model.
        batch_size: rows that the model gets at once.

    Returns:
        the vectors, remarks for the user, and how many rows could not be used.
    """
    precision = "" if embedder.dtype == torch.float32 else f"\n{embedder.dtype}"
    about = f"{place}\n{embedder.fingerprint()}{precision}".encode("utf-8", "surrogateescape")
    key = hashlib.sha256(about).hexdigest()[:16]
    folder = cache_folder() / "indexes"
    if not _writable(folder):
        with tempfile.TemporaryDirectory(prefix="zoo-") as temporary:
            index, remarks, bad = _made(rows, Path(temporary) / "index.parquet", embedder, batch_size)
        kept = f"{folder} can't be written, so the index is not kept (ZOO_CACHE names another place)"
        return index, [*remarks, kept], bad
    return _made(rows, folder / f"{embedder.name.replace(os.sep, '-')}-{key}.parquet", embedder, batch_size)


def _made(rows: Rows, out: Path, embedder: Embedder, batch_size: int) -> Index:
    if not out.exists():
        print(f"embedding {len(rows):,} rows with {embedder.name}, for this and later searches ...", file=sys.stderr)
    result = embed_rows(embedder, rows, out, batch_size=batch_size, earlier="replace")
    remarks = (
        [f"{result.bad:,} of {result.rows:,} rows could not be used; {out}.bad.jsonl lists them"] if result.bad else []
    )
    return read_vectors(out), remarks, result.bad


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
