"""Frozen encoders of any number of modalities, each with a small trained head into one space.

Shapes: R rows of a view, I parts of one modality, D width of an encoder's latents, E embedding width, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.module import EmbeddingModule
from zoo.nn.heads import Head
from zoo.nn.inputs import joined_inputs
from zoo.nn.latent_heads import StatesHead, UniversalProjection, applied
from zoo.nn.latent_mixing import LatentMixing
from zoo.nn.partial_pairs import PartialPairs
from zoo.nn.parts import given, outputs, part_of, summed, unit
from zoo.nn.picture_mixing import PictureMixing
from zoo.nn.towers import ImageTower, PlaceTower, PooledTower, States, TextTower
from zoo.registry import register
from zoo.types import Batch, Embedding, Encoded, Graph, Inputs, Item, Sample

RAW: Mapping[str, tuple[str, ...]] = {
    "image": ("pixels",),
    "text": ("input_ids", "attention_mask"),
    "place": ("places",),
}
"""Modality -> the tensors that its encoder takes, as the processor names them."""


@register
class Projector(EmbeddingModule):
    """Heads on frozen encoders: a row's vector is the normalised sum of the unit vectors of its parts.

    Encoders are read from where they were released, never change and are kept nowhere: no gradients, always in evaluation
    mode, in no checkpoint and no bundle (those with random weights are, since nobody could read them again). Their latents
    can be computed beforehand (`zoo cache`); a view then holds `{modality}_pooled` instead of the modality's own tensors.

    Args:
        encoders: modality (image, text, place) -> encoder.
        heads: modality -> head; on the pooled latent, or on all states (`StatesHead`).
        mixing: what becomes of a batch of latents while training: FuseMix's mixing of pairs, PCME++'s of pictures, or MEME's
            pairs of which a side is lost; None = it stays as it is.
        universal: one part behind all heads that is told the modality (OneEncoder); None = none.
        tokens: modalities whose token latents the heads need; all others are cached pooled alone.
        training: the arguments of `EmbeddingModule`.

    Raises:
        RecipeError: encoders and heads that do not belong together.
    """

    def __init__(
        self,
        encoders: dict[str, ImageTower | TextTower | PlaceTower],
        heads: dict[str, Head | StatesHead],
        mixing: LatentMixing | PictureMixing | PartialPairs | None = None,
        universal: UniversalProjection | None = None,
        tokens: Sequence[str] = (),
        **training: Any,
    ) -> None:
        super().__init__(**training)
        if set(encoders) != set(heads) or not set(encoders) <= set(RAW):
            raise RecipeError(
                f"encoders are there for {sorted(encoders)}, heads for {sorted(heads)}: a Projector needs both for each of "
                f"its modalities, which are among {sorted(RAW)}"
            )
        if missing := sorted(set(tokens) - set(encoders)):
            raise RecipeError(f"`tokens` names {missing}, for which there is no encoder")
        looking = [name for name, head in heads.items() if isinstance(head, StatesHead) and head.needs_tokens]
        if blind := sorted(set(looking) - set(tokens)):
            raise RecipeError(f"the heads of {blind} look at tokens: name these modalities in `tokens`, too")
        self.encoders = nn.ModuleDict(encoders).requires_grad_(False)  # type: ignore[arg-type]  # encoders are modules
        self.heads = nn.ModuleDict(heads)  # type: ignore[arg-type]
        self.mixing = mixing
        self.universal = universal
        self.tokens = tuple(tokens)

    def kept_elsewhere(self) -> list[str]:
        """See `EmbeddingModule`: the encoders that can be read again."""
        return [f"encoders.{name}" for name, tower in self.encoders.items() if getattr(tower, "pretrained", None)]

    def train(self, mode: bool = True) -> Self:
        """As of any module, but the encoders stay in evaluation mode."""
        super().train(mode)
        self.encoders.eval()
        return self

    def latents(self, inputs: Inputs) -> Inputs:
        """Raw tensors of each modality -> `{modality}_pooled` (I, D) and, for those in `tokens`, `{modality}_tokens`
        (I, L, D) with `{modality}_mask` (I, L); what is cached already passes through.
        """
        raw = {name for names in RAW.values() for name in names}
        found = {name: value for name, value in inputs.items() if name not in raw}
        for modality, names in RAW.items():
            if names[0] not in inputs:
                continue
            with torch.no_grad():
                states = self._states(modality, *(inputs[name] for name in names))
            found[f"{modality}_pooled"] = states.pooled
            if modality in self.tokens:
                found[f"{modality}_tokens"] = states.tokens
                found[f"{modality}_mask"] = _mask(states)
        return found

    def encode(self, inputs: Inputs) -> Embedding:
        """Inputs as `DualArrays.__call__` names them, or latents, R rows -> Embedding (R, E)."""
        latents = self.latents(inputs)
        parts = []
        for modality in self.encoders:
            if f"{modality}_pooled" not in latents:
                continue
            pooled = latents[f"{modality}_pooled"]
            states = States(pooled, latents.get(f"{modality}_tokens", pooled[:, None]), latents.get(f"{modality}_mask"))
            parts.append(part_of(latents[f"{modality}_rows"], self._headed(modality, states)))
        if not parts:
            raise RecipeError(f"these inputs hold nothing for the encoders of {sorted(self.encoders)}")
        return summed(parts, len(inputs["rows"]))

    def export_graphs(self) -> list[Graph]:
        """One per modality: its raw tensors -> vectors, any number of rows."""
        examples = [self._example(count) for count in (2, 1, 5)]
        rows = {0: "batch"}
        graphs = []
        for modality in self.encoders:
            inputs = [{name: example[name] for name in RAW[modality]} for example in examples]
            lengths = {one[RAW[modality][0]].shape[1] for one in inputs}
            axes = {0: "batch", 1: "sequence"} if modality == "text" and len(lengths) > 1 else rows
            head = self.heads[modality]
            names = {name: axes for name in RAW[modality]} | given(head, rows)
            graphs.append(Graph(modality, _TOWERS[modality](self), inputs, names, outputs(head)))
        return graphs

    def _encoded(self, batch: Batch) -> Encoded:
        """As of every architecture; while training, of what `mixing` makes of the latents."""
        if self.mixing is not None and self.training:
            views = {name: self._latents_in_chunks(inputs) for name, inputs in batch.views.items()}
            batch = self.mixing(replace(batch, views=views))
        return super()._encoded(batch)

    def _latents_in_chunks(self, inputs: Inputs) -> Inputs:
        """`latents`, of `chunk_size` rows at a time if set: mixing needs those of the whole batch, encoders do not."""
        if self.chunk_size is None or len(inputs["rows"]) <= self.chunk_size:
            return self.latents(inputs)
        return joined_inputs([self.latents(chunk) for chunk in self.processor.split(inputs, self.chunk_size)])

    def _states(self, modality: str, *tensors: Tensor) -> States:
        if modality not in self.encoders:
            raise RecipeError(f"there is no encoder for a {modality}; there are those of {sorted(self.encoders)}")
        encoder = self.encoders[modality]
        if isinstance(encoder, PooledTower):  # here: `zoo cache --tokens` asks for tokens of a model that is built
            encoder.pooled_only = modality not in self.tokens
        states: States = encoder(*tensors)
        return states

    def _headed(self, modality: str, states: States) -> Any:
        """What the modality's head gives, (I, E) or a `Gaussian`, after the part behind all heads."""
        out = applied(self.heads[modality], states)
        return out if self.universal is None else self.universal(out, modality)

    def _example(self, count: int) -> Inputs:
        """Inputs of rows with one part of each modality, texts of several lengths."""
        from PIL import Image

        samples = []
        for i in range(count):
            images = (Image.effect_noise((70, 50 + i), 90).convert("RGB"),) if "image" in self.encoders else ()
            text = "a " * (1 + 3 * i + count) if "text" in self.encoders else None
            place = (10.0 * i - 20, 30.0 * i) if "place" in self.encoders else None
            samples.append(Sample(f"example {i}", {"query": Item(text, images, place=place)}))
        return self.processor(samples).views["query"]


def _mask(states: States) -> Tensor:
    if states.mask is not None:
        return states.mask
    return torch.ones(states.tokens.shape[:2], dtype=torch.int64, device=states.tokens.device)


class _Tower(nn.Module):
    """Raw tensors of one modality -> vectors. The names of `forward` are those of the graph's inputs."""

    modality: str

    def __init__(self, projector: Projector) -> None:
        super().__init__()
        self.projector = projector

    def vectors(self, *tensors: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(I, E) vectors and, if there are any, log-variances."""
        states = self.projector._states(self.modality, *tensors)
        found, log_var = unit(self.projector._headed(self.modality, states))
        return found if log_var is None else (found, log_var)


class _Image(_Tower):
    modality = "image"

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.vectors(pixels)


class _Text(_Tower):
    modality = "text"

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.vectors(input_ids, attention_mask)


class _Place(_Tower):
    modality = "place"

    def forward(self, places: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.vectors(places)


_TOWERS = {tower.modality: tower for tower in (_Image, _Text, _Place)}
