"""Pictures, patches and positions of the processor against transformers' own Qwen2-VL code."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from official_layout import IDS, Reference, picture
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from zoo.data.processors.vlm_arrays import Pixels, rope_positions

BUDGETS = [
    (56 * 56, 28 * 28 * 1280),  # Qwen2-VL's own
    (256 * 28 * 28, 1024 * 28 * 28),  # ABC, embedding
    (256 * 28 * 28, 512 * 28 * 28),  # ABC, training
]


def outcome(size: Callable[[], tuple[int, int]]) -> Any:
    try:
        return size()
    except ValueError:
        return "refused"


@pytest.mark.parametrize(("low", "high"), BUDGETS)
def test_resize_rule(low: int, high: int) -> None:
    """Random sizes, thin ones, the edges of the budget and of the limit on the aspect ratio."""
    draw = random.Random(low + high)
    sizes = [(draw.randint(1, 4000), draw.randint(1, 4000)) for _ in range(3000)]
    sizes += [(draw.randint(1, 60), draw.randint(1, 9000)) for _ in range(3000)]
    sizes += [(side, side) for side in range(1, 2200, 7)] + [(1, 200), (1, 201), (3, 600), (3, 601), (27, 29), (14, 14)]
    pixels = Pixels(min_pixels=low, max_pixels=high)
    for height, width in sizes:
        theirs = outcome(lambda h=height, w=width: smart_resize(h, w, 28, low, high))  # type: ignore[misc]
        assert outcome(lambda h=height, w=width: pixels.size(h, w)) == theirs, (height, width)  # type: ignore[misc]


@pytest.mark.parametrize(("low", "high"), BUDGETS)
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_patches(low: int, high: int, mode: str) -> None:
    """Values and order, for sizes that are kept, shrunk and enlarged."""
    processor = Qwen2VLImageProcessorPil(min_pixels=low, max_pixels=high)
    worst = 0.0
    for width, height in ((448, 448), (301, 517), (90, 40), (1500, 700), (57, 1300)):
        image = picture(width, width, height).convert(mode)
        theirs = processor(images=image, return_tensors="np")
        patches, grid = Pixels(min_pixels=low, max_pixels=high).patches(image.convert("RGB"))
        assert [1, *grid] == theirs["image_grid_thw"][0].tolist()
        assert patches.shape == theirs["pixel_values"].shape
        worst = max(worst, float(np.abs(patches - theirs["pixel_values"]).max()))
    print(f"max difference {worst:.1e}")
    assert worst <= 1e-6


def test_noise_survives_the_resize() -> None:
    """A picture that is all detail: the filter must be the same one, not only a similar one."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (333, 471, 3), dtype=np.uint8))
    theirs = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=28 * 28 * 40)(images=noise, return_tensors="np")
    patches, _ = Pixels(max_pixels=28 * 28 * 40).patches(noise)
    assert np.abs(patches - theirs["pixel_values"]).max() <= 1e-6


@pytest.mark.parametrize(("low", "high"), BUDGETS[1:])
def test_patches_resized_twice(low: int, high: int) -> None:
    """As with Qwen's `process_vision_info` in front of the processor; large pictures often get another grid."""
    processor, other_grids = Qwen2VLImageProcessorPil(min_pixels=low, max_pixels=high), 0
    once, twice = Pixels(min_pixels=low, max_pixels=high), Pixels(min_pixels=low, max_pixels=high, rounded_first=True)
    for width, height in ((448, 448), (301, 517), (90, 40), (1500, 700), (1133, 1621), (640, 1999), (1011, 1010)):
        image = picture(width, width, height)
        rows, columns = smart_resize(height, width, 28, 4 * 28 * 28, 16384 * 28 * 28)
        theirs = processor(images=image.resize((columns, rows)), return_tensors="np")
        patches, grid = twice.patches(image)
        assert [1, *grid] == theirs["image_grid_thw"][0].tolist()
        assert np.abs(patches - theirs["pixel_values"]).max() <= 1e-6
        other_grids += grid != once.patches(image)[1]
    assert other_grids > 0


LAYOUTS = {
    "text": [5],
    "picture": [(4, 6)],
    "text, picture, text": [3, (4, 6), 7],
    "two pictures": [2, (2, 8), 1, (6, 2), 4],
    "tall picture last": [4, (12, 2)],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rope_positions(layout: str) -> None:
    """Spans are text lengths or (rows, columns) in merged patches."""
    spans = LAYOUTS[layout]
    picture_id, ids, grids = IDS["<|image_pad|>"], list[int](), list[list[int]]()
    for span in spans:
        if isinstance(span, int):
            ids += [65] * span
        else:
            ids += [picture_id] * (span[0] * span[1])
            grids.append([1, span[0] * 2, span[1] * 2])
    tensor = torch.tensor([ids])
    theirs, _ = Reference().model.model.get_rope_index(
        tensor,
        (tensor == picture_id).int(),
        image_grid_thw=torch.tensor(grids) if grids else None,
    )
    assert rope_positions(spans).tolist() == theirs[:, 0].tolist()  # type: ignore[arg-type]
