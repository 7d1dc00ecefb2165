"""Two frozen encoders small enough for tests, with one trained map behind each: what caching needs of an architecture."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pair_files import picture
from torch import Tensor, nn

from zoo.data.parts import MODALITIES
from zoo.data.processors.dual import DualProcessor
from zoo.data.processors.dual_arrays import Caption, Picture
from zoo.data.source import Source
from zoo.module import EmbeddingModule
from zoo.nn.towers import States
from zoo.types import Embedding, Inputs, Item, Sample

RAW = {"image": ("pixels",), "text": ("input_ids", "attention_mask")}


class ColourTower(nn.Module):
    """Cells of 4 x 4 pixels through one map; dropout shows whether it is in evaluation mode."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.cells, self.drop, self.width = nn.Conv2d(3, width, 4, 4), nn.Dropout(0.5), width

    def forward(self, pixels: Tensor) -> States:
        tokens = self.drop(self.cells(pixels).tanh().flatten(2).transpose(1, 2))
        return States(tokens.mean(1), tokens)


class WordTower(nn.Module):
    """A vector per token; the mean over real ones."""

    def __init__(self, width: int = 5, words: int = 21727) -> None:
        super().__init__()
        self.words, self.width = nn.Embedding(words, width), width

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> States:
        tokens, mask = self.words(input_ids), attention_mask.unsqueeze(-1)
        return States((tokens * mask).sum(1) / mask.sum(1), tokens, attention_mask)


class FrozenTowers(EmbeddingModule):
    """Embeds by a linear map of each encoder's latents. `calls` counts the parts that the encoders have seen."""

    def __init__(self, tokens: Sequence[str] = (), dim: int = 4, **training: Any) -> None:
        super().__init__(**training)
        self.encoders = nn.ModuleDict({"image": ColourTower(), "text": WordTower()}).requires_grad_(False)
        self.heads = nn.ModuleDict({name: nn.Linear(tower.width, dim) for name, tower in self.encoders.items()})
        self.tokens, self.calls = list(tokens), 0

    def latents(self, inputs: Inputs) -> Inputs:
        found = {k: v for k, v in inputs.items() if k not in (name for names in RAW.values() for name in names)}
        for name, raw in RAW.items():
            if raw[0] in inputs:
                self.calls += len(inputs[raw[0]])
                with torch.no_grad():
                    states = self.encoders[name].eval()(*(inputs[one] for one in raw))
                found[f"{name}_pooled"] = states.pooled
                if name in self.tokens:
                    mask = states.mask
                    found[f"{name}_tokens"] = states.tokens
                    found[f"{name}_mask"] = torch.ones(states.tokens.shape[:2]).long() if mask is None else mask
        return found

    def encode(self, inputs: Inputs) -> Embedding:
        found = self.latents(inputs)
        total = torch.zeros(len(inputs["rows"]), 4)
        for name in MODALITIES:
            if f"{name}_pooled" in found:
                vectors = F.normalize(self.heads[name](found[f"{name}_pooled"]), dim=-1)
                total = total.index_add(0, found[f"{name}_rows"], vectors)
        return Embedding(F.normalize(total, dim=-1))


def processor(size: int = 16, max_length: int = 32) -> DualProcessor:
    return DualProcessor("packaged:emoji-tokenizer.json", Picture(size=size), Caption(max_length=max_length))


def build(seed: int = 0, size: int = 16, max_length: int = 32, **arguments: Any) -> FrozenTowers:
    torch.manual_seed(seed)
    return FrozenTowers(processor=processor(size, max_length), **arguments)


class ManyPairs(Source):
    """Pictures and texts of numbers; `bad` are damaged pictures."""

    def __init__(self, count: int = 20, bad: Sequence[int] = (), name: str = "pairs") -> None:
        self.count, self.bad, self.name = count, bad, name

    def __len__(self) -> int:
        return self.count

    def picture(self, index: int) -> bytes:
        return b"no picture" + bytes([index]) if index in self.bad else picture(index, (16, 12))

    def text(self, index: int) -> str:
        return f"number {index}" + " and more" * (index % 7)

    def draw(self, index: int, rng: random.Random) -> Sample:
        views = {"query": Item(images=(self.picture(index),)), "target": Item(text=self.text(index))}
        return Sample(f"{self.name}/{index}", views, label=index, source=self.name)

    def items(self) -> Any:
        for index in range(self.count):
            yield from self.draw(index, random.Random(0)).views.values()


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file of latents below a folder, by its name there."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}
