"""From samples to a `Batch`: the part that is the same for every kind of model."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from zoo.data.text_files import check_unicode
from zoo.errors import SampleError
from zoo.types import Batch, Inputs, Item, Sample

EncodeView = Callable[[str, Sequence[Item], Sequence[str]], Inputs]
"""(view name, its items, a name for each item for error messages) -> the tensors that `encode` takes."""


def collate(samples: Sequence[Sample], encode_view: EncodeView) -> Batch:
    """Samples with the same views -> Batch. A view that a sample lacks is an empty tuple; one that all lack has 0 rows.

    Raises:
        SampleError: an unusable item, views that differ, or a sample that lacks all of them.
    """
    names = list(samples[0].views)
    views, owners, keys = {}, {}, {}
    for sample in samples:
        if list(sample.views) != names:
            raise SampleError(f"sample '{sample.id}' has the views {list(sample.views)}, its batch has {names}")
        if all(items == () for items in sample.views.values()):
            raise SampleError(f"sample '{sample.id}' has no item in any of its views {names}; leave it out")
    for view in names:
        rows = [(i, item) for i, sample in enumerate(samples) for item in _items(sample, view)]
        labels = [f"{samples[i].id} ({view})" for i, _ in rows]
        for (_, item), label in zip(rows, labels, strict=True):
            check(item, check_unicode(label, "the name of a sample"))
        items = [item for _, item in rows]
        views[view] = encode_view(view, items, labels) if items else {"rows": torch.zeros(0, dtype=torch.int64)}
        owners[view] = torch.tensor([i for i, _ in rows], dtype=torch.int64)
        keys[view] = torch.tensor([content_key(item) for _, item in rows], dtype=torch.int64)
    return Batch(
        views=views,
        owners=owners,
        keys=keys,
        labels=torch.tensor([s.label for s in samples], dtype=torch.int64),
        weights=torch.tensor([s.weight for s in samples], dtype=torch.float32),
        ids=[s.id for s in samples],
        sources=[s.source for s in samples],
    )


def check(item: Item, name: str) -> None:
    """Raise SampleError if there is nothing in the item to embed, or a text that is not valid Unicode."""
    for what, text in (("text", item.text), ("instruction", item.instruction), ("key", item.key)):
        if text:
            check_unicode(text, f"{name}: the {what}")
    if item.text is not None and not item.text.strip() and not item.image_at:
        raise SampleError(f"{name}: the text is empty; leave `text` out for an item without text")
    if item.image_at is not None and len(item.image_at) != len(item.images):
        raise SampleError(f"{name}: `image_at` places {len(item.image_at)} images, but there are {len(item.images)}")
    if item.text is None and not item.images and item.place is None:
        what = "an instruction but no text, image or place" if item.instruction else "neither text nor image nor place"
        raise SampleError(f"{name}: the item has {what}; there is nothing to embed")


def content_key(item: Item) -> int:
    """A signed 64-bit number that is equal for equal content (instruction included)."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (item.text or "", item.instruction or "", item.key):
        digest.update(part.encode() + b"\0")
    if not item.key:
        for image in item.images:
            digest.update(_image_bytes(image))
        if item.place is not None:
            digest.update(b"place" + struct.pack("<2d", *(value + 0.0 for value in item.place)))  # -0.0 becomes 0.0
    return int.from_bytes(digest.digest(), "big", signed=True)


def _image_bytes(image: object) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return str(image).encode("utf-8", "surrogatepass")
    return image.tobytes()  # type: ignore[attr-defined, no-any-return]  # PIL


def _items(sample: Sample, view: str) -> tuple[Item, ...]:
    items = sample.views[view]
    return items if isinstance(items, tuple) else (items,)
