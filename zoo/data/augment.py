"""Random changes of training samples that keep what they mean; pure functions of the sample and `rng`."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from PIL import Image, ImageEnhance, ImageOps

from zoo.data.images import open_image
from zoo.data.source import Augment
from zoo.types import Item, Sample

WHITE = (255, 255, 255)


class Affine(Augment):
    """Random rotation, scale and shift of every picture, the border filled with white.

    Args:
        degrees: largest rotation. scale: range of the zoom. shift: largest shift as a share of the side.
    """

    def __init__(self, degrees: float = 17.0, scale: tuple[float, float] = (0.8, 1.25), shift: float = 0.1) -> None:
        self.degrees, self.scale, self.shift = degrees, scale, shift

    def __call__(self, sample: Sample, rng: random.Random) -> Sample:
        return _map_pictures(sample, lambda picture: self._move(picture, rng))

    def _move(self, picture: Image.Image, rng: random.Random) -> Image.Image:
        angle = math.radians(rng.uniform(-self.degrees, self.degrees))
        zoom = 1 / rng.uniform(*self.scale)
        width, height = picture.size
        dx, dy = (rng.uniform(-self.shift, self.shift) * side for side in picture.size)
        a, b = math.cos(angle) * zoom, math.sin(angle) * zoom
        # output pixel (x, y) reads input (a x + b y + c, -b x + a y + f): rotation about the centre, then the shift
        c = width / 2 - a * (width / 2 + dx) - b * (height / 2 + dy)
        f = height / 2 + b * (width / 2 + dx) - a * (height / 2 + dy)
        return picture.transform(
            picture.size, Image.Transform.AFFINE, (a, b, c, -b, a, f), Image.Resampling.BILINEAR, fillcolor=WHITE
        )


class Mirror(Augment):
    """Mirror image, with `probability`. Not for data in which left and right mean something."""

    def __init__(self, probability: float = 0.5) -> None:
        self.probability = probability

    def __call__(self, sample: Sample, rng: random.Random) -> Sample:
        return _map_pictures(sample, lambda p: ImageOps.mirror(p) if rng.random() < self.probability else p)


class ColourJitter(Augment):
    """Random brightness, contrast and saturation, each by a factor from 1 - x to 1 + x."""

    def __init__(self, brightness: float = 0.15, contrast: float = 0.15, saturation: float = 0.3) -> None:
        self.strengths = ((ImageEnhance.Brightness, brightness), (ImageEnhance.Contrast, contrast))
        self.saturation = saturation

    def __call__(self, sample: Sample, rng: random.Random) -> Sample:
        return _map_pictures(sample, lambda picture: self._change(picture, rng))

    def _change(self, picture: Image.Image, rng: random.Random) -> Image.Image:
        for enhance, strength in (*self.strengths, (ImageEnhance.Color, self.saturation)):
            picture = enhance(picture).enhance(rng.uniform(1 - strength, 1 + strength))
        return picture


class WordDropout(Augment):
    """Leaves out words of texts of two words and more, each with `probability`; at least one stays."""

    def __init__(self, probability: float = 0.1) -> None:
        self.probability = probability

    def __call__(self, sample: Sample, rng: random.Random) -> Sample:
        return _map_items(sample, lambda item: self._drop(item, rng))

    def _drop(self, item: Item, rng: random.Random) -> Item:
        words = (item.text or "").split(" ")
        kept = [word for word in words if rng.random() >= self.probability] or [rng.choice(words)]
        return item if len(words) < 2 else replace(item, text=" ".join(kept))


def _map_items(sample: Sample, change: Callable[[Item], Item]) -> Sample:
    views = {
        name: tuple(change(item) for item in items) if isinstance(items, tuple) else change(items)
        for name, items in sample.views.items()
    }
    return replace(sample, views=views)


def _map_pictures(sample: Sample, change: Callable[[Image.Image], Image.Image]) -> Sample:
    def changed(item: Item) -> Item:
        if not item.images:
            return item
        pictures: Sequence[Image.Image] = [open_image(image, sample.id) for image in item.images]
        return replace(item, images=tuple(change(picture) for picture in pictures))

    return _map_items(sample, changed)
