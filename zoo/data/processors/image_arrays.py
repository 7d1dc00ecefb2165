"""Images before they become the arrays of one kind of model: whatever stands for one -> RGB, and its resizing.

`zoo export` copies this file, as it stands, beside the exported graphs, where it is used as in training. It therefore
imports nothing but Pillow and numpy, and `pillow_heif` where that is installed.
"""

from __future__ import annotations

import functools
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from .image_sources import ImageError, as_source, without_metadata
from .png_rows import png_exif, png_rows

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
"""What is opened at all: raster formats. Never EPS, which runs a program, nor SVG, which is one."""

MAX_PIXELS = 64_000_000
"""Largest width x height; a header that claims more is refused before memory is spent on it."""

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]
WHITE: Colour = (255, 255, 255)
PAGE = "zoo.page"
"""Key of `Image.info` under which an image that was transparent keeps the colour it was laid on."""

_BAND = 2**22  # pixels that are RGB at a time, where the rest of an image is still in its own format
_ALONE = 2**24  # pixels from which on no two images are decoded at a time
_REDUCED = 2**25  # pixels from which on a JPEG is decoded at a fraction of its size
_LARGEST_BETWEEN = 2**24  # pixels of the image between the two steps of a resize
_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Fit:
    """The resize with which a preparation begins: done while a large image is read, it never is RGB as a whole.

    size: width and height of an image -> those it gets; None = it is to be read as it is.
    resample: Pillow's filter.
    """

    size: Callable[[int, int], tuple[int, int] | None]
    resample: Image.Resampling = Image.Resampling.BICUBIC


def read_image(
    source: Any, where: str, *, max_pixels: int = MAX_PIXELS, background: Colour = WHITE, fit: Fit | None = None
) -> Image.Image:
    """An image as RGB: EXIF orientation applied, transparency laid on `background`, of an animation the first frame.

    Pixels count: metadata that can't be read is ignored. Grey, palette and CMYK images are converted without colour
    management; 16 bits a channel become 8.

    Args:
        source: see `as_source`. A PIL image is not changed, and returned itself if it is plain RGB.
        where: what a message calls it.
        max_pixels: refuse larger ones.
        background: what shows through where the image is transparent.
        fit: resize to this. Very large JPEGs are then decoded at a fraction of their size.

    Raises:
        ImageError: missing, empty, truncated, too large, or no image of a known format.
    """
    source = as_source(source, where)
    where = f"{where} {source}" if isinstance(source, Path) else where
    try:
        return _read(source, where, max_pixels, background, fit)
    except ImageError as error:
        content = without_metadata(source) if error.damaged else None
        if content is None:
            raise
        try:
            return _read(content, where, max_pixels, background, fit)
        except ImageError:  # it is the pixels
            raise error from None


def size_of(source: Any) -> tuple[int, int]:
    """Width and height as the header has them. ImageError as above."""
    with _opened(as_source(source, "image"), "image") as image:
        return image.size


def resized(
    image: Image.Image,
    size: tuple[int, int],
    resample: Image.Resampling = Image.Resampling.BICUBIC,
    box: Box | None = None,
) -> Image.Image:
    """An RGB image at another `size` (width, height): first the width changes, then the height.

    Pillow rounds to 8 bits between the two, and which comes first depends on its version: the width up to 12, from 13 on
    the height of images that get much lower. The same vectors everywhere need one order. It is turned round where the image
    between the two would be huge (a thread of an image that is stretched to a square).

    Args:
        image: itself returned where nothing is to be done.
        size: in pixels.
        resample: Pillow's filter.
        box: the part of `image` that is seen, as (left, top, right, bottom); None = all of it.
    """
    left, top, right, bottom = box or (0, 0, *image.size)
    width, height = size
    if width * image.height > _LARGEST_BETWEEN:
        image = image.resize((image.width, height), resample, box=(0, top, image.width, bottom))
        return image.resize(size, resample, box=(left, 0, right, height))
    if (left, right, width) != (0, image.width, image.width):
        image = image.resize((width, image.height), resample, box=(left, 0, right, image.height))
    if (top, bottom, height) != (0, image.height, image.height):
        image = image.resize(size, resample, box=(0, top, width, bottom))
    return image


