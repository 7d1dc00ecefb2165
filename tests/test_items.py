"""Text, path, content and stream are told apart before anything is opened."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.data.images import open_image
from zoo.data.pairs import read_picture
from zoo.errors import SampleError
from zoo.items import is_single, padding_size, to_items
from zoo.types import Item

PIXELS = np.random.default_rng(0).integers(0, 255, (12, 20, 3), dtype=np.uint8)


def png() -> bytes:
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, "PNG")
    return out.getvalue()


BASE64 = base64.b64encode(png()).decode()
GIVEN: dict[str, Callable[[Path], Any]] = {
    "path": lambda path: path,
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "stream": lambda path: io.BytesIO(path.read_bytes()),
    "open file": lambda path: path.open("rb"),
    "PIL": lambda path: Image.open(path),
    "array": lambda path: PIXELS,
    "array, channels first": lambda path: PIXELS.transpose(2, 0, 1),
    "array, half of it": lambda path: np.concatenate([PIXELS, PIXELS], 1)[:, :20],
    "tensor": lambda path: torch.from_numpy(PIXELS.transpose(2, 0, 1).copy()),
    "tensor, channels last": lambda path: torch.from_numpy(PIXELS.copy()),
    "item": lambda path: Item(images=(io.BytesIO(path.read_bytes()),)),  # type: ignore[arg-type]
}
UNDER_IMAGE: dict[str, Callable[[Path], Any]] = GIVEN | {
    "str": str,
    "data": lambda path: f"data:image/png;base64,{BASE64}",
    "percent-encoded data": lambda path: "data:image/png," + "".join(f"%{byte:02x}" for byte in path.read_bytes()),
    "base64": lambda path: BASE64,
    "base64 in lines": lambda path: base64.encodebytes(path.read_bytes()).decode(),
}


@pytest.mark.parametrize("way", GIVEN)
def test_one_image_is_one_thing(way: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    thing = GIVEN[way](tmp_path / "a.png")
    assert is_single(thing)
    [item] = to_items([thing])
    assert item.text is None and padding_size(item) == (1, 240, 0)
    np.testing.assert_array_equal(np.asarray(open_image(item.images[0], "x")), PIXELS)


@pytest.mark.parametrize("way", [name for name in UNDER_IMAGE if name != "item"])
def test_the_same_under_image(way: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    [item] = to_items([{"image": UNDER_IMAGE[way](tmp_path / "a.png"), "text": "a"}])
    np.testing.assert_array_equal(np.asarray(open_image(item.images[0], "x")), PIXELS)


def test_grey_pixels_are_an_image_too() -> None:
    grey = PIXELS[..., 0]
    for thing in (grey, grey[..., None], torch.from_numpy(grey.copy()), torch.from_numpy(grey.copy())[None]):
        [item] = to_items([thing])
        np.testing.assert_array_equal(np.asarray(open_image(item.images[0], "x"))[..., 1], grey)


def test_several_images_in_one_array_are_several() -> None:
    batch = np.stack([PIXELS, PIXELS])
    assert not is_single(batch) and [len(item.images) for item in to_items(list(batch))] == [1, 1]
    assert not is_single(np.array(["a", "b"])) and [item.text for item in to_items(np.array(["a", "b"]).tolist())] == [
        "a",
        "b",
    ]


@pytest.mark.parametrize(
    "address",
    ["https://example.org/a.png", "http://a/b", "s3://bucket/a.png", "gs://b/a", "hf://datasets/a", "file:///a.png"],
)
def test_addresses_are_whole_in_the_message_that_says_the_way_out(address: str, tmp_path: Path) -> None:
    [item] = to_items([{"image": address}])
    for image in (item.images[0], read_picture(address, tmp_path, "x")):
        with pytest.raises(
            SampleError, match=rf"^x: image {address} is an address, .*: download it and give the path, or .*bytes"
        ):
            open_image(image, "x")


def test_tables_hold_images_in_their_cells_too(tmp_path: Path) -> None:
    for cell in (BASE64, f"data:image/png;base64,{BASE64}"):
        assert read_picture(cell, tmp_path, "x") == png()
    with pytest.raises(SampleError, match=r"^row 3 .*no valid data: address"):
        read_picture("data:image/png;base64,%%%", tmp_path, "row 3")


def test_a_path_of_letters_is_no_base64(tmp_path: Path) -> None:
    """Only what begins as an encoded image does."""
    name = "aGVsbG8gd29ybGQgaGVsbG8gd29ybGQgaGVsbG8h"
    assert base64.b64decode(name).startswith(b"hello world")
    (tmp_path / name).write_bytes(png())
    assert read_picture(name, tmp_path, "x") == tmp_path / name
    [item] = to_items([{"image": str(tmp_path / name)}])
    assert item.images == (tmp_path / name,)
