"""Keys of parts: equal for equal content and for nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from pair_files import picture
from PIL import Image

from zoo.data.parts import as_keys, distinct, item_of, part_key, parts_of
from zoo.errors import SampleError, ZooError
from zoo.types import Item


def test_parts_of_an_item_and_back() -> None:
    item = Item(text="a cat", images=(b"one", Path("two.png")), place=(1.5, -2.0))
    parts = list(parts_of(item))
    assert parts == [("image", b"one"), ("image", Path("two.png")), ("text", "a cat"), ("place", (1.5, -2.0))]
    assert [list(parts_of(item_of(*part))) for part in parts] == [[part] for part in parts]


def test_equal_content_has_one_key_and_other_content_another() -> None:
    contents = [("image", picture(n)) for n in range(20)] + [("text", f"number {n}") for n in range(20)]
    contents += [("place", (float(n), 0.5)) for n in range(20)] + [("place", (0.5, float(n))) for n in range(20)]
    keys = [part_key(*content) for content in contents]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 16 for key in keys)
    assert keys == [part_key(*content) for content in contents]


def test_the_two_zeros_are_one_place() -> None:
    assert part_key("place", (0.0, 5.0)) == part_key("place", (-0.0, 5.0))


def test_a_file_is_told_by_path_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(picture(1))
    os.utime(file, ns=(1, 1))
    first = part_key("image", file)
    monkeypatch.chdir(tmp_path)
    assert first == part_key("image", str(file)) == part_key("image", Path("a.png"))
    os.utime(file, ns=(1, 2))
    assert part_key("image", file) != first
    file.write_bytes(picture(1) + b"x")
    os.utime(file, ns=(1, 1))
    assert part_key("image", file) != first
    file.unlink()
    assert part_key("image", file) != first  # who opens it says that it is missing


def test_pil_images_are_told_by_their_pixels(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (3, 2), "red"), Image.new("RGB", (3, 2), "blue")
    assert part_key("image", red) == part_key("image", red.copy()) != part_key("image", blue)
    assert part_key("image", Image.new("RGB", (2, 3), "red")) != part_key("image", red)
    cut = tmp_path / "cut.png"
    cut.write_bytes(picture(3, (200, 200))[:120])
    with pytest.raises(SampleError, match=r"PIL image of \(200, 200\) is damaged"):
        part_key("image", Image.open(cut))
    with pytest.raises(SampleError, match="not int"):
        part_key("image", 7)


def test_distinct_keeps_the_first_of_each_in_order() -> None:
    keys = as_keys(b"".join(part_key("text", text) for text in ("b", "a", "b", "c", "a")))
    assert distinct(keys, "here").tolist() == [0, 1, 3]


def test_two_contents_under_one_number_are_refused() -> None:
    keys = np.array([[7, 1], [8, 1], [7, 2]], np.uint64)
    with pytest.raises(ZooError, match=r"'pairs', text: parts 0 and 2 differ but share the key 0000000000000007"):
        distinct(keys, "'pairs', text")


def test_a_name_that_no_file_can_have_has_a_key() -> None:
    """Whoever opens the file says what is wrong with it."""
    keys = {part_key("image", Path(name)) for name in ("\ud83d.png", "\udce9.png", "a\0.png")}
    assert len(keys) == 3 and all(len(key) == 16 for key in keys)
