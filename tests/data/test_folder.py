"""Folders of pictures as training data and as tasks."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from PIL import Image

from zoo.data.left_out import LeftOutWarning
from zoo.data.sources.folder import ImageFolder, ImageFolderTasks, list_images
from zoo.errors import RecipeError, SampleError, ZooError


def write(root: Path, captions: dict[str, str | None]) -> Path:
    """Pictures, each with a caption file where it has a text."""
    for name, text in captions.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(file)
        if text is not None:
            file.with_suffix(".txt").write_text(text, "utf-8")
    return root


def draws(source: ImageFolder, index: int) -> list:
    return [source.draw(index, random.Random(seed)) for seed in range(40)]


def test_list_images_finds_pictures_below_and_leaves_hidden_ones_out(tmp_path: Path) -> None:
    write(tmp_path, {"b.png": "x", "sub/deep/a.JPG": None, ".hidden/c.png": None, "sub/.d.png": None, "e.webp": None})
    (tmp_path / "notes.md").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    assert [f.relative_to(tmp_path).as_posix() for f in list_images(tmp_path)] == ["b.png", "e.webp", "sub/deep/a.JPG"]


def test_list_images_of_nothing(tmp_path: Path) -> None:
    assert list_images(tmp_path) == []
    with pytest.raises(ZooError, match=r"there is no folder .*gone"):
        list_images(tmp_path / "gone")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to the administrator")
def test_a_closed_folder_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"a/b.png": None})
    (tmp_path / "a").chmod(0)
    with pytest.raises(ZooError, match=r"a can't be read"):
        list_images(tmp_path)


def test_captions_from_files(tmp_path: Path) -> None:
    source = ImageFolder(str(write(tmp_path / "pets", {"cat.png": "a cat\n\n  ein Kater \n", "x/dog.png": "a {dog}"})))
    assert len(source) == 2 and source.name == "pets"
    assert {s.views["target"].text for s in draws(source, 0)} == {"a cat", "ein Kater"}
    sample = source.draw(1, random.Random(0))
    assert (sample.id, sample.label, sample.source) == ("pets/x/dog.png", -1, "pets")
    assert sample.views["query"].images == (tmp_path / "pets/x/dog.png",)
    assert sample.views["query"].key == "x/dog.png" and sample.views["target"].text == "a {dog}"
    assert source.duplicate_key(0) != source.duplicate_key(1)


def test_captions_from_folder_names(tmp_path: Path) -> None:
    write(tmp_path, {"red_panda/1.png": None, "red_panda/2.png": None, "sea-lion/1.png": None})
    source = ImageFolder(str(tmp_path), "folder", template="a photo of a {}.")
    samples = [source.draw(i, random.Random(0)) for i in range(3)]
    assert [s.views["target"].text for s in samples] == ["a photo of a red panda."] * 2 + ["a photo of a sea lion."]
    assert samples[0].label == samples[1].label != samples[2].label
    keys = [source.duplicate_key(i) for i in range(3)]
    assert keys[0] == keys[1] != keys[2]


def test_direction_and_instruction(tmp_path: Path) -> None:
    folder = str(write(tmp_path, {"cat.png": "a cat"}))
    turned = ImageFolder(folder, direction="text_to_image", instruction="Find it").draw(0, random.Random(0))
    assert turned.views["query"].text == "a cat" and turned.views["query"].instruction == "Find it"
    assert turned.views["target"].images and turned.views["target"].instruction is None
    both = draws(ImageFolder(folder, direction="both", instruction="Find it"), 0)
    assert {bool(s.views["query"].images) for s in both} == {True, False}
    assert all(s.views["query"].instruction == "Find it" for s in both)


@pytest.mark.parametrize(
    ("captions", "pictures", "message"),
    [
        ("file", {}, "there are no images in"),
        ("file", {"a.png": "a", "b/c.png": None}, r"1 of 2 pictures in .* have no caption, for example b/c.png.*c.txt"),
        ("folder", {"a.png": None, "b/c.png": None}, r"1 of 2 pictures .* for example a.png: it needs a folder"),
    ],
)
def test_pictures_without_captions_are_refused_at_once(captions, pictures, message: str, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=message):
        ImageFolder(str(write(tmp_path, pictures)), captions)


@pytest.mark.parametrize(
    ("content", "message"), [(b" \n\n", "is empty"), (b"\xff\xfe\xfa", "is UTF-16"), (b"caf\xe9", "is not UTF-8")]
)
def test_unusable_caption_files_name_the_picture(content: bytes, message: str, tmp_path: Path) -> None:
    source = ImageFolder(str(write(tmp_path, {"a.png": ""})))
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(SampleError, match=rf"a\.png: its caption file .*a\.txt {message}"):
        source.draw(0, random.Random(0))


def test_a_caption_goes_on_to_the_line_feed(tmp_path: Path) -> None:
    caption = "a dog on\u2028a sofa\x0bwith a\x85blanket"
    source = ImageFolder(str(write(tmp_path, {"a.png": f"\ufeff{caption}\r\n\na cat\n"})))
    assert source.images.texts(source.images.files[0]) == [caption, "a cat"]


def test_images_of_other_formats_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "f", {"a.png": "a"})
    for name in ("b.JXL", "c.cr2"):
        (tmp_path / "f" / name).touch()
    with pytest.warns(LeftOutWarning, match=r"2 images of formats that are not opened \(b\.JXL, c\.cr2\)"):
        source = ImageFolder(str(tmp_path / "f"))
    assert len(source) == 1
    (tmp_path / "f" / "a.png").unlink()
    with pytest.raises(ZooError, match=r"no images in .*: 2 images of formats that are not opened"):
        ImageFolder(str(tmp_path / "f"))


def test_a_template_needs_a_place(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'a photo' has no \{\}"):
        ImageFolder(str(write(tmp_path, {"a.png": "a"})), template="a photo")


def test_tasks_both_ways(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", {"1.png": "a cat\na pet", "2.png": "a dog\na pet\na dog", "3.png": "a cat"})
    to_text, to_image = ImageFolderTasks(str(folder)).tasks()
    assert (to_text.name, to_image.name) == ("image_to_text[f]", "text_to_image[f]")
    texts = [item.text for item in to_text.candidates]
    assert texts == ["a cat", "a pet", "a dog"] == [item.text for item in to_image.queries]
    assert to_text.relevant == [[0, 1], [1, 2], [0]]
    assert to_image.relevant == [[0, 2], [0, 1], [1]]
    assert [t.name for t in ImageFolderTasks(str(folder), which=("text_to_image",), name="x").tasks()] == [
        "text_to_image[x]"
    ]
