"""Resized pixels are the same under every version of Pillow."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.data import augment
from zoo.data.pairs import Record
from zoo.data.processors.dual_arrays import Picture
from zoo.data.processors.image_arrays import resized
from zoo.data.processors.vlm_arrays import Pixels
from zoo.data.shard_members import members_of

R = Image.Resampling


def squares(width: int, height: int) -> Image.Image:
    """Hard edges, which show most of all in which order the sides were resized."""
    y, x, c = np.indices((height, width, 3))
    return Image.fromarray((((x // 3 * 7 + y // 2 * 5 + c * 3) % 11 < 5) * 255).astype(np.uint8))


def digest(pixels: object) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest()[:12]


# made with Pillow 11.3.0 and its own `image.resize(size, filter, box=box)` in one call: the width first
GOLDEN = [
    ((64, 200), (32, 32), R.BICUBIC, None, "51de109fb03c"),
    ((64, 200), (32, 32), R.BILINEAR, None, "72f4b004ee08"),
    ((64, 200), (224, 60), R.BICUBIC, None, "da146400e7df"),
    ((300, 900), (224, 224), R.BICUBIC, None, "38a4101db255"),
    ((300, 900), (100, 300), R.LANCZOS, None, "ce653f777e9f"),
    ((200, 64), (32, 32), R.BICUBIC, None, "3a1597e76625"),
    ((70, 70), (70, 20), R.BICUBIC, None, "df167e356d84"),
    ((64, 200), (64, 50), R.BICUBIC, (3.25, 10.5, 60.75, 190.0), "b962eae38070"),
]


@pytest.mark.parametrize(("size", "target", "resample", "box", "expected"), GOLDEN)
def test_pixels_are_those_of_width_first(size, target, resample, box, expected: str) -> None:
    assert digest(resized(squares(*size), target, resample, box)) == expected


def every_resize() -> dict[str, str]:
    """What becomes of a tall image wherever the zoo resizes one."""
    tall = squares(64, 200)
    return {
        **{
            f"{mode} {filter}": digest(Picture(32, mode, interpolation=filter).bytes_of(tall))  # type: ignore[arg-type]
            for mode in ("shortest", "squash", "longest")
            for filter in ("bicubic", "bilinear")
        },
        "patches": digest(Pixels(max_pixels=28 * 28 * 4).patches(tall)[0].round(4)),
        "patches, resized twice": digest(Pixels(max_pixels=28 * 28 * 4, rounded_first=True).patches(tall)[0].round(4)),
    }


# made with Pillow 11.3.0 and one call of `resize`
EVERY = {
    "shortest bicubic": "9ec5045c3440",
    "shortest bilinear": "ffb093493bd8",
    "squash bicubic": "51de109fb03c",
    "squash bilinear": "72f4b004ee08",
    "longest bicubic": "d0775614864f",
    "longest bilinear": "f78e75a193ae",
    "patches": "4a8bdb1dc70c",
    "patches, resized twice": "96bc00acc0dd",
}


def test_every_preparation_resizes_like_that() -> None:
    assert every_resize() == EVERY


def test_a_crop_of_training_resizes_like_that(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(augment, "resized", lambda image, size, box: seen.append((image, size, box)) or image)
    tall = squares(64, 200)
    augment.Crop().change(tall, random.Random(0))
    assert [(image, size) for image, size, _ in seen] == [(tall, (64, 200))] and len(seen[0][2]) == 4


def test_shards_are_resized_like_that() -> None:
    content = io.BytesIO()
    squares(300, 900).save(content, "PNG")
    (jpeg,) = [
        value for name, value in members_of(Record("x", content.getvalue(), ("a",)), 100).items() if name == "jpg"
    ]
    expected = io.BytesIO()
    resized(squares(300, 900), (100, 300), R.LANCZOS).save(expected, "JPEG", quality=92)
    assert jpeg == expected.getvalue()


def test_a_thread_is_not_blown_up_before_it_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 x 500,000 pixels to a square: 224 x 500,000 lie between if the width comes first."""
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *a, **k: sizes.append(size) or resize(self, size, *a, **k)
    )
    assert resized(Image.new("RGB", (2, 500_000), "red"), (224, 224)).getpixel((100, 100)) == (255, 0, 0)
    assert max(width * height for width, height in sizes) <= 224 * 224


OTHERS = [folder for folder in os.environ.get("ZOO_PILLOWS", "").split(os.pathsep) if folder]


@pytest.mark.skipif(not OTHERS, reason="ZOO_PILLOWS names no folders with other versions of Pillow")
@pytest.mark.parametrize("folder", OTHERS)
def test_another_version_of_pillow_gives_the_same_pixels(folder: str, tmp_path: Path) -> None:
    """`ZOO_PILLOWS=DIR:DIR pytest ...`, with folders made by `pip install --no-deps --target DIR pillow==VERSION`."""
    code = "import PIL, json, test_resizing; print(json.dumps([PIL.__file__, test_resizing.every_resize()]))"
    path = os.pathsep.join([folder, str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    pillow, found = json.loads(run.stdout)
    assert pillow.startswith(folder) and found == EVERY
