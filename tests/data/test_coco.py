"""Captioned test sets in Karpathy's layout and as folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from callbacks.pictures import split_file
from PIL import Image

from zoo.data.sources.coco import CaptionRetrieval
from zoo.errors import RecipeError, SampleError, UnknownNameError, ZooError
from zoo.metrics.ranking import checked_indexes
from zoo.metrics.retrieval import chance

SEVEN = [[f"caption {i}.{j}" for j in range(5 + 2 * (i == 1))] for i in range(4)]


def test_only_the_first_five_captions_take_part(tmp_path: Path) -> None:
    to_text, to_image = CaptionRetrieval(str(split_file(tmp_path, SEVEN)), str(tmp_path)).tasks()
    assert (to_text.name, to_image.name) == ("image_to_text[coco]", "text_to_image[coco]")
    assert [item.text for item in to_text.candidates] == [f"caption {i}.{j}" for i in range(4) for j in range(5)]
    assert [list(entry) for entry in to_text.relevant] == [list(range(5 * i, 5 * i + 5)) for i in range(4)]
    assert to_image.relevant == [[i] for i in range(4) for _ in range(5)]
    assert [item.images[0] for item in to_text.queries] == [  # the picture of restval is not among them
        tmp_path / f"val2014/coco_{i:012}.jpg" for i in range(4)
    ]
    assert to_text.metrics == to_image.metrics == ("recall@1", "recall@5", "recall@10")
    assert to_text.rsum == to_image.rsum == "coco" and to_text.also == ()


def test_folds(tmp_path: Path) -> None:
    captions = [[f"{i}.{j}" for j in range(1 + i % 3)] for i in range(6)]  # 1, 2, 3, 1, 2, 3
    to_text, to_image = CaptionRetrieval(str(split_file(tmp_path, captions)), str(tmp_path), fold=2).tasks()
    (texts,), (images,) = to_text.also, to_image.also
    assert (texts.name, images.name, texts.rsum) == ("image_to_text[coco-2]", "text_to_image[coco-2]", "coco-2")
    assert texts.queries is to_text.queries and images.candidates is to_image.candidates
    owner = [i for i in range(6) for _ in range(1 + i % 3)]
    assert texts.pools is not None and images.pools is not None
    for picture in range(6):
        assert list(texts.pools[picture]) == [c for c in range(12) if owner[c] // 2 == picture // 2]
    for caption in range(12):
        assert list(images.pools[caption]) == [2 * (owner[caption] // 2), 2 * (owner[caption] // 2) + 1]
    assert chance(images)["recall@1"] == 0.5


def test_queries_of_a_fold_share_one_list_in_memory(tmp_path: Path) -> None:
    """25,000 captions with a list of 1,000 each would be gigabytes."""
    (_, to_image) = CaptionRetrieval(str(split_file(tmp_path, SEVEN)), str(tmp_path), fold=2).tasks()
    fold = to_image.also[0]
    _, pools = checked_indexes(20, 4, fold.relevant, fold.pools, "x")
    assert pools is not None and len({id(pool) for pool in pools}) == 2


def test_flickr_and_flat_copies(tmp_path: Path) -> None:
    path = split_file(tmp_path, SEVEN, "flickr30k", split="val")
    raw = json.loads(path.read_text("utf-8"))
    for entry in raw["images"]:
        entry.pop("filepath")
    path.write_text(json.dumps(raw), "utf-8")
    source = CaptionRetrieval(
        str(path), str(tmp_path / "val2014"), "val", 1, template="a photo of {}", which=("text_to_image",), name="f"
    )
    (one,) = source.tasks()
    assert one.name == "text_to_image[f]" and one.rsum == ""
    assert [item.text for item in one.queries] == [f"a photo of caption {i}.0" for i in range(4)]


@pytest.mark.parametrize(
    ("place", "name"), [("..", "a.jpg"), ("/", "a.jpg"), ("val2014", "../../a.jpg"), ("", "/a.jpg")]
)
def test_pictures_lie_below_their_folder(place: str, name: str, tmp_path: Path) -> None:
    path = split_file(tmp_path, SEVEN)
    raw = json.loads(path.read_text("utf-8"))
    raw["images"][2] |= {"filepath": place, "filename": name}
    path.write_text(json.dumps(raw), "utf-8")
    with pytest.raises(SampleError, match=rf"dataset_coco\.json: {name}: .* leads out of"):
        CaptionRetrieval(str(path), str(tmp_path)).tasks()


def test_a_folder_with_captions(tmp_path: Path) -> None:
    for name, text in {"b": "one\ntwo\nthree", "a/c": "one"}.items():
        file = tmp_path / f"pets/{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(file)
        file.with_suffix(".txt").write_text(text)
    to_text, to_image = CaptionRetrieval(str(tmp_path / "pets"), captions_per_image=2).tasks()
    assert to_text.name == "image_to_text[pets]" and to_image.rsum == "pets"
    assert sorted(i.text or "" for i in to_text.candidates) == ["one", "one", "two"]  # equal captions stay two


def test_instructions_stand_on_queries_alone(tmp_path: Path) -> None:
    path = str(split_file(tmp_path, SEVEN))
    to_text, to_image = CaptionRetrieval(path, str(tmp_path), instructions={"image_to_text": "Describe it."}).tasks()
    assert {item.instruction for item in to_text.queries} == {"Describe it."}
    assert {item.instruction for item in (*to_text.candidates, *to_image.queries, *to_image.candidates)} == {None}


def test_what_does_not_fit(tmp_path: Path) -> None:
    path = split_file(tmp_path, SEVEN)
    with pytest.raises(UnknownNameError, match=r"split 'tset'; did you mean 'test'"):
        CaptionRetrieval(str(path), str(tmp_path), "tset").tasks()
    with pytest.raises(ZooError, match="4 pictures of 'coco' do not fill folds of 3"):
        CaptionRetrieval(str(path), str(tmp_path), fold=3).tasks()
    with pytest.raises(ZooError, match=r"4 of 4 pictures are missing, first .*coco_000000000000.jpg; check `images`"):
        CaptionRetrieval(str(path), str(tmp_path / "elsewhere")).tasks()
    with pytest.raises(SampleError, match=r"coco_000000000001.jpg of .* has no caption"):
        CaptionRetrieval(str(split_file(tmp_path, [["x"], []])), str(tmp_path)).tasks()
    for text, message in (("[]", "no split file in Karpathy's layout"), ("{", "can't be read")):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ZooError, match=message):
            CaptionRetrieval(str(tmp_path / "bad.json")).tasks()
    with pytest.raises(ZooError, match="can't be read"):
        CaptionRetrieval(str(tmp_path / "gone.json")).tasks()
    with pytest.raises(RecipeError, match=r"no \{\} for the caption"):
        CaptionRetrieval(str(path), template="x")
    with pytest.raises(RecipeError, match="captions_per_image is 0, fold is 1000"):
        CaptionRetrieval(str(path), captions_per_image=0)
    with pytest.raises(UnknownNameError, match="direction 'image_to_txt'"):
        CaptionRetrieval(str(path), which=("image_to_txt",))
