"""A vision-language model as encoder: VLM2Vec (arXiv:2410.05160), ABC (arXiv:2503.00329) and their kin.

An item becomes a prompt (processor), the prompt a sequence of states (backbone), the states one vector (pooling, head),
and the vector is normalised in fp32. Papers differ in the parts, not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.module import EmbeddingModule
from zoo.nn.adapters import Lora, merge_adapters
from zoo.nn.heads import Head
from zoo.nn.pooling import LastToken, Pooling
from zoo.nn.towers import VlmBackbone
from zoo.registry import register
from zoo.types import Embedding, Graph, Inputs, Item, Sample


@register
class VlmEncoder(EmbeddingModule):
    """Embeds any mix of pictures and text under an instruction.

    Args:
        backbone: the vision-language model without its language-model head.
        pooling: states of a sequence to one; default the last token.
        head: what follows pooling; None = nothing.
        adapter: low-rank adapters on the backbone, which is then frozen but for them; None = train the backbone itself.
        training: the arguments of `EmbeddingModule`.
    """

    def __init__(
        self,
        backbone: VlmBackbone,
        pooling: Pooling | None = None,
        head: Head | None = None,
        adapter: Lora | None = None,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.backbone = backbone
        self.pooling = pooling or LastToken()
        self.head = head or nn.Identity()
        self.adapter = adapter
        if adapter is not None:
            adapter.inject(backbone)  # type: ignore[arg-type]  # backbones are modules

    def encode(self, inputs: Inputs) -> Embedding:
        """Inputs as `VlmArrays.__call__` names them, R rows -> Embedding (R, E)."""
        if "patches" in inputs:
            features = self.backbone.image_features(
                inputs["patches"], inputs["patch_positions"], inputs["patch_mask"]
            ).flatten(0, 1)
        else:  # text only: one row that no token asks for
            features = torch.zeros(1, self.backbone.width, device=inputs["input_ids"].device)
        return Embedding(self._language(inputs, features))

    def _language(self, inputs: Inputs, features: Tensor) -> Tensor:
        arguments = (
            inputs["input_ids"],
            inputs["attention_mask"],
            inputs["position_ids"],
            features,
            inputs["image_index"],
        )
        if self.adapter is None:
            hidden = self.backbone.hidden_states(*arguments)
        else:
            with self.adapter.gated(inputs["instructed"]):
                hidden = self.backbone.hidden_states(*arguments)
        pooled = self.pooling(hidden, inputs["attention_mask"], inputs["input_ids"])
        return F.normalize(self.head(pooled).float(), dim=-1)

    def merge_adapters(self) -> None:
        """See the base class. An adapter for rows with an instruction stays one: merged, it would act on all rows."""
        if self.adapter is not None and self.adapter.when == "always":
            merge_adapters(self.backbone)  # type: ignore[arg-type]  # backbones are modules
            self.adapter = None

    def export_graphs(self) -> list[Graph]:
        """`vision`: patches -> features, any number and size of pictures. `language`: tokens, features -> vectors."""
        examples = [self._example(rows) for rows in _EXPORT_ROWS]
        vision = [{name: e[name] for name in ("patches", "patch_positions", "patch_mask")} for e in examples]
        language = []
        with torch.no_grad():
            for example, pictures in zip(examples, vision, strict=True):
                inputs = {n: v for n, v in example.items() if not n.startswith("patch") and n != "image_rows"}
                language.append(inputs | {"image_features": self.backbone.image_features(*pictures.values())})
        text = self._example([((), 5), ((), 9), ((), 3)])
        language.append(text | {"image_features": torch.zeros(1, 1, self.backbone.width)})
        images = {0: "images", 1: "patches"}
        rows = {0: "batch", 1: "sequence"}
        return [
            Graph(
                "vision",
                _Vision(self),
                vision,
                {
                    "patches": images,
                    "patch_positions": images,
                    "patch_mask": images,
                    "image_features": {0: "images", 1: "image_tokens"},
                },
                ("image_features",),
            ),
            Graph(
                "language",
                _Language(self),
                language,
                {
                    "input_ids": rows,
                    "attention_mask": rows,
                    "image_index": rows,
                    "position_ids": {0: "batch", 2: "sequence"},
                    "instructed": {0: "batch"},
                    "image_features": {0: "images", 1: "image_tokens"},
                    "embeddings": {0: "batch"},
                },
            ),
        ]

    def _example(self, rows: _Rows) -> Inputs:
        """Inputs of rows with pictures of these grids (rows and columns in merged patches) and so many words."""
        from PIL import Image

        pixels = self.processor.arrays.pixels  # type: ignore[attr-defined]
        block = pixels.patch_size * pixels.merge_size
        samples = []
        for i, (grids, words) in enumerate(rows):
            pictures = tuple(Image.effect_noise((block * c, block * r), 90).convert("RGB") for r, c in grids)
            item = Item(text="a " * words, images=pictures, instruction="find" if i % 2 else None)
            samples.append(Sample(f"example {i}", {"query": item}))
        return self.processor(samples).views["query"]


_Rows = Sequence[tuple[tuple[tuple[int, int], ...], int]]
# per row the grids of its pictures and its number of words. The first entry traces the graph (all sizes >= 2 and
# distinct), the others prove it at another batch size, length, number and size of pictures, down to one of each. The
# shapes of the pictures differ so much that their grids do, even where all are resized to about the same area.
_EXPORT_ROWS: tuple[_Rows, ...] = (
    [(((2, 3),), 4), (((3, 4),), 9), ((), 7), (((5, 1),), 6)],
    [(((1, 1),), 2)],
    [(((5, 4), (1, 1)), 30), ((), 3), (((1, 9),), 1), (((1, 2),), 8), ((), 2)],
)


class _Vision(nn.Module):
    def __init__(self, encoder: VlmEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, patches: Tensor, patch_positions: Tensor, patch_mask: Tensor) -> Tensor:
        return self.encoder.backbone.image_features(patches, patch_positions, patch_mask)


class _Language(nn.Module):
    def __init__(self, encoder: VlmEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        image_index: Tensor,
        instructed: Tensor,
        image_features: Tensor,
    ) -> Tensor:
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "image_index": image_index,
            "instructed": instructed,
        }
        return self.encoder._language(inputs, image_features.flatten(0, 1))
