"""The libraries that entries are compared with resize as they did when their weights were trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image


@pytest.fixture(scope="module", autouse=True)
def width_first() -> Iterator[None]:
    """Pillow up to 12 changed the width first; from 13 on it begins with the height of what gets much lower."""
    resize = Image.Image.resize

    def as_up_to_12(
        self: Image.Image, size: Any, resample: Any = None, box: Any = None, reducing_gap: Any = None
    ) -> Image.Image:
        if self.mode not in ("RGB", "L"):
            return resize(self, size, resample, box, reducing_gap)
        left, top, right, bottom = box or (0, 0, *self.size)
        narrow = resize(self, (size[0], self.height), resample, (left, 0, right, self.height))
        return resize(narrow, tuple(size), resample, (0, top, size[0], bottom))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", as_up_to_12)
        yield
