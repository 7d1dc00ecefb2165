"""Latents of frozen encoders, found by the content that they were made of.

One `Latents` joins the lists of one modality. The vectors stay on disk and are mapped; only the keys are in memory, 24 bytes
for each, in sorted arrays. How they lie on disk: `zoo.data.latent_folder`; one file of them: `zoo.data.latent_files`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.latent_files import Array, LatentError
from zoo.data.latent_folder import EncoderKey, open_folder, read_manifest
from zoo.data.parts import Keys

Found = np.ndarray[Any, np.dtype[np.int64]]
"""(N,) places in the index of a `Latents`; -1 = not there."""


class Latents:
    """All latents of one modality.

    Args:
        folders: of complete lists. What several of them hold is taken from the first.
        encoder: what they must be of; None = not asked.
        verify: compare the files with their digests, which reads them once.

    Attributes:
        dim: D, the width of a latent.
        left_out: key in hexadecimal -> why this part could not be used.

    Raises:
        LatentError: see `open_folder`; lists of unequal width; two contents under one key.
    """

    def __init__(self, folders: Sequence[Path], encoder: EncoderKey | None = None, verify: bool = True) -> None:
        self.folders = [Path(folder) for folder in folders]
        rows = [part for folder in self.folders for part in open_folder(folder, encoder, verify) if len(part.keys)]
        widths = sorted({part.pooled.shape[1] for part in rows})
        if len(widths) != 1:
            raise LatentError(f"latents of the widths {widths} do not belong together: {self._where()}")
        self.dim = widths[0]
        self._pooled, self._tokens = [part.pooled for part in rows], [part.tokens for part in rows]
        self._lengths = [part.lengths for part in rows]
        self.has_tokens = all(tokens is not None for tokens in self._tokens)
        manifests = [read_manifest(folder) for folder in self.folders]
        self.left_out = {part.key: part.error for manifest in manifests for part in manifest.left_out}
        self._index([part.keys for part in rows])

    def _index(self, keys: Sequence[Keys]) -> None:
        every = np.concatenate(keys)
        order = np.argsort(every[:, 0], kind="stable")
        self._first, self._second = every[order, 0], every[order, 1]
        equal = self._first[1:] == self._first[:-1]
        clash = equal & (self._second[1:] != self._second[:-1])
        if clash.any():
            number = int(self._first[1:][clash][0])
            raise LatentError(f"two contents have the key {number:016x}: {self._where()}; remove one of these lists")
        counts = [len(some) for some in keys]
        self._file = np.repeat(np.arange(len(keys), dtype=np.int32), counts)[order]
        self._row = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])[order]

    def _where(self) -> str:
        return ", ".join(map(str, self.folders))

    def __len__(self) -> int:
        return len(self._first)

    def __reduce__(self) -> Any:  # to a worker go the folders; what is mapped is opened again there
        return _reopened, (type(self), self.folders)

    def find(self, keys: Keys) -> Found:
        """Where the parts with these keys (N, 2) are."""
        place: Found = np.searchsorted(self._first, keys[:, 0]).astype(np.int64)
        inside = np.minimum(place, len(self._first) - 1)
        there = (self._first[inside] == keys[:, 0]) & (self._second[inside] == keys[:, 1])
        return np.where(there, inside, -1)

    def pooled(self, found: Found) -> Array:
        """(N, D) float32."""
        values = np.empty((len(found), self.dim), np.float32)
        for i, (file, row) in enumerate(self._places(found)):
            values[i] = self._pooled[file][row]
        return values

    def tokens(self, found: Found) -> tuple[Array, Array]:
        """(N, L, D) float32 and their mask (N, L) int64; L is the length of the longest of these rows.

        Raises:
            LatentError: no tokens were kept.
        """
        places = self._places(found)
        lengths = [int(self._kept(self._lengths[file])[row]) for file, row in places]
        width = self._kept(self._tokens[0]).shape[2]
        values = np.zeros((len(found), max(lengths, default=0), width), np.float32)
        mask = np.zeros(values.shape[:2], np.int64)
        for i, ((file, row), length) in enumerate(zip(places, lengths, strict=True)):
            values[i, :length] = self._kept(self._tokens[file])[row, :length]
            mask[i, :length] = 1
        return values, mask

    def _kept(self, values: Array | None) -> Array:
        if values is None:
            raise LatentError(f"{self._where()} keeps no tokens; fill the cache again with `zoo cache --tokens`")
        return values

    def _places(self, found: Found) -> list[tuple[int, int]]:
        return list(zip(self._file[found].tolist(), self._row[found].tolist(), strict=True))


def _reopened(kind: type[Latents], folders: Sequence[Path]) -> Latents:
    """In a worker: the main process has verified the files."""
    return kind(folders, verify=False)
