"""Golden items: inputs of every kind with the vectors (and log-variances) that torch gave, by which any runtime can check
itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from zoo.errors import ZooError
from zoo.types import Item

if TYPE_CHECKING:
    from zoo.embedder import Embedder, Side

FOLDER = "golden"
ITEMS = f"{FOLDER}/items.json"
_SCENE, _BADGE, _TOWER = (f"{FOLDER}/{name}.png" for name in ("scene", "badge", "tower"))


@dataclass(frozen=True)
class _Golden:
    name: str
    side: Side
    text: str | None = None
    images: tuple[str, ...] = ()
    instruction: str | None = None
    place: tuple[float, float] | None = None


_ITEMS = (
    _Golden("text", "document", "a red cat"),
    _Golden("text in several scripts", "query", "zwölf große Bären, 赤い魚, рыжий кот 🐟"),
    _Golden("text with instruction", "query", "a red cat", instruction="Find a picture of this."),
    _Golden("picture", "document", images=(_SCENE,)),
    _Golden("picture with transparency and instruction", "query", images=(_BADGE,), instruction="What shape is it?"),
    _Golden("tall picture", "document", images=(_TOWER,)),
    _Golden("two pictures and text", "document", "a scene and a badge", (_SCENE, _BADGE)),
)
_PLACES = (
    _Golden("place", "document", place=(48.2, 16.4)),
    _Golden("place and text", "query", "a city", place=(-33.9, 151.2)),
)
"""For models that take places."""


def write_golden(embedder: Embedder, folder: Path, report: Callable[[str], None], probabilistic: bool) -> int:
    """Write the pictures and `golden/items.json` with the embedder's own vectors and, if it is `probabilistic`, their
    log-variances; returns how many items there are.

    Items that the model refuses (a model of pictures alone refuses text) are left out, and reported.
    """
    (folder / FOLDER).mkdir()
    draw_scene().save(folder / _SCENE)
    draw_badge().save(folder / _BADGE)
    draw_tower().save(folder / _TOWER)
    written = []
    for golden in _ITEMS + (_PLACES if getattr(embedder.processor, "places", False) else ()):
        images = tuple(folder / image for image in golden.images)
        item = Item(golden.text, images, golden.instruction, place=golden.place)
        try:
            values = _values(embedder, item, golden.side, probabilistic)
        except ZooError as error:
            report(f"golden item '{golden.name}' is left out, the model refuses it: {error}")
            continue
        written.append(
            {
                "name": golden.name,
                "side": golden.side,
                "text": golden.text,
                "images": list(golden.images),
                "instruction": golden.instruction,
                **({"place": list(golden.place)} if golden.place else {}),
                **values,
            }
        )
    if not written:
        raise ZooError(f"{embedder.name} refuses every golden item; its processor can't be checked")
    lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in written)
    (folder / ITEMS).write_text(f"[\n{lines}\n]\n", "utf-8")
    return len(written)


def _values(embedder: Embedder, item: Item, side: Side, probabilistic: bool) -> dict[str, list[float]]:
    """`vector`, and `log_var` of a probabilistic model."""
    if probabilistic:
        means, log_var = embedder.encode_gaussian(item, side=side)
        found = {"vector": means[0], "log_var": log_var[0]}
    else:
        found = {"vector": embedder.encode(item, side=side)}
    # 9 digits hold every float32 exactly
    return {name: [float(f"{value:.9g}") for value in row] for name, row in found.items()}


def draw_scene() -> Image.Image:
    """An RGB picture, wider than high: a gradient with shapes."""
    horizontal, vertical = Image.linear_gradient("L").rotate(90).resize((150, 90)), Image.linear_gradient("L")
    picture = Image.merge("RGB", (horizontal, vertical.resize((150, 90)), Image.new("L", (150, 90), 150)))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((15, 20, 65, 70), fill=(220, 40, 30))
    draw.polygon([(80, 80), (110, 12), (140, 80)], fill=(20, 90, 40))
    return picture


def draw_badge() -> Image.Image:
    """An RGBA picture, higher than wide: a half-transparent disc on nothing."""
    picture = Image.new("RGBA", (48, 80), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((4, 20, 44, 60), fill=(30, 60, 200, 160))
    draw.rectangle((20, 4, 28, 76), fill=(250, 210, 0, 255))
    return picture


def draw_tower() -> Image.Image:
    """An RGB image, much higher than wide and full of hard edges: what it becomes tells which side was resized first."""
    tower = Image.new("RGB", (64, 200), (240, 240, 235))
    draw = ImageDraw.Draw(tower)
    for row in range(40):
        for column in range(13):
            if (row * 7 + column * 5) % 11 < 5:
                draw.rectangle(
                    (column * 5, row * 5, column * 5 + 3, row * 5 + 3), fill=(row * 6, 20, 255 - column * 19)
                )
    return tower
