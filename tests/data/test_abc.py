"""ABC's two data sets in the layout of their hub repositories."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from zoo.data.sources.abc import AbcCaptions, AbcInstructions
from zoo.errors import SampleError, ZooError
from zoo.types import Item


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """50 records in two files; the negatives of record i are i+1, i+2, ... of the whole table."""
    (tmp_path / "data").mkdir()
    rows = [
        {
            "caption": f"caption {i}",
            "url": f"http://x/{i}",
            "id": 1000 + i,
            "image": f"train/{i}.jpg",
            "negatives": [(i + k) % 50 for k in range(1, 41)],
        }
        for i in range(50)
    ]
    for n, part in enumerate((rows[:20], rows[20:])):
        parquet.write_table(pyarrow.Table.from_pylist(part), tmp_path / f"data/train-{n:05d}-of-00002.parquet")
    return tmp_path


def test_one_negative_of_each_window(captions: Path) -> None:
    source = AbcCaptions(str(captions), "/pictures")
    assert len(source) == 50
    drawn = set()
    for seed in range(40):
        sample = source.draw(30, random.Random(seed))
        assert sample.views["query"] == Item(images=(Path("/pictures/train/30.jpg"),))
        assert sample.views["target"] == Item(text="caption 30")
        negatives = sample.views["negatives"]
        assert isinstance(negatives, tuple) and len(negatives) == 7
        distances = [(int(str(item.text).split()[1]) - 30) % 50 for item in negatives]
        assert [(d - 1) // 5 for d in distances] == list(range(7))
        drawn |= set(distances)
    assert drawn == set(range(1, 36))


def test_hidden_files_are_no_data(captions: Path) -> None:
    (captions / "data" / "._train-00000-of-00002.parquet").write_bytes(b"\0\5\x16\7")  # macOS
    assert len(AbcCaptions(str(captions), "/pictures")) == 50


def test_a_draw_is_a_function_of_its_arguments(captions: Path) -> None:
    one, other = (AbcCaptions(str(captions), "/pictures") for _ in range(2))
    assert one.draw(3, random.Random(5)) == other.draw(3, random.Random(5))
    assert one.draw(3, random.Random(5)) != other.draw(3, random.Random(6))


def test_without_negatives_there_is_no_such_view(captions: Path) -> None:
    assert set(AbcCaptions(str(captions), "/p", negatives=0).draw(0, random.Random(0)).views) == {"query", "target"}


def test_too_few_negatives_name_the_record(captions: Path) -> None:
    with pytest.raises(SampleError, match=r"abc-captions/7 has 40 negatives, 45 are needed"):
        AbcCaptions(str(captions), "/p", negatives=9).draw(7, random.Random(0))


def test_rows_without_caption_picture_or_negatives(tmp_path: Path) -> None:
    """They are no duplicates of one another, and a draw names them."""
    rows = [
        {"caption": None, "image": "0.jpg", "negatives": [2]},
        {"caption": None, "image": "1.jpg", "negatives": [2]},
        {"caption": "x", "image": None, "negatives": [2]},
        {"caption": "y", "image": "3.jpg", "negatives": None},
        {"caption": "z", "image": "4.jpg", "negatives": [99]},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    source = AbcCaptions(str(tmp_path), "/p", negatives=1, window=1)
    assert len({source.duplicate_key(n) for n in range(5)}) == 5
    for row, problem in ((2, "there is no picture"), (3, "has 0 negatives"), (4, "no rows of the table")):
        with pytest.raises(SampleError, match=f"abc-captions/{row}.*{problem}"):
            source.draw(row, random.Random(0))


@pytest.mark.parametrize("name", ["../secret", "/secret"])
def test_pictures_lie_below_their_folder(name: str, tmp_path: Path) -> None:
    rows = [{"caption": "x", "image": f"{name}.jpg", "negatives": [0]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    with pytest.raises(SampleError, match=rf"abc-captions/0: '{name}\.jpg' leads out of /pictures"):
        AbcCaptions(str(tmp_path), "/pictures", negatives=0).draw(0, random.Random(0))
    phrases = [{"image": name, "instruction": "what", "phrase": phrase} for phrase in ("a", "b")]
    parquet.write_table(pyarrow.Table.from_pylist([{"0": phrases[0], "1": phrases[1]}]), tmp_path / "train.parquet")
    with pytest.raises(SampleError, match=rf"abc-instructions/0: '{name}\.jpg' leads out of /pictures"):
        AbcInstructions(str(tmp_path), "/pictures").draw(0, random.Random(0))


def instructions(folder: Path) -> AbcInstructions:
    def entry(image: int, number: int, phrase: str) -> dict[str, object]:
        return {"id": number, "image": image, "instruction": f"what is {number}", "phrase": phrase, "x": 0, "height": 1}

    rows = [
        {"0": entry(7, 1, "a red cap"), "1": entry(7, 2, "a dog"), "2": entry(7, 3, "a dog")},
        {"0": entry(8, 4, "a tree"), "1": entry(8, 5, "a house"), "2": None},
        {"0": entry(9, 6, "alone"), "1": None, "2": None},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train.parquet")
    return AbcInstructions(str(folder), "/pictures")


def test_other_phrases_of_the_picture_are_the_negatives(tmp_path: Path) -> None:
    """Equal phrases are no negatives, missing entries are skipped, a picture with one phrase teaches nothing."""
    source = instructions(tmp_path)
    samples = [source.draw(i, random.Random(0)) for i in range(len(source))]
    assert [s.views["query"] for s in samples] == [
        Item(images=(Path(f"/pictures/{image}.jpg"),), instruction=f"what is {n}")
        for image, n in ((7, 1), (7, 2), (7, 3), (8, 4), (8, 5))
    ]
    assert [s.views["target"] for s in samples] == [
        Item(text=t) for t in ("a red cap", "a dog", "a dog", "a tree", "a house")
    ]
    assert [s.views["negatives"] for s in samples] == [
        (Item(text="a dog"),),
        (Item(text="a red cap"),),
        (Item(text="a red cap"),),
        (Item(text="a house"),),
        (Item(text="a tree"),),
    ]
    assert [source.duplicate_key(i) for i in range(len(source))] == [7, 7, 7, 8, 8]


def test_a_folder_without_data_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source in (AbcCaptions(str(tmp_path / "empty"), "/p"), AbcInstructions(str(tmp_path / "empty"), "/p")):
        with pytest.raises(ZooError, match="no parquet files"):
            len(source)
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ZooError, match="can't be read"):
        len(AbcInstructions(str(tmp_path), "/p"))
