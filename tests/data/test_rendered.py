"""Texts as pictures of their letters."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image

from zoo.data.processors.dual_arrays import DualArrays, Picture, Rendering
from zoo.data.processors.rendered import RenderedProcessor
from zoo.errors import SampleError
from zoo.types import Item, Sample

PLAIN = Picture(size=64, resize="squash", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def grey(text: str, side: int = 64, **options: object) -> np.ndarray:
    rendering = Rendering(**options)  # type: ignore[arg-type]
    picture = rendering.picture(rendering.lines(text, side)[0], side)
    assert picture.mode == "RGB" and picture.size == (side, side)
    channels = np.asarray(picture)
    assert (channels[..., :1] == channels).all()
    return channels[..., 0]


def test_black_on_grey_without_edges() -> None:
    page = grey("hello")
    assert set(np.unique(page)) == {0, 127}
    assert (page[16:] == 127).all() and (page[:16] == 0).sum() > 20
    assert set(np.unique(grey("hello", ink=255, background=10))) == {10, 255}


def test_lines_break_where_they_are_full_and_lose_nothing_that_fits() -> None:
    rendering, text = Rendering(line=16), "a brown dog runs by"
    lines, whole = rendering.lines(text, 64)
    assert whole and len(lines) > 1 and "".join(lines) == text
    page = np.asarray(rendering.picture(lines, 64))[..., 0]
    for row in range(len(lines)):
        assert (page[16 * row : 16 * (row + 1)] == 0).any()
    lines, whole = rendering.lines(text * 10, 64)
    assert not whole and len(lines) == 4 and (text * 10).startswith("".join(lines))


def test_letters_of_fixed_pitch_keep_to_their_cells() -> None:
    rendering, text = Rendering(line=16, pitch="fixed"), "mw il. iw"
    lines, whole = rendering.lines(text, 64)
    assert whole and lines == ["mw il. i", "w"]
    page = np.asarray(rendering.picture(lines, 64))[..., 0]
    cells = {place: page[:16, 8 * place : 8 * place + 8] for place in range(8)}
    inked = [place for place, cell in cells.items() if (cell == 0).any()]
    assert inked == [place for place, letter in enumerate(lines[0]) if letter != " "]
    assert (cells[3] == cells[7]).all() and (cells[1] == page[16:32, :8]).all()  # the same letter, the same pixels
    assert not (cells[0] == cells[1]).all() and set(np.unique(page)) == {0, 127}
    with pytest.raises(ValueError, match="'fixed' or 'proportional', not 'mono'"):
        Rendering(pitch="mono")


def test_case_and_spaces() -> None:
    assert (grey("Hello  World") == grey("hello world")).all()
    assert not (grey("Hello", lower=False) == grey("hello", lower=False)).all()
    assert not (grey("hello") == grey("hallo")).all()


def test_no_more_characters_than_allowed() -> None:
    lines, whole = Rendering(line=8, most=5).lines("abcdefgh", 64)
    assert "".join(lines) == "abcde" and not whole


def test_text_that_can_t_be_drawn_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no character of the text"):
        Rendering().lines("日本", 64)
    processor = RenderedProcessor(PLAIN)
    with pytest.raises(SampleError, match=r"second.*no character of the text"):
        processor([Sample("first", {"query": Item("a dog")}), Sample("second", {"query": Item("日本")})])
    assert Rendering().lines("日本 dog", 64)[0]  # one that can


def test_arrays_keep_pictures_and_texts_in_the_order_of_their_rows() -> None:
    arrays = DualArrays(None, PLAIN, rendering=Rendering())
    red = Image.new("RGB", (10, 10), "red")
    found = arrays(["a", None, "b"], [[red, red], [red], []], [None] * 3, False)
    assert found["image_rows"].tolist() == [0, 0, 0, 1, 2] and "input_ids" not in found
    pixels = found["pixels"]
    assert pixels.shape == (5, 3, 64, 64)
    np.testing.assert_allclose(pixels[2], np.broadcast_to(grey("a") / 255, (3, 64, 64)), atol=1e-6)
    np.testing.assert_allclose(pixels[4], np.broadcast_to(grey("b") / 255, (3, 64, 64)), atol=1e-6)
    assert (pixels[[0, 1, 3], 0] == 1).all()
    arrays(["a long text " * 20], [[]], [None], False)
    assert arrays.shortened == 1


def test_processor_is_small_and_splits_by_rows() -> None:
    processor = pickle.loads(pickle.dumps(RenderedProcessor(PLAIN, Rendering(line=10))))
    items = [Item("a"), Item("b", (Image.new("RGB", (8, 8)),)), Item("c")]
    batch = processor([Sample(str(i), {"query": item}) for i, item in enumerate(items)])
    parts = processor.split(batch.views["query"], 2)
    assert [part["pixels"].shape[0] for part in parts] == [3, 1]
    assert [part["image_rows"].tolist() for part in parts] == [[0, 1, 1], [0]]
    assert processor.spec()["rendering"]["line"] == 10