# ---- opening ---------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(source: Path | bytes | Image.Image, where: str) -> Iterator[Image.Image]:
    """The image, its header read; closed afterwards unless it was given as one."""
    if isinstance(source, Image.Image):
        yield source
        return
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_formats())
    except UnidentifiedImageError:
        raise ImageError(f"{where} is {_unknown(source)}", damaged=True) from None
    except FileNotFoundError as error:  # it was there a moment ago
        raise ImageError(f"{where} does not exist") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{where} is too large: {error}") from error
    except Exception as error:  # what the readers raise on damaged headers has no common class
        raise ImageError(f"{where} is damaged: {error}", damaged=True) from error
    with image:
        yield image


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that can be read here."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        pass  # `_unknown` says what is missing, if it is
    else:
        register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _unknown(source: Path | bytes) -> str:
    """What a file is that no reader knows, by its first bytes."""
    try:
        with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
            head = file.read(12)
    except OSError as error:  # removed meanwhile
        return f"unreadable: {error}"
    brand = head[8:] if head[4:8] == b"ftyp" else b""
    if brand in (b"avif", b"avis") and "AVIF" not in _formats():
        return "an AVIF image, which Pillow reads from 11.3 on: pip install -U pillow"
    if brand[:3] in (b"hei", b"hev", b"mif", b"msf") and "HEIF" not in _formats():
        return "a HEIC image, which needs pillow-heif (the extra `heic` of embedding-zoo): pip install pillow-heif"
    return f"not a picture in one of the formats {', '.join(FORMATS)}"


# ---- decoding --------------------------------------------------------------------------------------------------------


def _read(
    source: Path | bytes | Image.Image, where: str, max_pixels: int, background: Colour, fit: Fit | None
) -> Image.Image:
    with _opened(source, where) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError(f"{where} has {width}x{height} pixels, more than {max_pixels}; shrink it first")
        if width < 1 or height < 1:
            raise ImageError(f"{where} has no pixels ({width}x{height})")
        try:
            with _one_at_a_time if width * height > _ALONE else nullcontext():
                again = source if width * height > _ALONE and not isinstance(source, Image.Image) else None
                return _decoded(image, background, fit, again)
        except Exception as error:  # as above: no common class, and colour modes without a way to RGB
            raise ImageError(f"{where} is damaged: {error or type(error).__name__}", damaged=True) from error


