"""Prompt, tokens, patches and positions of a Qwen2-VL style encoder, in numpy.

This file is the whole geometry of the model's input: training uses it through `VlmProcessor`, and `zoo export` copies it,
as it stands, beside the exported graphs. It therefore imports nothing but numpy, Pillow and tokenizers, and
`image_arrays`, which lies beside it in both places.

Shapes: R rows, T tokens, I images of all rows, P patches of an image (padded), C values of a patch.
"""

from __future__ import annotations

import math
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from .image_arrays import Fit, resized

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Template:
    r"""How an item becomes a prompt: `prefix + separator.join(parts) + suffix`, parts being those of `order` it has.

    Args:
        prefix: may hold `{instruction}`, which then stands there and is no part, and `{words}`.
        suffix: as `prefix`.
        query_suffix: added on the query side in front of `suffix` (VLM2Vec ends its queries with a newline).
        image: what stands for one image; must hold `image_token`.
        image_token: the token that grows to one per merged patch.
        instruction: format of the instruction part, with the field `{instruction}`.
        order: the order of the parts `image`, `instruction`, `text`; what it does not name is left out.
        default_instruction: the instruction of items that have none.
        instruction_end: added to an instruction of an item that does not end in punctuation.
        words: what `{words}` becomes, by what an item holds: `text`, `image`, `image text` (UNITE: "sentence", ...).
    """

    prefix: str = ""
    suffix: str = ""
    query_suffix: str = ""
    separator: str = " "
    image: str = "<|image_pad|>"
    instruction: str = "{instruction}"
    order: tuple[str, ...] = ("image", "instruction", "text")
    image_token: str = "<|image_pad|>"
    default_instruction: str = ""
    instruction_end: str = ""
    words: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.image_token not in self.image:
            raise ValueError(f"the template's image '{self.image}' does not hold its image_token '{self.image_token}'")

    def render(
        self,
        text: str | None,
        images: int,
        instruction: str | None,
        query: bool,
        image_at: Sequence[int] | None = None,
    ) -> str:
        """The prompt, each image still one placeholder. ValueError if `words` lacks what the item holds.

        image_at: offsets in `text` where the images stand; such a text is taken as it is (see `zoo.types.Item`).
        """
        asked = self._instruction(instruction)
        slot = "{instruction}" in self.prefix + self.suffix
        parts = {
            "image": self.image * images if image_at is None else "",
            "instruction": self.instruction.format(instruction=asked) if asked and not slot else "",
            "text": self._placed(text or "", image_at or ()),
        }
        body = self.separator.join(parts[name] for name in self.order if parts[name])
        ending = self.query_suffix if query and image_at is None else ""
        present = " ".join(kind for kind, there in (("image", images), ("text", text)) if there)
        return self._filled(self.prefix, asked, present) + body + ending + self._filled(self.suffix, asked, present)

    def _instruction(self, given: str | None) -> str:
        asked = (given or "").strip()
        if not asked:
            return self.default_instruction
        return asked if unicodedata.category(asked[-1]).startswith("P") else asked + self.instruction_end

    def _placed(self, text: str, image_at: Sequence[int]) -> str:
        cuts = [0, *(min(at, len(text)) for at in image_at), len(text)]  # a shortened text keeps its images
        return self.image.join(text[start:stop] for start, stop in pairwise(cuts))

    def _filled(self, form: str, instruction: str, present: str) -> str:
        if "{words}" in form:
            if present not in self.words:
                raise ValueError(f"the template has no words for an item of {present.replace(' ', ' and ')}")
            form = form.replace("{words}", self.words[present])
        return form.replace("{instruction}", instruction)  # last: what people write is not searched for fields


