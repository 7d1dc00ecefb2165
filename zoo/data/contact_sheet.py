"""A picture full of small pictures with their names: the quickest way to see what a data set holds."""

from __future__ import annotations

import io
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from zoo.errors import ZooError

_PAPER, _INK, _FRAME = "#ffffff", "#1f2430", "#e3e6ec"
_MARGIN, _GAP, _FONT_SIZE, _LINES = 16, 8, 13, 2  # pixels, and lines of text under the pictures of a cell


@dataclass(frozen=True, slots=True)
class Cell:
    """Pictures of one thing, as encoded bytes, side by side above its name."""

    pictures: tuple[bytes, ...]
    caption: str


def contact_sheet(cells: Sequence[Cell], columns: int = 8, size: int = 64, title: str = "") -> Image.Image:
    """Draw the cells row by row, every picture scaled to `size` pixels on white; captions are cut after two lines.

    Raises:
        ZooError: there is nothing to draw.
    """
    if not cells:
        raise ZooError("a contact sheet needs at least one picture")
    font = ImageFont.load_default(size=_FONT_SIZE)
    line = _FONT_SIZE + 4
    width = max(len(cell.pictures) for cell in cells) * (size + _GAP) + _GAP
    height = size + 2 * _GAP + _LINES * line
    head = 2 * line if title else 0
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (2 * _MARGIN + columns * width, 2 * _MARGIN + head + rows * height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((_MARGIN + _GAP, _MARGIN), title, fill=_INK, font=ImageFont.load_default(size=_FONT_SIZE + 3))
    for index, cell in enumerate(cells):
        left, top = _MARGIN + index % columns * width, _MARGIN + head + index // columns * height
        draw.rectangle((left, top, left + width - 1, top + height - 1), outline=_FRAME)
        for place, picture in enumerate(cell.pictures):
            drawn = Image.open(io.BytesIO(picture)).convert("RGBA").resize((size, size))
            sheet.paste(drawn, (left + _GAP + place * (size + _GAP), top + _GAP), drawn)
        for number, text in enumerate(_lines(_plain(cell.caption), width - 2 * _GAP, font)):
            middle = left + (width - font.getlength(text)) / 2
            draw.text((middle, top + size + _GAP + 4 + number * line), text, fill=_INK, font=font)
    return sheet


def _plain(caption: str) -> str:
    """Without accents, which Pillow's own font has no letters for."""
    letters = unicodedata.normalize("NFKD", caption)
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def _lines(caption: str, room: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    letters = max(4, int(room / max(font.getlength(caption) / max(len(caption), 1), 1)))
    return textwrap.wrap(caption, letters, max_lines=_LINES, placeholder="…")


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write the picture in the format that the name's ending says.

    Raises:
        ZooError: an ending that is no picture format, or a place that can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except ValueError as error:
        raise ZooError(f"{path}: '{path.suffix}' is not a picture format; end the name in .png") from error
    except OSError as error:
        raise ZooError(f"{path} can't be written: {error.strerror or error}") from error