def _decoded(image: Image.Image, background: Colour, fit: Fit | None, source: Path | bytes | None) -> Image.Image:
    """source: the file, if the image is large: other ways of reading it may save memory."""
    turn = _UPRIGHT.get(_orientation(image, source))
    width, height = _sides(image, turn)
    target = fit.size(width, height) if fit is not None else None
    parts: Iterator[Image.Image] | None = None
    if source is not None and target is not None:
        if width * height > _REDUCED:
            image.draft(
                None, (2 * max(target), 2 * max(target))
            )  # to a half, a quarter or an eighth; JPEG alone can do it
            width, height = _sides(image, turn)
        parts = png_rows(source, max(1, _BAND // (4 * width))) if turn is None else None
    if parts is None:
        image.load()
        if width * height <= _BAND or (turn is None and target is None and _is_plain(image)):
            rgb = _rgb(image, background, _brightest(image))
            return _resized(rgb if turn is None else rgb.transpose(turn), target, fit)
        parts = _crops(image, turn)
    page = _in_bands(parts, (width, height), background, _brightest(image), turn, target, fit)
    return _resized(page, target, fit)


def _sides(image: Image.Image, turn: Image.Transpose | None) -> tuple[int, int]:
    """Width and height of the image once it is upright."""
    width, height = image.size
    return (height, width) if turn in _SIDES_SWAPPED else (width, height)


def _is_plain(image: Image.Image) -> bool:
    return image.mode == "RGB" and "transparency" not in image.info


def _resized(image: Image.Image, target: tuple[int, int] | None, fit: Fit | None) -> Image.Image:
    return image if fit is None or target is None else resized(image, target, fit.resample)


def _orientation(image: Image.Image, source: Path | bytes | None) -> int:
    try:
        if source is None or image.format != "PNG":
            return int(image.getexif().get(_ORIENTATION, 1))
        if "exif" not in image.info and (exif := png_exif(source)):
            image.info["exif"] = exif
        return int(Image.Image.getexif(image).get(_ORIENTATION, 1))  # that of PNG would decode the image
    except Exception:  # readers of metadata raise errors of all kinds; an image that can't be turned is still one
        return 1


def _crops(image: Image.Image, turn: Image.Transpose | None) -> Iterator[Image.Image]:
    """Bands of a decoded image which, turned upright, follow one another from the top."""
    across = turn in _SIDES_SWAPPED
    width, height = _sides(image, turn)
    step = max(1, _BAND // width)
    for y in range(0, height, step):
        rows = min(step, height - y)
        at = height - y - rows if turn in _FROM_THE_END else y
        yield image.crop((at, 0, at + rows, width) if across else (0, at, width, at + rows))


def _in_bands(
    parts: Iterator[Image.Image],
    size: tuple[int, int],
    background: Colour,
    brightest: float,
    turn: Image.Transpose | None,
    target: tuple[int, int] | None,
    fit: Fit | None,
) -> Image.Image:
    """The upright RGB image of this `size`, and already as narrow as `target` where that saves memory: rows do not mix
    before the height changes.
    """
    width, height = size
    narrow = width if target is None or target[0] * height > _LARGEST_BETWEEN else min(width, target[0])
    page, y = Image.new("RGB", (narrow, height)), 0
    for part in parts:
        band = _rgb(part, background, brightest)
        band = band if turn is None else band.transpose(turn)
        if fit is not None and narrow < width:
            band = band.resize((narrow, band.height), fit.resample)
        page.paste(band, (0, y))
        page.info |= {PAGE: band.info[PAGE]} if PAGE in band.info else {}
        y += band.height
    return page


_SIDES_SWAPPED = tuple(_UPRIGHT[number] for number in (5, 6, 7, 8))
_FROM_THE_END = tuple(
    _UPRIGHT[number] for number in (3, 4, 7, 8)
)  # the first rows are the last rows or columns of the file


def _rgb(image: Image.Image, background: Colour, brightest: float) -> Image.Image:
    if _is_plain(image):
        return image
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _grey(image, brightest)
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        with_alpha = image if image.mode == "RGBA" else image.convert("RGBA")
        page = Image.new("RGB", image.size, background)
        page.paste(with_alpha, mask=with_alpha.getchannel("A"))
        page.info[PAGE] = background
        return page
    return image.convert("RGB")


def _brightest(image: Image.Image) -> float:
    """What is white where a pixel has more than 8 bits. Integers are read as 16 bits. Floats have no fixed range: up to
    1.0, or up to their largest value if that is more.
    """
    if image.mode != "F":
        return 65535.0
    width, height = image.size
    step = max(1, _BAND // width)
    bands = (np.array(image.crop((0, y, width, min(y + step, height))), np.float32) for y in range(0, height, step))
    return max(1.0, *(float(np.nan_to_num(band, copy=False).max()) for band in bands))


def _grey(image: Image.Image, brightest: float) -> Image.Image:
    """More than 8 bits a pixel; Pillow's own conversion would clip them at 255."""
    values = np.array(image, np.float32)
    np.nan_to_num(values, copy=False)
    values *= 255.0 / brightest
    return Image.fromarray(np.rint(values.clip(0, 255, out=values)).astype(np.uint8)).convert("RGB")
