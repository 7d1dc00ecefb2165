"""Random changes of training samples that keep what they mean; pure functions of the sample and `rng`.

A recipe lists them in the order in which they act. Each acts on the views named in its `views`, or on all. Changed
pictures keep the identity of the original in `Item.key`, so that duplicates are still found.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from zoo.data.images import open_image
from zoo.data.processors.image_arrays import PAGE, WHITE, Colour, resized
from zoo.data.source import Augment
from zoo.errors import RecipeError, UnknownNameError
from zoo.types import ImageSource, Item, Sample

Views = tuple[str, ...] | None

_LUMA = np.array([0.299, 0.587, 0.114])  # grey value of red, green and blue (ITU-R 601, as in Pillow's "L")


class PictureChange(Augment):
    """What the changes of pictures have in common: to find the pictures. The base of further ones, too."""

    def __init__(self, views: Views = None) -> None:
        self.views = views

    def __call__(self, sample: Sample, rng: random.Random) -> Sample:
        """The sample with all pictures of its views changed."""
        return _map_items(sample, self.views, lambda item: self._changed(item, sample.id, rng))

    def _changed(self, item: Item, name: str, rng: random.Random) -> Item:
        if not item.images:
            return item
        pictures = tuple(self.change(self.open(image, name, rng), rng) for image in item.images)
        return replace(item, images=pictures, key=item.key or _identity(item.images))

    def open(self, image: ImageSource, name: str, rng: random.Random) -> Image.Image:
        """Whatever stands for a picture -> RGB."""
        return open_image(image, name)

    def change(self, picture: Image.Image, rng: random.Random) -> Image.Image:
        """The changed picture, RGB; `picture` itself stays as it is."""
        return picture


class Background(PictureChange):
    """Lays transparent pictures on a random colour instead of white. Put it first: the others leave no transparency.

    Args:
        probability: otherwise white.
        darkest: smallest value of a channel, 0 to 255.
        views: as in all changes: the views it acts on; None = all.
    """

    def __init__(self, probability: float = 0.5, darkest: int = 0, views: Views = None) -> None:
        super().__init__(views)
        self.probability, self.darkest = _probability(probability), darkest

    def open(self, image: ImageSource, name: str, rng: random.Random) -> Image.Image:
        """RGB on the drawn colour."""
        colour = WHITE
        if rng.random() < self.probability:
            colour = (rng.randint(self.darkest, 255), rng.randint(self.darkest, 255), rng.randint(self.darkest, 255))
        return open_image(image, name, background=colour)


class Crop(PictureChange):
    """Cuts out a part and stretches it to the size of the whole (random resized crop).

    Args:
        area: range of the share of the picture that is kept.
        ratio: range of the factor by which the aspect ratio changes.
        views: the views it acts on.
    """

    def __init__(
        self, area: tuple[float, float] = (0.7, 1.0), ratio: tuple[float, float] = (0.9, 1.11), views: Views = None
    ) -> None:
        super().__init__(views)
        self.area, self.ratio = _range("area", area, 0, 1), _range("ratio", ratio, 0, math.inf)

    def change(self, picture: Image.Image, rng: random.Random) -> Image.Image:
        """Same size, less of it."""
        area, ratio = rng.uniform(*self.area), math.exp(rng.uniform(*map(math.log, self.ratio)))
        width = min(1.0, math.sqrt(area * ratio)) * picture.width
        height = min(1.0, math.sqrt(area / ratio)) * picture.height
        left, top = rng.uniform(0, picture.width - width), rng.uniform(0, picture.height - height)
        box = (left, top, min(left + width, picture.width), min(top + height, picture.height))
        return resized(picture, picture.size, box=box)


class Affine(PictureChange):
    """Random rotation, scale and shift. The border takes the colour of the page under the picture, white by default.

    Args:
        degrees: largest rotation.
        scale: range of the zoom.
        shift: largest shift as a share of the side.
        views: the views it acts on.
    """

    def __init__(
        self,
        degrees: float = 17.0,
        scale: tuple[float, float] = (0.8, 1.25),
        shift: float = 0.1,
        views: Views = None,
    ) -> None:
        super().__init__(views)
        self.degrees, self.scale, self.shift = degrees, _range("scale", scale, 0, math.inf), shift

    def change(self, picture: Image.Image, rng: random.Random) -> Image.Image:
        """Same size, moved."""
        angle = math.radians(rng.uniform(-self.degrees, self.degrees))
        zoom = 1 / rng.uniform(*self.scale)
        width, height = picture.size
        dx, dy = rng.uniform(-self.shift, self.shift) * width, rng.uniform(-self.shift, self.shift) * height
        a, b = math.cos(angle) * zoom, math.sin(angle) * zoom
        # output pixel (x, y) reads input (a x + b y + c, -b x + a y + f): rotation about the centre, then the shift
        c = width / 2 - a * (width / 2 + dx) - b * (height / 2 + dy)
        f = height / 2 + b * (width / 2 + dx) - a * (height / 2 + dy)
        border: Colour = picture.info.get(PAGE, WHITE)
        return picture.transform(
            picture.size, Image.Transform.AFFINE, (a, b, c, -b, a, f), Image.Resampling.BILINEAR, fillcolor=border
        )


class Mirror(PictureChange):
    """Mirror image, with `probability`. Not for data in which left and right mean something."""

    def __init__(self, probability: float = 0.5, views: Views = None) -> None:
        super().__init__(views)
        self.probability = _probability(probability)

    def change(self, picture: Image.Image, rng: random.Random) -> Image.Image:
        """Left and right exchanged, or not."""
        return ImageOps.mirror(picture) if rng.random() < self.probability else picture


class ColourJitter(PictureChange):
    """Random brightness, contrast and saturation, each by a factor from 1 - x to 1 + x."""

    def __init__(
        self, brightness: float = 0.15, contrast: float = 0.15, saturation: float = 0.3, views: Views = None
    ) -> None:
        super().__init__(views)
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation

    def change(self, picture: Image.Image, rng: random.Random) -> Image.Image:
        """Same shapes, other colours."""
        brightness, contrast, saturation = (
            1 + rng.uniform(-strength, strength) for strength in (self.brightness, self.contrast, self.saturation)
        )
        mean = float(np.asarray(picture.convert("L")).mean())
        gain, offset = contrast * brightness, (1 - contrast) * brightness * mean
        grey = (1 - saturation) * gain * _LUMA
        rows = np.column_stack([np.tile(grey, (3, 1)) + saturation * gain * np.eye(3), np.full(3, offset)])
        return picture.convert("RGB", tuple(rows.ravel().tolist()))


class Erase(PictureChange):
    """Paints a rectangle of a random colour over a part of the picture, with `probability` (random erasing).

    Args:
        probability: of a rectangle.
        area: range of its share of the picture.
        views: the views it acts on.
    """

    def __init__(self, probability: float = 0.25, area: tuple[float, float] = (0.02, 0.2), views: Views = None) -> None:
        super().__init__(views)
        self.probability, self.area = _probability(probability), _range("area", area, 0, 1)

    def change(self, picture: Image.Image, rng: random.Random) -> Image.Image:
        """With a part that says nothing, or unchanged."""
        if rng.random() >= self.probability:
            return picture
        area, ratio = rng.uniform(*self.area), math.exp(rng.uniform(-1, 1))
        width = max(1, min(picture.width, round(picture.width * math.sqrt(area * ratio))))
        height = max(1, min(picture.height, round(picture.height * math.sqrt(area / ratio))))
        left, top = rng.randint(0, picture.width - width), rng.randint(0, picture.height - height)
        picture = picture.copy()
        colour = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
        picture.paste(colour, (left, top, left + width, top + height))
        return picture


class WordDropout(Augment):
    """Leaves out words of texts of two words and more, each with `probability`; at least one stays."""

    def __init__(self, probability: float = 0.1, views: Views = None) -> None:
        self.probability, self.views = _probability(probability), views

    def __call__(self, sample: Sample, rng: random.Random) -> Sample:
        """The sample with shorter texts; instructions stay."""
        return _map_items(sample, self.views, lambda item: self._drop(item, rng))

    def _drop(self, item: Item, rng: random.Random) -> Item:
        words = (item.text or "").split()
        if len(words) < 2:
            return item
        kept = [word for word in words if rng.random() >= self.probability] or [rng.choice(words)]
        return item if len(kept) == len(words) else replace(item, text=" ".join(kept))


class LowerCase(Augment):
    """Writes whole texts in lower case, with `probability`."""

    def __init__(self, probability: float = 0.5, views: Views = None) -> None:
        self.probability, self.views = _probability(probability), views

    def __call__(self, sample: Sample, rng: random.Random) -> Sample:
        """The sample with some texts in lower case; instructions stay."""
        return _map_items(sample, self.views, lambda item: self._lower(item, rng))

    def _lower(self, item: Item, rng: random.Random) -> Item:
        return replace(item, text=item.text.lower()) if item.text and rng.random() < self.probability else item


def _map_items(sample: Sample, views: Views, change: Callable[[Item], Item]) -> Sample:
    for name in views or ():
        if name not in sample.views:
            raise UnknownNameError("view", name, sample.views, f"(sample '{sample.id}' has {', '.join(sample.views)})")
    changed = {
        name: (tuple(map(change, items)) if isinstance(items, tuple) else change(items))
        if views is None or name in views
        else items
        for name, items in sample.views.items()
    }
    return replace(sample, views=changed)


def _identity(images: Sequence[ImageSource]) -> str:
    """The same for the same files or pixels, whatever happens to them afterwards."""
    digest = hashlib.blake2b(digest_size=16)
    for image in images:
        if isinstance(image, Image.Image):
            digest.update(f"{image.mode} {image.size}".encode() + image.tobytes())
        elif isinstance(image, bytes):
            digest.update(image)
        elif isinstance(image, str | Path):
            digest.update(str(image).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _probability(value: float) -> float:
    if not 0 <= value <= 1:
        raise RecipeError(f"a probability of {value}: it lies between 0 and 1")
    return value


def _range(name: str, bounds: tuple[float, float], least: float, most: float) -> tuple[float, float]:
    low, high = bounds
    if not least < low <= high <= most:
        raise RecipeError(f"{name} {list(bounds)}: give two numbers above {least}, the smaller first, at most {most}")
    return low, high
