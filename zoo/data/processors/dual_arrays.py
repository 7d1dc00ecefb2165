"""Pixels and tokens of a dual encoder, in numpy.

This file is the whole preparation of the model's input: training uses it through `DualProcessor`, and `zoo export` copies
it, as it stands, beside the exported graphs. It therefore imports nothing but numpy, Pillow and tokenizers, ftfy where a
model's text is cleaned with it, and `image_arrays`, which lies beside it in both places.

Shapes: R rows, I pictures of all rows, T texts of all rows, P places of all rows, L tokens.
"""

from __future__ import annotations

import functools
import html
import string
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .image_arrays import Fit, resized

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Arrays = dict[str, np.ndarray[Any, Any]]
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_THREAD = 50  # times as long as wide: what is longer is cut before it is made as wide as the model wants
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Picture:
    """How a picture becomes pixels. Defaults: OpenAI's CLIP (resize the shorter side, crop the middle, its mean and std).

    Args:
        size: height and width in pixels.
        resize: "shortest" = the shorter side to `size`, then the middle is cut out; "squash" = to `size` whatever the
            aspect ratio (SigLIP); "longest" = the longer side to `size`, the rest filled with `fill`.
        fill: colour of what "longest" leaves free.
        interpolation: Pillow's filter.
        mean, std: per channel, of values between 0 and 1.
    """

    size: int = 224
    resize: Literal["shortest", "squash", "longest"] = "shortest"
    fill: tuple[int, int, int] = (255, 255, 255)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def fit(self) -> Fit:
        """The resize, for images that are read for this model; `bytes_of` then leaves them as they are."""
        return Fit(self._fitted, _FILTERS[self.interpolation])

    def bytes_of(self, image: Image.Image) -> np.ndarray[Any, Any]:
        """An RGB picture -> (size, size, 3) uint8."""
        target = self._fitted(*image.size)
        if target is None:
            image = _middle(image)
            target = self._scaled(*image.size)
        side, scaled = self.size, resized(image, target, _FILTERS[self.interpolation])
        if self.resize == "squash":
            return np.asarray(scaled)
        if self.resize == "longest":
            page = Image.new("RGB", (side, side), self.fill)
            page.paste(scaled, ((side - scaled.width) // 2, (side - scaled.height) // 2))
            return np.asarray(page)
        left, top = round((scaled.width - side) / 2), round((scaled.height - side) / 2)
        return np.asarray(scaled.crop((left, top, left + side, top + side)))

    def _fitted(self, width: int, height: int) -> tuple[int, int] | None:
        """None = the middle has to be cut out first: most of what would be made bigger is cut off afterwards."""
        thread = max(width, height) > _THREAD * min(width, height)
        return None if thread and self.resize == "shortest" else self._scaled(width, height)

    def _scaled(self, width: int, height: int) -> tuple[int, int]:
        side, shorter, longer = self.size, min(width, height), max(width, height)
        if self.resize == "squash":
            return side, side
        if self.resize == "longest":
            return max(1, round(width * side / longer)), max(1, round(height * side / longer))
        # torchvision's Resize cuts fractions off and its CenterCrop rounds; weights were trained with these very pixels
        return int(side * width / shorter), int(side * height / shorter)

    def pixels(self, images: Sequence[Image.Image]) -> np.ndarray[Any, Any]:
        """RGB pictures -> (I, 3, size, size) float32, normalised."""
        stacked: np.ndarray[Any, Any] = np.stack([self.bytes_of(image) for image in images]).transpose(0, 3, 1, 2)
        mean, std = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in (self.mean, self.std))
        pixels: np.ndarray[Any, Any] = np.divide(stacked, np.float32(255), dtype=np.float32)
        np.subtract(pixels, mean, out=pixels)
        np.divide(pixels, std, out=pixels)
        return pixels


def _middle(image: Image.Image) -> Image.Image:
    """As much of an image's length as `_THREAD` allows."""
    width, height = image.size
    cut = max(0, width - _THREAD * height) // 2, max(0, height - _THREAD * width) // 2
    return image.crop((cut[0], cut[1], width - cut[0], height - cut[1]))


@dataclass(frozen=True)
class Caption:
    """How a text becomes tokens: `bos` + text + `eos`, shortened to fit, padded at the right.

    Args:
        max_length: most tokens, `bos` and `eos` among them.
        padding: "longest" of the batch, or always "max_length" (towers without a mask, such as CLIP's and SigLIP's).
        bos, eos, pad: tokens of the tokenizer; empty = none. `pad` must be one.
        prompt: what surrounds the text, with the field `{text}`.
        lower: lower-case before the tokenizer sees it.
        cleaning: what happens to prompt and text before that, as in open_clip, which its models were trained with:
            "whitespace" = broken encodings mended (ftfy), HTML entities resolved, runs of spaces made one; "lower" = this
            and lower case; "canonicalize" = this, lower case and no ASCII punctuation (SigLIP); "none".
    """

    max_length: int = 77
    padding: Literal["longest", "max_length"] = "longest"
    bos: str = ""
    eos: str = ""
    pad: str = "<|endoftext|>"
    prompt: str = "{text}"
    lower: bool = False
    cleaning: Literal["none", "whitespace", "lower", "canonicalize"] = "none"

    def words(self, text: str) -> str:
        """What the tokenizer is given. ValueError if ftfy is needed and not installed."""
        words = self.prompt.format(text=text.lower() if self.lower else text)
        return words if self.cleaning == "none" else self._cleaned(words)

    def _cleaned(self, text: str) -> str:
        try:
            from ftfy import fix_text
        except ImportError as error:
            raise ValueError(
                "this model's texts are cleaned with ftfy, which is not installed: pip install ftfy"
            ) from error
        text = html.unescape(html.unescape(fix_text(text)))  # twice: web text is often escaped twice
        if self.cleaning == "canonicalize":
            text = text.replace("_", " ").translate(_NO_PUNCTUATION)
        text = " ".join(text.split())
        return text if self.cleaning == "whitespace" else text.lower()


@dataclass(frozen=True)
class Rendering:
    """How a text becomes a picture, for models that have pixels alone (CLIPPO, arXiv:2212.08045): line by line, broken
    wherever a line is full, without grey edges. The font is Pillow's own, which knows Latin letters; the official one is
    GNU Unifont, which knows all of Unicode. Characters it lacks become boxes.

    Args:
        line: height of a line in pixels (official: 16).
        pitch: "fixed" gives every letter a cell of half the line's height, as Unifont's Latin letters have: patches of
            that size, or twice it, then hold whole letters; what is wider is condensed. "proportional" is the font's own.
        ink: grey value of the letters.
        background: grey value of the page.
        lower: lower-case first.
        most: characters that are looked at (official: 768).
    """

    line: int = 16
    pitch: str = "proportional"
    ink: int = 0
    background: int = 127
    lower: bool = True
    most: int = 768

    def __post_init__(self) -> None:
        if self.pitch not in ("fixed", "proportional"):
            raise ValueError(f"the pitch of letters is 'fixed' or 'proportional', not '{self.pitch}'")

    def lines(self, text: str, side: int) -> tuple[list[str], bool]:
        """The lines that fit on a square of `side` pixels, and whether all of the text does.

        Raises:
            ValueError: no character of the text can be drawn.
        """
        letters = " ".join((text.lower() if self.lower else text).split())
        if not any(_drawable(self.line, letter) for letter in letters if not letter.isspace()):
            raise ValueError("no character of the text can be drawn: the font knows Latin letters and digits")
        lines, x = [""], 0.0
        for letter in letters[: self.most]:
            width = self.line // 2 if self.pitch == "fixed" else _font(self.line).getlength(letter, mode="1")
            if x + width > side:
                if (len(lines) + 1) * self.line > side:
                    return lines, False
                lines, x = [*lines, ""], 0.0
            lines[-1] += letter
            x += width
        return lines, len(letters) <= self.most

    def picture(self, lines: Sequence[str], side: int) -> Image.Image:
        """Lines -> RGB picture of `side` x `side` pixels."""
        page = Image.new("L", (side, side), self.background)
        drawing = ImageDraw.Draw(page)
        drawing.fontmode = "1"
        for row, line in enumerate(lines):
            if self.pitch == "fixed":
                for place, letter in enumerate(line):
                    page.paste(self.ink, (place * (self.line // 2), row * self.line), _cell(self.line, letter))
            else:
                drawing.text((0, row * self.line), line, fill=self.ink, font=_font(self.line))
        return page.convert("RGB")


@functools.lru_cache(maxsize=8)
def _font(line: int) -> ImageFont.FreeTypeFont:
    """The largest size whose letters keep to their line."""
    for size in range(line, 0, -1):
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)  # with a size it always is
        if sum(font.getmetrics()) <= line:
            return font.font_variant(layout_engine=ImageFont.Layout.BASIC)  # the other one is not everywhere
    raise ValueError(f"no letter fits into a line of {line} pixels")


@functools.lru_cache(maxsize=1 << 12)
def _cell(line: int, letter: str) -> Image.Image:
    """The letter in the middle of a cell half as wide as the line is high, 255 where there is ink."""
    font, width = _font(line), line // 2
    drawn = Image.new("L", (max(1, round(font.getlength(letter, mode="1"))), line))
    drawing = ImageDraw.Draw(drawn)
    drawing.fontmode = "1"
    drawing.text((0, 0), letter, fill=255, font=font)
    if drawn.width > width:
        drawn = drawn.resize((width, line), Image.Resampling.BOX).point(lambda ink: 255 if ink >= 96 else 0)
    cell = Image.new("L", (width, line))
    cell.paste(drawn, ((width - drawn.width) // 2, 0))
    return cell


@functools.lru_cache(maxsize=1 << 16)
def _drawable(line: int, letter: str) -> bool:
    mask, missing = (_font(line).getmask(one, mode="1") for one in (letter, "\U0010ffff"))
    return (mask.size, bytes(mask)) != (missing.size, bytes(missing))


def check_place(place: tuple[float, float]) -> None:
    """Raise ValueError unless these are a latitude and a longitude in degrees."""
    latitude, longitude = place
    if not (-90 <= latitude <= 90 and -180 <= longitude <= 180):  # NaN is in no range
        raise ValueError(
            f"the place ({latitude}, {longitude}) is none: latitude lies within -90 and 90 degrees, longitude within -180 "
            "and 180, in this order"
        )


@dataclass
class DualArrays:
    """Items to model inputs. Picklable, holds no weights. `shortened` counts texts that were cut. With `rendering` texts
    are pictures like the others, and there is no tokenizer. With `places` the model has an encoder for places, too.

    Raises:
        ValueError: the tokenizer lacks a special token; an item has an instruction, which such a model can't follow, or a
            place that is none or that the model does not take.
    """

    tokenizer: Tokenizer | None
    picture: Picture | None = field(default_factory=Picture)
    caption: Caption = field(default_factory=Caption)
    shortened: int = 0
    rendering: Rendering | None = None
    places: bool = False

    @property
    def fit(self) -> Fit | None:
        """How images are to be read (see `read_image`)."""
        return self.picture.fit if self.picture is not None else None

    def __post_init__(self) -> None:
        if self.tokenizer is None:
            return
        self.before, self.after = self._special(self.caption.bos), self._special(self.caption.eos)
        (self.pad_id,) = self._special(self.caption.pad)

    def _special(self, token: str) -> list[int]:
        assert self.tokenizer is not None
        number = self.tokenizer.token_to_id(token) if token else None
        if token and number is None:
            raise ValueError(f"the tokenizer has no token '{token}'")
        return [] if number is None else [number]

    def __call__(
        self,
        texts: Sequence[str | None],
        images: Sequence[Sequence[Image.Image]],
        instructions: Sequence[str | None],
        query: bool,
        places: Sequence[tuple[float, float] | None] = (),
    ) -> Arrays:
        """R items -> rows (R,); where there are pictures pixels (I, 3, H, W) and image_rows (I,); where there are texts
        input_ids and attention_mask (T, L) and text_rows (T,); where there are places (latitude, longitude) places (P, 2)
        float32 in degrees and place_rows (P,).

        `*_rows` say to which row a picture, text or place belongs; a row's vector is made of all its parts.
        """
        if any(instructions):
            raise ValueError("this model takes no instructions; leave the instruction out")
        arrays: Arrays = {"rows": np.arange(len(texts))}
        if self.rendering is not None:
            images = [[*row, *self._drawn(text)] for row, text in zip(images, texts, strict=True)]
            texts = [None] * len(texts)
        flat = [(r, image) for r, row in enumerate(images) for image in row]
        if flat:
            if self.picture is None:
                raise ValueError("this model takes no pictures")
            arrays["pixels"] = self.picture.pixels([image for _, image in flat])
            arrays["image_rows"] = np.array([r for r, _ in flat], np.int64)
        written = [(r, text) for r, text in enumerate(texts) if text is not None]
        if written:
            arrays |= self._pad([self._ids(text) for _, text in written])
            arrays["text_rows"] = np.array([r for r, _ in written], np.int64)
        return arrays | self._located(places)

    def _located(self, places: Sequence[tuple[float, float] | None]) -> Arrays:
        given = [(r, place) for r, place in enumerate(places) if place is not None]
        if not given:
            return {}
        if not self.places:
            raise ValueError("this model takes no places; leave the place out")
        for _, place in given:
            check_place(place)
        rows = np.array([r for r, _ in given], np.int64)
        return {"places": np.array([place for _, place in given], np.float32), "place_rows": rows}

    def _drawn(self, text: str | None) -> list[Image.Image]:
        if text is None:
            return []
        assert self.rendering is not None and self.picture is not None
        lines, whole = self.rendering.lines(text, self.picture.size)
        self.shortened += not whole
        return [self.rendering.picture(lines, self.picture.size)]

    def _ids(self, text: str) -> list[int]:
        if self.tokenizer is None:
            raise ValueError("this model takes no text")
        ids = list(self.tokenizer.encode(self.caption.words(text), add_special_tokens=False).ids)
        room = self.caption.max_length - len(self.before) - len(self.after)
        if len(ids) > room:
            if not self.shortened:
                warnings.warn(
                    f"a text of {len(ids):,} tokens was cut to {room}, the most that the model takes (caption: max_length); "
                    "this is said once, `shortened` counts on",
                    stacklevel=2,
                )
            self.shortened += 1
        if not ids:
            raise ValueError("no token is left of the text: the tokenizer knows none of its characters")
        return [*self.before, *ids[:room], *self.after]

    def _pad(self, rows: list[list[int]]) -> Arrays:
        fixed = self.caption.padding == "max_length"
        length = self.caption.max_length if fixed else max(len(ids) for ids in rows)
        ids = np.full((len(rows), length), self.pad_id, np.int64)
        mask = np.zeros((len(rows), length), np.int64)
        for r, row in enumerate(rows):
            ids[r, : len(row)] = row
            mask[r, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask}
