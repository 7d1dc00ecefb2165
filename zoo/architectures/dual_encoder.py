"""Two towers, one for pictures and one for text, that meet only in the vector space: CLIP (arXiv:2103.00020) and its kin.

A picture becomes a vector without any text being known and the other way round, so either side can be embedded once and
searched for ever. Papers differ in towers, heads, objectives and data, not here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.module import EmbeddingModule
from zoo.nn.heads import Head
from zoo.nn.towers import ImageTower, SharedPooling, States, TextTower
from zoo.registry import register
from zoo.types import Embedding, Graph, Inputs, Item, Sample


@register
class DualEncoder(EmbeddingModule):
    """Embeds pictures, texts, and mixes of them: an item of several parts is the normalised sum of their unit vectors
    (ALIGN's image + text queries, arXiv:2102.05918, section 5.4).

    Args:
        image: the tower of pictures.
        text: the tower of texts.
        image_head: after the image tower; None = nothing. text_head: after the text tower.
        shared: pools the tokens of either tower after their heads, with parameters that both share (FDT); None = the
            towers' own pooling.
        tokens: give tokens and their mask, too, for objectives and scores that look at parts; then a view holds pictures
            alone or texts alone, one per row.
        training: the arguments of `EmbeddingModule`.
    """

    def __init__(
        self,
        image: ImageTower,
        text: TextTower,
        image_head: Head | None = None,
        text_head: Head | None = None,
        shared: SharedPooling | None = None,
        tokens: bool = False,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.image, self.text = image, text
        self.image_head, self.text_head = image_head or nn.Identity(), text_head or nn.Identity()
        self.shared = shared
        self.tokens = tokens

    def encode(self, inputs: Inputs) -> Embedding:
        """Inputs as `DualArrays.__call__` names them, R rows -> Embedding (R, E)."""
        parts = []
        if "pixels" in inputs:
            parts.append((inputs["image_rows"], *self._embedded(self.image(inputs["pixels"]), self.image_head)))
        if "input_ids" in inputs:
            states = self.text(inputs["input_ids"], inputs["attention_mask"])
            parts.append((inputs["text_rows"], *self._embedded(states, self.text_head)))
        rows = len(inputs["rows"])
        if self.tokens:
            return _single(parts, rows)
        total = parts[0][1].new_zeros(rows, parts[0][1].shape[1])
        for owner, vectors, *_ in parts:
            total = total.index_add(0, owner, vectors)
        return Embedding(F.normalize(total, dim=-1))

    def _embedded(self, states: States, head: nn.Module | Head) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Unit vectors (R, E) fp32 and, if asked for, tokens after the head with their mask."""
        tokens = head(states.tokens) if self.tokens or self.shared is not None else None
        pooled = head(states.pooled) if self.shared is None else self.shared(tokens, states.mask)  # type: ignore[arg-type]
        vectors = F.normalize(pooled.float() if pooled.dtype != torch.float64 else pooled, dim=-1)
        return (vectors, tokens, states.mask) if self.tokens else (vectors, None, None)

    def export_graphs(self) -> list[Graph]:
        """`image`: pixels -> vectors; `text`: token ids and mask -> vectors. Any number of rows, any length."""
        pictures, texts = [], []
        for words in ((4, 9, 2), (1,), (7, 3, 3, 1, 12)):
            inputs = self._example(words)
            pictures.append({"pixels": inputs["pixels"]})
            texts.append({name: inputs[name] for name in ("input_ids", "attention_mask")})
        rows = {0: "batch"}
        fixed = len({text["input_ids"].shape[1] for text in texts}) == 1
        tokens = rows if fixed else {0: "batch", 1: "sequence"}
        return [
            Graph("image", _Image(self), pictures, {"pixels": rows, "embeddings": rows}),
            Graph("text", _Text(self), texts, {"input_ids": tokens, "attention_mask": tokens, "embeddings": rows}),
        ]

    def _example(self, words: tuple[int, ...]) -> Inputs:
        """Inputs of rows with one picture and so many words each."""
        from PIL import Image

        samples = [
            Sample(f"example {i}", {"query": Item("a " * n, (Image.effect_noise((70, 50 + n), 90).convert("RGB"),))})
            for i, n in enumerate(words)
        ]
        return self.processor(samples).views["query"]


def _single(parts: list[tuple[Tensor, Tensor, Tensor | None, Tensor | None]], rows: int) -> Embedding:
    if len(parts) != 1 or len(parts[0][0]) != rows:
        raise RecipeError("tokens are of one picture or one text per row; this batch mixes them or holds several a row")
    _, vectors, tokens, mask = parts[0]
    assert tokens is not None
    if mask is None:
        mask = torch.ones(tokens.shape[:2], dtype=torch.int64, device=tokens.device)
    return Embedding(vectors, tokens=tokens, mask=mask)


class _Image(nn.Module):
    def __init__(self, encoder: DualEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encoder._embedded(self.encoder.image(pixels), self.encoder.image_head)[0]


class _Text(nn.Module):
    def __init__(self, encoder: DualEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.encoder._embedded(self.encoder.text(input_ids, attention_mask), self.encoder.text_head)[0]
