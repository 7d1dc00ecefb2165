"""The architecture and its processor. R rows, W buckets of words, G values of the grid, E width of the embedding."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import zoo
from zoo.data.images import open_image
from zoo.data.processors.collate import collate
from zoo.data.source import Processor
from zoo.types import Graph, Inputs


class ColourWordsProcessor(Processor):
    """Items to counts of hashed words (R, W) and the pixels of a small square (R, G); zeros for what is missing.

    Args:
        buckets: W.
        side: pixels of the square, G = 3 * side^2.
    """

    def __init__(self, buckets: int = 512, side: int = 8) -> None:
        self.buckets, self.side = buckets, side

    def __call__(self, samples: list[zoo.Sample]) -> zoo.Batch:
        return collate(samples, self._view)

    def _view(self, view: str, items: Sequence[zoo.Item], names: Sequence[str]) -> Inputs:
        words = np.zeros((len(items), self.buckets), np.float32)
        grid = np.zeros((len(items), 3 * self.side**2), np.float32)
        for row, (item, name) in enumerate(zip(items, names, strict=True)):
            for word in f"{item.instruction or ''} {item.text or ''}".lower().split():
                words[row, zlib.crc32(word.encode()) % self.buckets] += 1.0
            for image in item.images:
                small = open_image(image, name).resize((self.side, self.side))
                grid[row] += np.asarray(small, np.float32).reshape(-1) / 127.5 - 1.0
        return {"words": torch.from_numpy(words), "grid": torch.from_numpy(grid)}

    def split(self, inputs: Inputs, size: int) -> list[Inputs]:
        rows = len(inputs["words"])
        return [{name: value[i : i + size] for name, value in inputs.items()} for i in range(0, rows, size)]

    def save(self, folder: Path) -> dict[str, str]:
        """It has no files."""
        return {}


@zoo.register
class ColourWords(zoo.EmbeddingModule):
    """The sum of a map of the words and a map of the grid, through one hidden layer.

    Args:
        processor: with the sizes that the two maps have.
        dim: E.
        training: the arguments of `zoo.EmbeddingModule`.
    """

    def __init__(self, processor: ColourWordsProcessor, dim: int = 64, **training: Any) -> None:
        super().__init__(processor=processor, **training)
        self.words = nn.Linear(processor.buckets, 2 * dim, bias=False)
        self.grid = nn.Linear(3 * processor.side**2, 2 * dim)
        self.mix = nn.Linear(2 * dim, dim)

    def encode(self, inputs: Inputs) -> zoo.Embedding:
        return zoo.Embedding(self.forward(inputs["words"], inputs["grid"]))

    def forward(self, words: Tensor, grid: Tensor) -> Tensor:
        mixed = self.mix(torch.tanh(self.words(words) + self.grid(grid)))
        return nn.functional.normalize(mixed.float(), dim=-1)

    def export_graphs(self) -> list[Graph]:
        examples = [
            {"words": torch.rand(n, self.words.in_features), "grid": torch.rand(n, self.grid.in_features)}
            for n in (3, 1, 5)
        ]
        rows = {0: "batch"}
        return [Graph("encoder", self, examples, {"words": rows, "grid": rows, "embeddings": rows})]
