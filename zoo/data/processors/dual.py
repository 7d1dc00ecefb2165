"""The processor of dual encoders: pixels for one tower, tokens for the other."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from zoo.data.images import open_images
from zoo.data.processors import dual_arrays, open_clip_tokenizer
from zoo.data.processors.collate import collate
from zoo.data.processors.dual_arrays import Caption, DualArrays, Picture
from zoo.data.source import Processor
from zoo.errors import SampleError, ZooError
from zoo.files import locate
from zoo.types import Batch, Inputs, Item, Sample


class DualProcessor(Processor):
    """Samples to the inputs of a dual encoder (see `DualArrays.__call__` for names and shapes).

    Args:
        tokenizer: a tokenizer.json: a path, `packaged:FILE`, `hf:ORG/REPO[@REVISION]:tokenizer.json`, or
            `open_clip:tokenizer.json` (CLIP's, made from the vocabulary inside open_clip). Read at first use.
        picture: resizing, cropping, normalisation; must fit the image tower.
        caption: special tokens, length, padding; must fit the text tower.
        places: take places, too; for models that have an encoder for them.

    Raises:
        SampleError: an item can't be used (empty, unreadable picture, an instruction, a place that is none); names the
            sample.
    """

    def __init__(
        self,
        tokenizer: str,
        picture: Picture | None = None,
        caption: Caption | None = None,
        places: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.picture = picture or Picture()
        self.caption = caption or Caption()
        self.places = places
        self._arrays: DualArrays | None = None

    @property
    def arrays(self) -> DualArrays:
        """The numpy part, with the tokenizer read."""
        if self._arrays is None:
            from tokenizers import Tokenizer

            text = self._tokenizer_json()
            try:
                tokenizer = Tokenizer.from_str(text)
                tokenizer.no_padding()
                tokenizer.no_truncation()  # `DualArrays` cuts the text, not the closing token
                self._arrays = DualArrays(tokenizer, self.picture, self.caption, places=self.places)
            except Exception as error:  # the Rust reader raises bare Exception
                raise ZooError(f"{self.tokenizer} can't be used as tokenizer: {error}") from error
        return self._arrays

    def _tokenizer_json(self) -> str:
        if self.tokenizer == open_clip_tokenizer.SOURCE:
            return open_clip_tokenizer.tokenizer_json()
        path = locate(self.tokenizer)
        try:
            return path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ZooError(f"{path} can't be read: {error}") from error

    def __call__(self, samples: list[Sample]) -> Batch:
        return collate(samples, self.encode_view)

    def encode_view(self, view: str, items: Sequence[Item], names: Sequence[str]) -> Inputs:
        """The items of one view -> tensors."""
        images = open_images([item.images for item in items], names, self._shrunk, self.picture.fit)
        try:
            arrays = self.arrays(
                [i.text for i in items], images, [i.instruction for i in items], False, [i.place for i in items]
            )
        except ValueError as error:
            raise SampleError(self._name_culprit(items, images, names) or str(error)) from error
        return {key: torch.from_numpy(value) for key, value in arrays.items()}

    def _shrunk(self, image: Image.Image) -> Image.Image:
        """As `Picture` makes it, which then leaves it as it is."""
        return Image.fromarray(self.picture.bytes_of(image))

    def _name_culprit(self, items: Sequence[Item], images: list[Any], names: Sequence[str]) -> str:
        for item, pictures, name in zip(items, images, names, strict=True):
            try:
                self.arrays([item.text], [pictures], [item.instruction], False, [item.place])
            except ValueError as error:
                return f"{name}: {error}"
        return ""

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """How many tokens of each text the tower sees (letters, where texts are drawn): those of like length in one batch
        save padding.
        """
        arrays = self.arrays
        if arrays.tokenizer is None:
            return [len(text) for text in texts]
        found = arrays.tokenizer.encode_batch([self.caption.words(text) for text in texts], add_special_tokens=False)
        room = self.caption.max_length - len(arrays.before) - len(arrays.after)
        return [min(len(one.ids), room) for one in found]

    def split(self, inputs: Inputs, size: int) -> list[Inputs]:
        """Cut into chunks of at most `size` rows; pictures and texts go with their rows."""
        total = len(inputs["rows"])
        return [narrow(inputs, start, min(start + size, total)) for start in range(0, total, size)]

    def save(self, folder: Path) -> dict[str, str]:
        """Write the tokenizer into a bundle; returns the init arguments that the bundle's recipe must state instead."""
        (folder / "tokenizer.json").write_text(self._tokenizer_json(), "utf-8")
        return {"tokenizer": "bundle:tokenizer.json"}

    def spec(self) -> dict[str, Any]:
        """What `DualArrays` needs besides the tokenizer, as plain data, for a runtime without the zoo."""
        facts = {"kind": "dual", "query_views": [], "picture": asdict(self.picture), "caption": asdict(self.caption)}
        return facts | ({"places": True} if self.places else {})

    def preparation(self, modality: str) -> dict[str, Any]:
        """What decides the tensors of one modality, as plain data: latents made of them hold while it stays the same."""
        if modality == "image":
            return asdict(self.picture)
        if modality == "text":
            tokenizer = hashlib.sha256(self._tokenizer_json().encode()).hexdigest()
            return {**asdict(self.caption), "tokenizer": tokenizer}
        return {}

    def export(self, folder: Path) -> dict[str, Any]:
        """Write what a runtime without the zoo needs beside the graphs; returns `spec` with the names of the files."""
        tokenizer = self.arrays.tokenizer
        assert tokenizer is not None
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        shutil.copyfile(dual_arrays.__file__, folder / "dual_arrays.py")
        return {**self.spec(), "tokenizer": "tokenizer.json", "code": "dual_arrays.py"}


_PARTS = {
    "image_rows": ("pixels", "kept_patches", "image_pooled", "image_tokens", "image_mask"),
    "text_rows": ("input_ids", "attention_mask", "hidden_words", "text_pooled", "text_tokens", "text_mask"),
    "place_rows": ("places", "place_pooled", "place_tokens", "place_mask"),
}
"""Names of the tensors of parts, raw, masked (see `MaskedViews`) or cached (see `CachedProcessor`), by the name of the rows
that they belong to."""


def narrow(inputs: Inputs, start: int, stop: int) -> Inputs:
    """Rows `start` to `stop` of a view, with the pictures and texts that belong to them."""
    part = {"rows": inputs["rows"][start:stop] - start}
    for owner, names in _PARTS.items():
        if owner not in inputs:
            continue
        bounds = torch.tensor([start, stop], device=inputs[owner].device)
        first, last = torch.searchsorted(inputs[owner], bounds).tolist()
        if first < last:
            part |= {name: inputs[name][first:last] for name in names if name in inputs}
            part[owner] = inputs[owner][first:last] - start
    return part
