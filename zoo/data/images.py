"""Opening pictures that may be anything: checked before they are decoded, and always RGB afterwards."""

from __future__ import annotations

import base64
import io
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from zoo.errors import SampleError
from zoo.machine import usable_cores
from zoo.types import ImageSource

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is opened at all: raster formats. Never EPS, which runs a program, nor SVG, which is one."""

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"))
"""File names that are taken for pictures, in lower case."""

OTHER_SUFFIXES = (
    frozenset(
        (".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".svg", ".psd", ".tga", ".ico", ".ppm", ".pgm")
    )
    | frozenset((".eps", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"))
) - SUFFIXES
"""File names of images in formats that are not opened: a folder's reader names and counts them."""

MAX_PIXELS = 64_000_000
"""Largest width x height; a header that claims more is refused before memory is spent on it."""

Colour = tuple[int, int, int]
WHITE: Colour = (255, 255, 255)
PAGE = "zoo.page"
"""Key of `Image.info` under which a picture that was transparent keeps the colour it was laid on."""

_SEVERAL = 4  # pictures, from which threads are worth their start
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


def open_image(source: ImageSource, name: str, max_pixels: int = MAX_PIXELS, background: Colour = WHITE) -> Image.Image:
    """A picture as RGB: EXIF orientation applied, transparency laid on `background`, of an animation the first frame.

    Grey, palette and CMYK pictures are converted without colour management; 16 bits a channel become 8.

    Args:
        source: a path, encoded bytes or a PIL picture (not changed; returned itself if it is plain RGB).
        name: of the sample, for the message.
        max_pixels: refuse larger ones.
        background: what shows through where the picture is transparent.

    Raises:
        SampleError: missing, empty, truncated, too large, or no picture of a known format; names sample and file.
    """
    if isinstance(source, Image.Image):
        return _decoded(source, f"{name}: image", max_pixels, background)
    stream, where = _stream(source, name)
    try:
        picture = Image.open(stream, formats=FORMATS)
    except UnidentifiedImageError:
        raise SampleError(f"{where} is not a picture in one of the formats {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError as error:
        raise SampleError(f"{where} is too large: {error}") from error
    except Exception as error:  # what the readers raise on damaged headers has no common class
        raise SampleError(f"{where} is damaged: {error}") from error
    with picture:
        return _decoded(picture, where, max_pixels, background)


def open_images(
    sources: Sequence[Sequence[ImageSource]],
    names: Sequence[str],
    made: Callable[[Image.Image], Image.Image] = lambda picture: picture,
) -> list[list[Image.Image]]:
    """`open_image` of the pictures of several samples, on all cores: decoders leave the interpreter free.

    One after the other in a worker of a data loader and where several ranks train: there the cores are taken.

    Args:
        sources: the pictures of each sample.
        names: of the samples.
        made: what becomes of each picture before the next one is opened: of large files the small rest is kept.

    Raises:
        SampleError: as `open_image`, of the first picture in order that can't be used.
    """
    flat = [(source, name) for row, name in zip(sources, names, strict=True) for source in row]

    def opened(one: tuple[ImageSource, str]) -> Image.Image:
        return made(open_image(*one))

    if len(flat) < _SEVERAL or multiprocessing.parent_process() is not None or "LOCAL_RANK" in os.environ:
        pictures: Iterator[Image.Image] = map(opened, flat)
        return [[next(pictures) for _ in row] for row in sources]
    for source, name in flat:
        if isinstance(
            source, Image.Image
        ):  # one that is not read yet can't be read by two threads, if it stands in two samples
            open_image(source, name)
    with ThreadPoolExecutor(min(len(flat), usable_cores())) as pool:  # not kept: threads do not survive a fork
        pictures = pool.map(opened, flat)
        return [[next(pictures) for _ in row] for row in sources]


def data_address(source: ImageSource, name: str, size: int, quality: int = 80) -> str:
    """A small copy of a picture as the `data:` address of an <img>.

    Args:
        source: as `open_image` takes it.
        name: of the sample, for the message.
        size: pixels of the longer side, at most.
        quality: of the WebP file, 1 to 100.

    Raises:
        SampleError: as `open_image` does.
    """
    with warnings.catch_warnings():  # Pillow warns of large pictures; here they are refused
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        picture = open_image(source, name).copy()  # a plain RGB picture comes back itself
    picture.thumbnail((size, size))
    encoded = io.BytesIO()
    picture.save(encoded, "WEBP", quality=quality)
    return f"data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _stream(source: ImageSource, name: str) -> tuple[io.BytesIO | Path, str]:
    """What Pillow opens, and what a message calls it."""
    if isinstance(source, bytes):
        if not source:
            raise SampleError(f"{name}: image is empty (0 bytes)")
        return io.BytesIO(source), f"{name}: image"
    if not isinstance(source, str | Path):
        raise SampleError(f"{name}: a picture is a path, bytes or a PIL image, not {type(source).__name__}")
    if isinstance(source, str) and source.startswith(("http://", "https://", "data:", "hf://")):
        raise SampleError(f"{name}: image {source[:80]} is an address; download it and give the path")
    where, path = f"{name}: image {source}", Path(source)
    try:
        if path.is_dir():
            raise SampleError(f"{where} is a folder, not a file")
        if not path.is_file():
            raise SampleError(f"{where} does not exist")
        if path.stat().st_size == 0:
            raise SampleError(f"{where} is empty (0 bytes)")
        with path.open("rb"):
            return path, where
    except (OSError, ValueError) as error:  # no permission, a name that no file can have
        if isinstance(error, SampleError):
            raise
        raise SampleError(f"{where} can't be read: {error}") from error


def _decoded(picture: Image.Image, where: str, max_pixels: int, background: Colour) -> Image.Image:
    width, height = picture.size
    if width * height > max_pixels:
        raise SampleError(f"{where} has {width}x{height} pixels, more than {max_pixels}; shrink it first")
    if width < 1 or height < 1:
        raise SampleError(f"{where} has no pixels ({width}x{height})")
    try:
        picture.load()
        turn = _UPRIGHT.get(picture.getexif().get(_ORIENTATION, 1))
        rgb = _rgb(picture, background)
        return rgb.transpose(turn) if turn is not None else rgb
    except Exception as error:  # as above: no common class, and colour modes without a way to RGB
        raise SampleError(f"{where} is damaged: {error or type(error).__name__}") from error


def _rgb(picture: Image.Image, background: Colour) -> Image.Image:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        return _grey(picture)
    if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
        with_alpha = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        page = Image.new("RGB", picture.size, background)
        page.paste(with_alpha, mask=with_alpha.getchannel("A"))
        page.info[PAGE] = background
        return page
    return picture.convert("RGB")


def _grey(picture: Image.Image) -> Image.Image:
    """More than 8 bits a pixel; Pillow's own conversion would clip them at 255.

    Integers are read as 16 bits. Floats have no fixed range: up to 1.0, or up to their largest value if that is more.
    """
    values = np.array(picture, np.float32)  # in place from here on: the picture may be large
    np.nan_to_num(values, copy=False)
    values *= 255.0 / (65535.0 if picture.mode != "F" else max(1.0, float(values.max())))
    return Image.fromarray(np.rint(values.clip(0, 255, out=values)).astype(np.uint8)).convert("RGB")
