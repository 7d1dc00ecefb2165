"""The processor of a run on cached latents: items are looked up by their content, nothing is decoded or tokenized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from zoo.data.latents import Latents
from zoo.data.parts import MODALITIES, Content, as_keys, described, part_key, parts_of
from zoo.data.processors.collate import collate
from zoo.data.source import Processor
from zoo.errors import SampleError
from zoo.types import Batch, Inputs, Item, Sample


class CachedProcessor(Processor):
    """Samples to latents: in the place of a modality's own tensors a view holds

    {m}_pooled  (I, D) float32, one for each part of that modality
    {m}_tokens  (I, L, D) float32 and {m}_mask (I, L) int64, where tokens are kept
    {m}_rows    (I,) int64, the row that each part belongs to, as without a cache

    Picklable: workers open the files of latents again.

    Args:
        processor: of the module; answers for everything but samples.
        latents: modality -> its latents.

    Raises:
        SampleError: a part has no latent; names the sample.
    """

    def __init__(self, processor: Any, latents: Mapping[str, Latents]) -> None:
        self.processor, self.latents = processor, dict(latents)

    def __call__(self, samples: list[Sample]) -> Batch:
        return collate(samples, self.encode_view)

    def encode_view(self, view: str, items: Sequence[Item], names: Sequence[str]) -> Inputs:
        """The items of one view -> latents."""
        found: dict[str, list[tuple[int, Content]]] = {}
        for row, item in enumerate(items):
            if item.instruction:
                raise SampleError(f"{names[row]}: latents hold no instructions; leave the instruction out")
            for modality, content in parts_of(item):
                found.setdefault(modality, []).append((row, content))
        inputs = {"rows": torch.arange(len(items))}
        for modality in MODALITIES:
            if modality in found:
                inputs |= self._looked_up(modality, found[modality], names)
        return inputs

    def _looked_up(self, modality: str, parts: Sequence[tuple[int, Content]], names: Sequence[str]) -> Inputs:
        latents = self.latents.get(modality)
        if latents is None:
            raise SampleError(f"{names[parts[0][0]]}: no latents of any {modality} are cached; {_WAY_OUT}")
        raw = b"".join([part_key(modality, content) for _, content in parts])
        places = latents.find(as_keys(raw))
        if (places < 0).any():
            number = int((places < 0).argmax())
            row, content = parts[number]
            raise SampleError(
                self._missing(latents, modality, content, raw[16 * number : 16 * number + 16], names[row])
            )
        inputs = {
            f"{modality}_pooled": torch.from_numpy(latents.pooled(places)),
            f"{modality}_rows": torch.tensor([row for row, _ in parts], dtype=torch.int64),
        }
        if latents.has_tokens:
            tokens, mask = latents.tokens(places)
            inputs |= {f"{modality}_tokens": torch.from_numpy(tokens), f"{modality}_mask": torch.from_numpy(mask)}
        return inputs

    def _missing(self, latents: Latents, modality: str, content: Content, key: bytes, name: str) -> str:
        if reason := latents.left_out.get(key.hex()):
            return f"{name}: the {described(modality, content)} was left out when the cache was filled: {reason}"
        return f"{name}: the {described(modality, content)} has no cached latent; {_WAY_OUT}"

    def split(self, inputs: Inputs, size: int) -> list[Inputs]:
        """Cut into chunks of at most `size` rows."""
        chunks: list[Inputs] = self.processor.split(inputs, size)
        return chunks

    def save(self, folder: Path) -> dict[str, str]:
        """As the processor of the module: a bundle works on items that nobody has cached."""
        arguments: dict[str, str] = self.processor.save(folder)
        return arguments

    def spec(self) -> dict[str, Any]:
        """As the processor of the module."""
        facts: dict[str, Any] = self.processor.spec()
        return facts

    def export(self, folder: Path) -> dict[str, Any]:
        """As the processor of the module."""
        facts: dict[str, Any] = self.processor.export(folder)
        return facts


_WAY_OUT = (
    "the data changed since the cache was filled, or its source lists too little: run `zoo cache` again, check the "
    "`items()` of the source, or set cache.enabled: false"
)
