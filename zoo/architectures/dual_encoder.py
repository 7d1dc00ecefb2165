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
from zoo.nn.momentum import Momentum
from zoo.nn.towers import ImageTower, SharedPooling, States, TextTower
from zoo.registry import register
from zoo.types import Batch, Embedding, Encoded, Graph, Inputs, Item, Sample


@register
class DualEncoder(EmbeddingModule):
    """Embeds pictures, texts, and mixes of them: an item of several parts is the normalised sum of their unit vectors
    (ALIGN's image + text queries, arXiv:2102.05918, section 5.4).

    Args:
        image: the tower of pictures.
        text: the tower of texts; None = texts reach the tower of pictures as pictures of their letters (CLIPPO).
        image_head: after the image tower; None = nothing. text_head: after the text tower.
        shared: pools the tokens of either tower after their heads, with parameters that both share (FDT); None = the
            towers' own pooling.
        tokens: give tokens and their mask, too, for objectives and scores that look at parts, where a view holds pictures
            alone or texts alone, one per row.
        momentum: keep a copy of everything that follows slowly (see `Momentum`), which gives training the further views
            `NAME_momentum` without gradient; None = no copy.
        training: the arguments of `EmbeddingModule`.
    """

    def __init__(
        self,
        image: ImageTower,
        text: TextTower | None = None,
        image_head: Head | None = None,
        text_head: Head | None = None,
        shared: SharedPooling | None = None,
        tokens: bool = False,
        momentum: float | None = None,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.image, self.text = image, text
        self.image_head, self.text_head = image_head or nn.Identity(), text_head or nn.Identity()
        self.shared = shared
        self.tokens = tokens
        self.slow = None if momentum is None else Momentum(self, momentum)
        if self.slow is not None:
            self.slow.model.objective, self.slow.model.processor = None, self.processor

    def encode(self, inputs: Inputs) -> Embedding:
        """Inputs as `DualArrays.__call__` names them, R rows -> Embedding (R, E)."""
        parts = []
        if "pixels" in inputs:
            parts.append((inputs["image_rows"], *self._embedded(self.image(inputs["pixels"]), self.image_head)))
        if "input_ids" in inputs:
            if self.text is None:
                raise RecipeError("there is no text tower for these tokens: use the processor RenderedProcessor")
            states = self.text(inputs["input_ids"], inputs["attention_mask"])
            parts.append((inputs["text_rows"], *self._embedded(states, self.text_head)))
        rows = len(inputs["rows"])
        if self.tokens and len(parts) == 1 and len(parts[0][0]) == rows:
            return _with_tokens(*parts[0])
        total = parts[0][1].new_zeros(rows, parts[0][1].shape[1])
        for owner, vectors, *_ in parts:
            total = total.index_add(0, owner, vectors)
        return Embedding(F.normalize(total, dim=-1))

    def _encoded(self, batch: Batch) -> Encoded:
        """As of every architecture, and while training with the views of the slow copy."""
        encoded = super()._encoded(batch)
        if self.slow is None or not self.training:
            return encoded
        self.slow.follow(self)
        with torch.no_grad():
            slow = {f"{name}_momentum": self.slow.model.encode(inputs) for name, inputs in batch.views.items()}
        encoded.views |= slow
        encoded.owners = batch.owners | {f"{name}_momentum": rows for name, rows in batch.owners.items()}
        encoded.keys = batch.keys | {f"{name}_momentum": keys for name, keys in batch.keys.items()}
        return encoded

    def _embedded(self, states: States, head: nn.Module | Head) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Unit vectors (R, E) fp32 and, if asked for, tokens after the head with their mask."""
        tokens = head(states.tokens) if self.tokens or self.shared is not None else None
        pooled = head(states.pooled) if self.shared is None else self.shared(tokens, states.mask)  # type: ignore[arg-type]
        vectors = F.normalize(pooled.float() if pooled.dtype != torch.float64 else pooled, dim=-1)
        return (vectors, tokens, states.mask) if self.tokens else (vectors, None, None)

    def export_graphs(self) -> list[Graph]:
        """`image`: pixels -> vectors; `text`: token ids and mask -> vectors. Any number of rows, any length."""
        examples = [self._example(words) for words in ((4, 9, 2), (1,), (7, 3, 3, 1, 12))]
        rows = {0: "batch"}
        pictures = [{"pixels": inputs["pixels"]} for inputs in examples]
        image = Graph("image", _Image(self), pictures, {"pixels": rows, "embeddings": rows})
        if self.text is None:
            return [image]
        texts = [{name: inputs[name] for name in ("input_ids", "attention_mask")} for inputs in examples]
        fixed = len({text["input_ids"].shape[1] for text in texts}) == 1
        tokens = rows if fixed else {0: "batch", 1: "sequence"}
        return [
            image,
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


def _with_tokens(owner: Tensor, vectors: Tensor, tokens: Tensor | None, mask: Tensor | None) -> Embedding:
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
        assert self.encoder.text is not None  # or there would be no such graph
        return self.encoder._embedded(self.encoder.text(input_ids, attention_mask), self.encoder.text_head)[0]