@dataclass(frozen=True)
class Pixels:
    """How a picture becomes patches. Defaults: the preprocessor_config of Qwen2-VL (mean and std are CLIP's).

    Args:
        rounded_first: resize twice: to the nearest multiples of patch x merge (within 4 to 16384 tokens), then to the
            budget. Code that calls Qwen's `process_vision_info` in front of the processor does that (ABC); a picture
            above the budget then often gets another grid.
    """

    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    rounded_first: bool = False

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing: multiples of patch x merge, within the pixel budget, aspect ratio kept.

        The rule of Qwen2-VL's image processor (`smart_resize`). Raises ValueError for an aspect ratio above 200.
        """
        factor = self.patch_size * self.merge_size
        if max(height, width) / min(height, width) > 200:
            raise ValueError(f"aspect ratio of {width}x{height} is above 200")
        rows, columns = round(height / factor) * factor, round(width / factor) * factor
        if rows * columns > self.max_pixels:
            beta = math.sqrt(height * width / self.max_pixels)
            rows = max(factor, math.floor(height / beta / factor) * factor)
            columns = max(factor, math.floor(width / beta / factor) * factor)
        elif rows * columns < self.min_pixels:
            beta = math.sqrt(self.min_pixels / (height * width))
            rows = math.ceil(height * beta / factor) * factor
            columns = math.ceil(width * beta / factor) * factor
        return rows, columns

    @property
    def fit(self) -> Fit:
        """The first resize, for images that are read for this model; `patches` then leaves them as they are."""
        return Fit((self._rounding if self.rounded_first else self)._fitted)

    def _fitted(self, width: int, height: int) -> tuple[int, int] | None:
        """None where a second resize would give another size than one does, or the image is refused."""
        try:
            rows, columns = self.size(height, width)
            return (columns, rows) if self.size(rows, columns) == (rows, columns) else None
        except ValueError:
            return None

    @property
    def _rounding(self) -> Pixels:
        """What `rounded_first` does first."""
        token = (self.patch_size * self.merge_size) ** 2
        return replace(self, min_pixels=4 * token, max_pixels=16384 * token)

    def _resized(self, image: Image.Image) -> Image.Image:
        height, width = self.size(image.height, image.width)
        return resized(image, (width, height))

    def patches(self, image: Image.Image) -> tuple[np.ndarray[Any, Any], tuple[int, int]]:
        """An RGB picture -> its patches (P, C) in merge-block order, and the grid (rows, columns) in patches."""
        if self.rounded_first:
            image = self._rounding._resized(image)
        image = self._resized(image)
        width, height = image.size
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        values = (np.asarray(image, np.float32) / 255.0 - mean) / std
        p, m = self.patch_size, self.merge_size
        rows, columns = height // p, width // p
        # (rows/m, m, p, columns/m, m, p, 3) -> blocks of m x m patches, channel first inside a patch
        blocks = values.reshape(rows // m, m, p, columns // m, m, p, 3).transpose(0, 3, 1, 4, 6, 2, 5)
        frames = np.repeat(blocks.reshape(rows * columns, 3, 1, p, p), self.temporal_patch_size, axis=2)
        return np.ascontiguousarray(frames.reshape(rows * columns, -1)), (rows, columns)


def grid_positions(rows: int, columns: int, merge: int) -> np.ndarray[Any, Any]:
    """(rows*columns, 2) row and column of every patch, in merge-block order."""
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1)
    blocks = grid.reshape(rows // merge, merge, columns // merge, merge, 2).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(blocks.reshape(-1, 2))


def rope_positions(spans: Sequence[int | tuple[int, int]]) -> np.ndarray[Any, Any]:
    """M-RoPE positions (3, T) of a sequence of text runs (their length) and pictures (rows, columns in merged patches).

    Text advances all three axes by one. A picture starts at the running position s: temporal s, height s + row,
    width s + column; what follows continues at s + max(rows, columns) (Qwen2-VL, arXiv:2409.12191, section 2.1).
    """
    parts, start = [], 0
    for span in spans:
        if isinstance(span, int):
            parts.append(np.broadcast_to(np.arange(start, start + span), (3, span)))
            start += span
        else:
            rows, columns = np.indices(span).reshape(2, -1) + start
            parts.append(np.stack([np.full_like(rows, start), rows, columns]))
            start += max(span)
    return np.concatenate(parts, axis=1) if parts else np.zeros((3, 0), np.int64)


@dataclass
class VlmArrays:
    """Items to model inputs. Picklable, holds no weights.

    Args:
        tokenizer: with the special tokens of the template; must know its `image_token`.
        target_template: the template of what is no query; None = `template` for both.
        position_mode: "mrope", or "flat" = one running number on all three axes (what VLM2Vec's weights were trained with).
        padding_side: the encoder takes either.
        max_length: longest prompt in tokens, pictures included. Text is shortened to fit; picture tokens never are.
    """

    tokenizer: Tokenizer
    template: Template = field(default_factory=Template)
    pixels: Pixels = field(default_factory=Pixels)
    position_mode: Literal["mrope", "flat"] = "mrope"
    padding_side: Literal["left", "right"] = "right"
    max_length: int = 4096
    pad_token: str = "<|endoftext|>"
    shortened: int = 0
    target_template: Template | None = None

    @property
    def fit(self) -> Fit:
        """How images are to be read (see `read_image`)."""
        return self.pixels.fit

    def __post_init__(self) -> None:
        image_token = self.template.image_token
        if self.target_template is not None and self.target_template.image_token != image_token:
            raise ValueError(
                f"template and target_template have different image tokens, '{image_token}' and "
                f"'{self.target_template.image_token}'"
            )
        ids = {token: self.tokenizer.token_to_id(token) for token in (image_token, self.pad_token)}
        for token, token_id in ids.items():
            if token_id is None:
                raise ValueError(f"the tokenizer has no token '{token}'")
        self.image_id, self.pad_id = ids[image_token], ids[self.pad_token]

    def __call__(
        self,
        texts: Sequence[str | None],
        images: Sequence[Sequence[Image.Image]],
        instructions: Sequence[str | None],
        query: bool,
        image_at: Sequence[Sequence[int] | None] | None = None,
    ) -> Arrays:
        """R items -> input_ids, attention_mask, image_index (R, T), position_ids (R, 3, T), instructed (R,) and, where
        there are pictures, patches (I, P, C), patch_positions (I, P, 2), patch_mask (I, P), image_rows (I,).

        `image_index` says for every token which row of the flattened picture features (I * P/merge^2, width) stands in
        its place; it counts where `input_ids` is the picture token and is 0 elsewhere. `image_at`: see `Template.render`;
        None = the template places all images.
        """
        cut = [[self.pixels.patches(image) for image in row] for row in images]
        most_patches = max((len(p) for row in cut for p, _ in row), default=0)
        slots = most_patches // self.pixels.merge_size**2  # feature rows that every picture takes, padding included
        rows, first_image = [], 0
        template = self.template if query or self.target_template is None else self.target_template
        stands = image_at if image_at is not None else [None] * len(cut)
        for text, row, instruction, at in zip(texts, cut, instructions, stands, strict=True):
            prompt = partial(template.render, images=len(row), instruction=instruction, query=query, image_at=at)
            rows.append(self._row(text, [grid for _, grid in row], prompt, first_image * slots, slots))
            first_image += len(row)
        arrays = self._pad(rows)
        arrays["instructed"] = np.array([bool(i) for i in instructions])
        if most_patches:
            arrays |= self._pad_patches(cut, most_patches)
        return arrays

    def _row(
        self,
        text: str | None,
        grids: list[tuple[int, int]],
        prompt: Callable[[str | None], str],
        first: int,
        slots: int,
    ) -> tuple[list[int], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        merge = self.pixels.merge_size
        merged = [(rows // merge, columns // merge) for rows, columns in grids]
        room = self.max_length - sum(rows * columns - 1 for rows, columns in merged)
        ids, index, spans, run, seen = [], [], list[int | tuple[int, int]](), 0, 0
        for token in self._tokens(text, prompt, room):
            if token != self.image_id:
                ids.append(token)
                index.append(0)
                run += 1
                continue
            if seen == len(merged):
                raise ValueError(
                    f"the text holds the image token {self.template.image_token}; remove it, the template places images"
                )
            count = math.prod(merged[seen])
            ids += [token] * count
            index += range(first + seen * slots, first + seen * slots + count)
            spans += [run, merged[seen]] if run else [merged[seen]]
            run, seen = 0, seen + 1
        positions = rope_positions([*spans, run])
        if self.position_mode == "flat":
            positions = rope_positions([len(ids)])
        return ids, np.array(index), positions

    def _tokens(self, text: str | None, prompt: Callable[[str | None], str], room: int) -> list[int]:
        def encode(words: str | None) -> list[int]:
            return list(self.tokenizer.encode(prompt(words), add_special_tokens=False).ids)

        ids = encode(text)
        if len(ids) <= room:
            return ids
        if not self.shortened:
            warnings.warn(
                f"a prompt of {len(ids):,} tokens was cut to {room}, pictures included (max_length); this is said once, "
                "`shortened` counts on",
                stacklevel=2,
            )
        offsets = self.tokenizer.encode(text or "", add_special_tokens=False).offsets
        keep = len(offsets)
        while len(ids) > room:
            keep -= len(ids) - room
            if keep <= 0:
                raise ValueError(f"prompt and pictures alone take more than max_length={self.max_length} tokens")
            ids = encode((text or "")[: offsets[keep - 1][1]])
        self.shortened += 1
        return ids

    def _pad(self, rows: list[tuple[list[int], np.ndarray[Any, Any], np.ndarray[Any, Any]]]) -> Arrays:
        count, longest = len(rows), max((len(ids) for ids, _, _ in rows), default=0)
        arrays = {
            "input_ids": np.full((count, longest), self.pad_id, np.int64),
            "attention_mask": np.zeros((count, longest), np.int64),
            "image_index": np.zeros((count, longest), np.int64),
            "position_ids": np.zeros((count, 3, longest), np.int64),
        }
        for r, (ids, index, positions) in enumerate(rows):
            start = longest - len(ids) if self.padding_side == "left" else 0
            span = slice(start, start + len(ids))
            arrays["input_ids"][r, span] = ids
            arrays["attention_mask"][r, span] = 1
            arrays["image_index"][r, span] = index
            arrays["position_ids"][r, :, span] = positions
        return arrays

    def _pad_patches(self, cut: list[list[tuple[np.ndarray[Any, Any], tuple[int, int]]]], most: int) -> Arrays:
        flat = [(r, patches, grid) for r, row in enumerate(cut) for patches, grid in row]
        arrays = {
            "patches": np.zeros((len(flat), most, flat[0][1].shape[1]), np.float32),
            "patch_positions": np.zeros((len(flat), most, 2), np.int64),
            "patch_mask": np.zeros((len(flat), most), np.int64),
            "image_rows": np.array([r for r, _, _ in flat], np.int64),
        }
        for i, (_, patches, grid) in enumerate(flat):
            arrays["patches"][i, : len(patches)] = patches
            arrays["patch_positions"][i, : len(patches)] = grid_positions(*grid, self.pixels.merge_size)
            arrays["patch_mask"][i, : len(patches)] = 1
        return arrays
