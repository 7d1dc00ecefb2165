"""Two towers, one for pictures and one for text, that meet only in the vector space: CLIP (arXiv:2103.00020) and its kin.

A picture becomes a vector without any text being known and the other way round, so either side can be embedded once and
searched for ever. Papers differ in towers, heads, objectives and data, not here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.module import EmbeddingModule
from zoo.nn.gaussian import Gaussian
from zoo.nn.heads import Head
from zoo.nn.latent_heads import StatesHead, applied
from zoo.nn.masked_views import MaskedViews
from zoo.nn.momentum import Momentum
from zoo.nn.parts import Part, given, outputs, summed, unit
from zoo.nn.picture_mixing import PictureMixing
from zoo.nn.towers import ImageTower, PatchTower, PooledTower, SharedPooling, States, TextTower
from zoo.objectives.contrastive import at_least_fp32
from zoo.registry import register
from zoo.types import Batch, Embedding, Encoded, Graph, Inputs, Item, Sample


@register
class DualEncoder(EmbeddingModule):
    """Embeds pictures, texts, and mixes of them: an item of several parts is the normalised sum of their unit vectors
    (ALIGN's image + text queries, arXiv:2102.05918, section 5.4).

    Args:
        image: the tower of pictures.
        text: the tower of texts; None = texts reach the tower of pictures as pictures of their letters (CLIPPO).
        image_head: after the image tower, on its pooled state or on all states (`StatesHead`); None = nothing. With a
            `GaussianHead` the entry is probabilistic. text_head: after the text tower.
        shared: pools the tokens of either tower after their heads, with parameters that both share (FDT); None = the
            towers' own pooling.
        tokens: give tokens and their mask, too, for objectives and scores that look at parts, where a view holds pictures
            alone or texts alone, one per row.
        momentum: keep a copy of everything that follows slowly (see `Momentum`), which gives training the further views
            `NAME_momentum` without gradient; None = no copy.
        mixing: of pictures while training; None = none.
        masking: gives training the further views `NAME_masked`, of which parts are hidden; None = none.
        training: the arguments of `EmbeddingModule`.
    """

    def __init__(
        self,
        image: ImageTower,
        text: TextTower | None = None,
        image_head: Head | StatesHead | None = None,
        text_head: Head | StatesHead | None = None,
        shared: SharedPooling | None = None,
        tokens: bool = False,
        momentum: float | None = None,
        mixing: PictureMixing | None = None,
        masking: MaskedViews | None = None,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.image, self.text = image, text
        self.image_head: nn.Module = image_head or nn.Identity()  # type: ignore[assignment]  # heads are modules
        self.text_head: nn.Module = text_head or nn.Identity()  # type: ignore[assignment]
        if (tokens or shared is not None) and any(isinstance(head, StatesHead) for head in (image_head, text_head)):
            raise RecipeError("`tokens` and `shared` need heads that act on single tokens, not on all states at once")
        self.shared = shared
        self.tokens = tokens
        self.mixing, self.masking = mixing, masking
        self.slow: Momentum | None = None  # the copy has none itself
        if momentum is not None:
            self.slow = Momentum(self, momentum)
            self.slow.model.objective, self.slow.model.processor = None, self.processor

    def setup(self, stage: str) -> None:
        """As of every architecture; a slow copy starts from what was read."""
        super().setup(stage)
        if (
            stage == "fit"
            and self.slow is not None
            and any(getattr(part, "pretrained", None) for part in self.modules())
        ):
            self.slow.restart(self)

    def train(self, mode: bool = True) -> Self:
        """As of every architecture; parts of the slow copy are in the modes of the model's own."""
        super().train(mode)
        if self.slow is not None:
            self.slow.take_modes(self)
        return self

    def begin_step(self, step: int) -> None:
        """As of every architecture; the slow copy follows, once per step of the optimizer."""
        super().begin_step(step)
        if self.slow is not None:
            self.slow.follow(self)

    def encode(self, inputs: Inputs) -> Embedding:
        """Inputs as `DualArrays.__call__` names them, R rows -> Embedding (R, E)."""
        found = []
        if "pixels" in inputs:
            states = self._seen(inputs["pixels"], inputs.get("kept_patches"))
            found.append((inputs["image_rows"], states.mask, *self._embedded(states, self.image_head)))
        if "input_ids" in inputs:
            if self.text is None:
                raise RecipeError("there is no text tower for these tokens: use the processor RenderedProcessor")
            states = self.text(inputs["input_ids"], inputs["attention_mask"])
            found.append((inputs["text_rows"], states.mask, *self._embedded(states, self.text_head)))
        rows = len(inputs["rows"])
        if self.tokens and len(found) == 1 and len(found[0][0]) == rows:
            _, mask, vectors, log_var, tokens, norm = found[0]
            return replace(_with_tokens(vectors, log_var, tokens, mask, inputs.get("hidden_words")), norm=norm)
        return summed([Part(owner, vectors, log_var) for owner, _, vectors, log_var, *_ in found], rows)

    def _encoded(self, batch: Batch) -> Encoded:
        """As of every architecture; while training, of mixed pictures, and with masked views and those of the slow copy."""
        if not self.training:
            return super()._encoded(batch)
        if self.mixing is not None:
            batch = self.mixing(batch)
        masked = batch if self.masking is None else self.masking(batch, self.processor.split, self._patch_count)
        encoded = super()._encoded(masked)
        if self.slow is None:
            return encoded
        with torch.no_grad():
            slow = {f"{name}_momentum": rows for name, rows in self.slow.model.embed_views(batch).items()}
        encoded.views |= slow
        encoded.owners = masked.owners | {f"{name}_momentum": rows for name, rows in batch.owners.items()}
        encoded.keys = masked.keys | {f"{name}_momentum": keys for name, keys in batch.keys.items()}
        return encoded

    def _patch_count(self, pixels: Tensor) -> int:
        if not isinstance(self.image, PatchTower):
            raise RecipeError(
                f"`masking` hides patches, and the image tower {type(self.image).__name__} can't leave any out"
            )
        return self.image.patch_count(pixels)

    def _seen(self, pixels: Tensor, kept: Tensor | None) -> States:
        """States of pictures; kept: places of the patches that are not hidden, None = all."""
        head = self.image_head
        looking = self.tokens or self.shared is not None or (isinstance(head, StatesHead) and head.needs_tokens)
        if isinstance(self.image, PooledTower):
            self.image.pooled_only = not looking
        return self.image(pixels) if kept is None else cast(PatchTower, self.image)(pixels, kept)

    def _embedded(self, states: States, head: nn.Module) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Unit vectors (R, E) fp32; log-variances if the head gives them; if asked for, tokens after the head, and the
        lengths (R,) that the vectors had.
        """
        tokens = head(states.tokens) if self.tokens or self.shared is not None else None
        if self.shared is not None:
            assert tokens is not None  # see above
            out = self.shared(tokens, states.mask)
        else:
            out = applied(head, states)
        if not self.tokens:
            return (*unit(out), None, None)
        mean = out[0] if isinstance(out, Gaussian) else out
        return (*unit(out), tokens, at_least_fp32(mean).norm(dim=-1))

    def export_graphs(self) -> list[Graph]:
        """`image`: pixels -> vectors; `text`: token ids and mask -> vectors. Any number of rows, any length."""
        examples = [self._example(words) for words in ((4, 9, 2), (1,), (7, 3, 3, 1, 12))]
        rows = {0: "batch"}
        pictures = [{"pixels": inputs["pixels"]} for inputs in examples]
        image = Graph(
            "image", _Image(self), pictures, {"pixels": rows, **given(self.image_head, rows)}, outputs(self.image_head)
        )
        if self.text is None:
            return [image]
        texts = [{name: inputs[name] for name in ("input_ids", "attention_mask")} for inputs in examples]
        fixed = len({text["input_ids"].shape[1] for text in texts}) == 1
        tokens = rows if fixed else {0: "batch", 1: "sequence"}
        axes = {"input_ids": tokens, "attention_mask": tokens, **given(self.text_head, rows)}
        return [image, Graph("text", _Text(self), texts, axes, outputs(self.text_head))]

    def _example(self, words: tuple[int, ...]) -> Inputs:
        """Inputs of rows with one picture and so many words each."""
        from PIL import Image

        samples = [
            Sample(f"example {i}", {"query": Item("a " * n, (Image.effect_noise((70, 50 + n), 90).convert("RGB"),))})
            for i, n in enumerate(words)
        ]
        return self.processor(samples).views["query"]


def _with_tokens(
    vectors: Tensor, log_var: Tensor | None, tokens: Tensor | None, mask: Tensor | None, words: Tensor | None
) -> Embedding:
    assert tokens is not None
    if mask is None:
        mask = torch.ones(tokens.shape[:2], dtype=torch.int64, device=tokens.device)
    return Embedding(vectors, log_var, tokens, mask, words=words)


def _outputs(vectors: Tensor, log_var: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
    return vectors if log_var is None else (vectors, log_var)


class _Image(nn.Module):
    def __init__(self, encoder: DualEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return _outputs(*self.encoder._embedded(self.encoder._seen(pixels, None), self.encoder.image_head)[:2])


class _Text(nn.Module):
    def __init__(self, encoder: DualEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        assert self.encoder.text is not None  # or there would be no such graph
        states = self.encoder.text(input_ids, attention_mask)
        return _outputs(*self.encoder._embedded(states, self.encoder.text_head)[:2])
