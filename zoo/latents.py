"""Filling the cache of latents: every part that a run can ask for goes through its frozen encoder once.

A run that is killed at any point goes on with the file that was not finished, and ends with the same bits: which parts are
encoded together follows from the list alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from zoo.ahead import ahead
from zoo.data.latent_batches import PartBatch, part_batches
from zoo.data.latent_files import Array, LatentRows, LeftOutPart, StorageDtype
from zoo.data.latent_folder import (
    MANIFEST,
    EncoderKey,
    LatentFolder,
    Manifest,
    check_encoder,
    latents_folder,
    list_name,
    read_manifest,
)
from zoo.data.latents import Latents
from zoo.data.listing import Listing
from zoo.data.processors.cached import CachedProcessor
from zoo.errors import NonFiniteError, RecipeError
from zoo.locks import writing
from zoo.nn.fingerprint import architecture_digest, weights_digest
from zoo.progress import counting
from zoo.types import Inputs

BATCH_SIZE = 64


class LatentModule(Protocol):
    """What filling needs of a module: see `zoo.architectures.projector.Projector`."""

    encoders: nn.ModuleDict
    tokens: Sequence[str]
    processor: Any

    def latents(self, inputs: Inputs) -> Inputs:
        """The raw tensors of each modality replaced by its latents."""
        ...


@dataclass(frozen=True, slots=True)
class Filled:
    """What became of one list. asked: its parts, repetitions counted; encoded: parts that this run encoded, in `seconds`."""

    folder: Path
    manifest: Manifest
    asked: int
    encoded: int
    seconds: float


def encoder_key(module: LatentModule, modality: str, dtype: StorageDtype = "float32") -> EncoderKey:
    """What the latents of a modality depend on.

    Raises:
        RecipeError: the module has no such encoder.
    """
    if modality not in module.encoders:
        there = ", ".join(module.encoders)
        raise RecipeError(f"the data holds {modality}s, but the model has no encoder for them (it has {there})")
    tower = module.encoders[modality]
    made_of = {
        "encoder": type(tower).__name__,
        "weights": weights_digest(tower),
        "architecture": architecture_digest(tower),
        "preparation": module.processor.preparation(modality),
        "tokens": modality in module.tokens,
        "dtype": dtype,
    }
    return EncoderKey(modality, json.loads(json.dumps(made_of)))  # as it comes back from a manifest


def fill(
    module: LatentModule,
    listings: Sequence[Listing],
    *,
    folder: str | Path = "",
    batch_size: int = BATCH_SIZE,
    dtype: StorageDtype = "float32",
    show: bool = True,
) -> list[Filled]:
    """Encode what is listed and not there yet, one folder per list.

    Several processes may fill the same lists at once: files appear whole, and the first one stays.

    Args:
        module: with its pretrained weights read.
        listings: what may be asked for.
        folder: of all latents; "" = in the cache of the zoo.
        batch_size: parts that the encoder gets at once. Another one gives equal latents but for rounding.
        dtype: of the files.
        show: a bar with rate and time left.

    Raises:
        RecipeError: no encoder for a modality.
        SampleError: a part that can't be used, unless its listing skips those; names it.
        NonFiniteError: a latent that is not finite, or too large for float16; names the part.
        ZooError: no space left; nothing usable; what is there is damaged.
    """
    if batch_size < 1:
        raise RecipeError(f"the cache is filled in batches of {batch_size}; at least 1")
    keys = {one.modality: encoder_key(module, one.modality, dtype) for one in listings}
    filled = []
    for one in listings:
        key = keys[one.modality]
        store = LatentFolder(latents_folder(folder) / key.name / list_name(one.keys), one.keys, key)
        filled.append(_filled(module, one, store, batch_size, show))
    return filled


def cached_processor(processor: Any, filled: Sequence[Filled]) -> CachedProcessor:
    """The processor that answers from what was filled; verifies the files."""
    folders: dict[str, dict[Path, None]] = {}  # two sources with the same parts share a folder
    for one in filled:
        folders.setdefault(one.manifest.modality, {})[one.folder] = None
    return CachedProcessor(processor, {modality: Latents(list(some)) for modality, some in folders.items()})


def notes(filled: Filled) -> list[str]:
    """What a user should know about a list: parts that were left out, and folders that serve no more."""
    manifest, folder = filled.manifest, filled.folder
    told = []
    if manifest.left_out:
        told.append(
            f"{len(manifest.left_out):,} {manifest.modality}s of {manifest.source} can't be used; {folder / MANIFEST} names "
            f"them; the first: {manifest.left_out[0].error}"
        )
    key = EncoderKey(manifest.modality, manifest.made_of)
    for path in sorted(folder.parent.parent.glob(f"{key.modality}-*/{folder.name}/{MANIFEST}")):
        if path.parent != folder:
            changed = ", ".join(key.changes(read_manifest(path.parent).made_of))
            told.append(f"{path.parent} holds the same parts by an encoder that differs in: {changed}")
    return told


# ---- one list --------------------------------------------------------------------------------------------------------


def _filled(module: LatentModule, listing: Listing, store: LatentFolder, batch_size: int, show: bool) -> Filled:
    if store.complete:
        manifest = read_manifest(store.path)
        check_encoder(store.path, manifest, store.encoder)
        return Filled(store.path, manifest, listing.total, 0, 0.0)
    missing = store.missing()
    wanted = sum(stop - start for start, stop in (store.ranges[number] for number in missing))
    begin = time.perf_counter()
    title = f"{listing.source}: {listing.modality}"
    with (
        writing(store.path, shared=True),  # removes what a killed process left
        counting(len(listing), title, show=show, done=len(listing) - wanted) as advance,
    ):
        batches = part_batches(module.processor, listing, store, missing, batch_size)
        device = _device(module, listing.modality)
        for number, rows in _files(module, listing.modality, store, ahead(batches, device.type), advance):
            store.write(number, rows)
    manifest = store.finish(listing.source)
    return Filled(store.path, manifest, listing.total, wanted, time.perf_counter() - begin)


def _files(
    module: LatentModule,
    modality: str,
    store: LatentFolder,
    batches: Iterator[PartBatch],
    advance: Callable[[int], None],
) -> Iterator[tuple[int, LatentRows]]:
    """Number and rows of every file."""
    done: dict[int, Mapping[str, Array]] = {}
    bad: dict[int, str] = {}
    for batch in batches:
        if batch.inputs is not None:
            done |= _encoded(module, modality, batch, store.encoder.made_of["dtype"])
        bad |= batch.bad
        advance(len(batch.rows) + len(batch.bad))
        if batch.last:
            yield batch.file, _joined(done, bad, store, batch.file)
            done, bad = {}, {}


def _device(module: LatentModule, modality: str) -> torch.device:
    return next((p.device for p in module.encoders[modality].parameters()), torch.device("cpu"))


def _encoded(module: LatentModule, modality: str, batch: PartBatch, dtype: str) -> dict[int, Mapping[str, Array]]:
    """Row -> its pooled latent and, if kept, its tokens."""
    assert batch.inputs is not None  # asked by the caller
    device = _device(module, modality)
    latents = module.latents({name: value.to(device) for name, value in batch.inputs.items()})
    pooled = _stored(latents[f"{modality}_pooled"], dtype, batch.names)
    if modality not in module.tokens:
        return {row: {"pooled": vector} for row, vector in zip(batch.rows, pooled, strict=True)}
    mask = latents[f"{modality}_mask"].bool().cpu().numpy()
    tokens = _stored(latents[f"{modality}_tokens"], dtype, batch.names)
    return {
        row: {"pooled": vector, "tokens": some[real]}
        for row, vector, some, real in zip(batch.rows, pooled, tokens, mask, strict=True)
    }


def _stored(values: Tensor, dtype: str, names: Sequence[str]) -> Array:
    """In the precision of the files. NonFiniteError names the first part whose latent does not fit."""
    exact = values.detach().float().cpu()
    kept = exact.to(getattr(torch, dtype))
    bad = ~torch.isfinite(kept).flatten(1).all(1)
    if bad.any():
        row = int(bad.int().argmax())
        largest = float(exact[row].abs().max())
        if np.isfinite(largest):
            raise NonFiniteError(
                f"the latent of {names[row]} has the value {largest:g}, too large for {dtype}: keep latents as float32"
            )
        raise NonFiniteError(f"the latent of {names[row]} is not finite: the encoder's weights or the item are damaged")
    result: Array = kept.numpy()
    return result


def _joined(
    done: Mapping[int, Mapping[str, Array]], bad: Mapping[int, str], store: LatentFolder, number: int
) -> LatentRows:
    """The rows of one file, in the order of the list."""
    keys = store.keys[slice(*store.ranges[number])]
    first, rows = store.ranges[number][0], sorted(done)
    left_out = tuple(LeftOutPart(first + row, keys[row].tobytes().hex(), bad[row]) for row in sorted(bad))
    if not rows:
        nothing = np.zeros((0, 0), store.encoder.made_of["dtype"])
        return LatentRows(keys[:0], nothing, left_out=left_out)
    pooled = np.stack([done[row]["pooled"] for row in rows])
    if "tokens" not in done[rows[0]]:
        return LatentRows(keys[rows], pooled, left_out=left_out)
    lengths = np.array([len(done[row]["tokens"]) for row in rows], np.int64)
    tokens = np.zeros((len(rows), int(lengths.max()), done[rows[0]]["tokens"].shape[1]), pooled.dtype)
    for place, row in enumerate(rows):
        tokens[place, : lengths[place]] = done[row]["tokens"]
    return LatentRows(keys[rows], pooled, tokens, lengths, left_out)
