"""Images, before they become the arrays of one kind of model, in Pillow and numpy.

`zoo export` copies this file, as it stands, beside the exported graphs, where the other `*_arrays.py` use it, too. It
therefore imports nothing else.
"""

from __future__ import annotations

from PIL import Image

Box = tuple[float, float, float, float]

_LARGEST_BETWEEN = 2**24  # pixels of the image between the two steps of a resize


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
