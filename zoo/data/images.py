"""Opening pictures that may be anything: checked before they are decoded, and always RGB afterwards."""

from __future__ import annotations

import base64
import io
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from zoo.data.processors.image_arrays import MAX_PIXELS, WHITE, Colour, Fit, read_image
from zoo.data.processors.image_sources import ImageError
from zoo.errors import SampleError
from zoo.machine import usable_cores
from zoo.types import ImageSource

SUFFIXES = frozenset(
    (
        ".png",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".webp",
        ".gif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".avif",
        ".heic",
        ".heif",
    )
)
"""File names that are taken for pictures, in lower case."""

OTHER_SUFFIXES = frozenset(
    (".jxl", ".jp2", ".j2k", ".jpx", ".svg", ".psd", ".tga", ".ico", ".ppm", ".pgm", ".eps")
) | frozenset((".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"))
"""File names of images in formats that are not opened: a folder's reader names and counts them."""

_SEVERAL = 4  # pictures, from which threads are worth their start


def open_image(
    source: ImageSource,
    name: str,
    max_pixels: int = MAX_PIXELS,
    background: Colour = WHITE,
    fit: Fit | None = None,
) -> Image.Image:
    """An image as RGB, see `read_image`.

    Args:
        source: a path, encoded bytes or a PIL image, or whatever else `as_source` takes.
        name: of the sample, for the message.
        max_pixels: refuse larger ones.
        background: what shows through where the image is transparent.
        fit: the resize with which a preparation begins: large images are then read with little memory.

    Raises:
        SampleError: missing, empty, truncated, too large, or no image of a known format; names sample and file.
    """
    try:
        return read_image(source, f"{name}: image", max_pixels=max_pixels, background=background, fit=fit)
    except ImageError as error:
        raise SampleError(str(error)) from error


def open_images(
    sources: Sequence[Sequence[ImageSource]],
    names: Sequence[str],
    made: Callable[[Image.Image], Image.Image] = lambda picture: picture,
    fit: Fit | None = None,
) -> list[list[Image.Image]]:
    """`open_image` of the pictures of several samples, on all cores: decoders leave the interpreter free.

    One after the other in a worker of a data loader and where several ranks train: there the cores are taken.

    Args:
        sources: the pictures of each sample.
        names: of the samples.
        made: what becomes of each picture before the next one is opened: of large files the small rest is kept.
        fit: see `open_image`.

    Raises:
        SampleError: as `open_image`, of the first picture in order that can't be used.
    """
    flat = [(source, name) for row, name in zip(sources, names, strict=True) for source in row]

    def opened(one: tuple[ImageSource, str]) -> Image.Image:
        return made(open_image(*one, fit=fit))

    if len(flat) < _SEVERAL or multiprocessing.parent_process() is not None or "LOCAL_RANK" in os.environ:
        pictures: Iterator[Image.Image] = map(opened, flat)
        return [[next(pictures) for _ in row] for row in sources]
    for source, name in flat:
        if isinstance(
            source, Image.Image
        ):  # one that is not read yet can't be read by two threads, if it stands in two samples
            open_image(source, name, fit=fit)
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
        picture = open_image(source, name, fit=Fit(lambda width, height: _within(size, width, height)))
    encoded = io.BytesIO()
    picture.save(encoded, "WEBP", quality=quality)
    return f"data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _within(size: int, width: int, height: int) -> tuple[int, int]:
    """Width and height of a copy that is at most `size` pixels long."""
    scale = min(1.0, size / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
