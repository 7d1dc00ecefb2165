"""Items of which a part is taken away: what is left says less, so an honest encoder is less sure of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from PIL import Image

from zoo.data.images import open_image
from zoo.types import Item

Kind = Literal["pictures", "texts"]


def damaged_pairs(items: Sequence[Item], kind: Kind | str, most: int) -> list[tuple[Item, Item]]:
    """Items beside themselves with a part missing, at most `most`, evenly spread over those that can be damaged.

    "pictures": of items of one picture alone, whose right half becomes white. "texts": of items of a text alone, which keep
    the first half of their words (rounded up); those of one word are left out.

    Raises:
        SampleError: a picture can't be read.
    """
    fit = [item for item in items if (_is_picture(item) if kind == "pictures" else _is_text(item))]
    step = max(1, len(fit) / most)
    chosen = [fit[int(i * step)] for i in range(min(most, len(fit)))]
    return [(item, _without_right_half(item) if kind == "pictures" else _first_words(item)) for item in chosen]


def _is_picture(item: Item) -> bool:
    return len(item.images) == 1 and not item.text and item.place is None


def _is_text(item: Item) -> bool:
    return not item.images and item.place is None and len((item.text or "").split()) > 1


def _without_right_half(item: Item) -> Item:
    picture = open_image(item.images[0], "picture to damage").copy()
    half = picture.width // 2
    picture.paste(Image.new("RGB", (picture.width - half, picture.height), "white"), (half, 0))
    return replace(item, images=(picture,), key="")


def _first_words(item: Item) -> Item:
    words = (item.text or "").split()
    return replace(item, text=" ".join(words[: (len(words) + 1) // 2]), key="")
