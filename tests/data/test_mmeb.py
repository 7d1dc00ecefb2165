"""MMEB's files: what becomes of a row, and what is said about rows that can't be used."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from zoo.data.datamodule import EmbeddingData
from zoo.data.sources.mmeb import MmebEval, MmebTrain, MmebTrainFolder
from zoo.data.sources.record_files import Records
from zoo.errors import SampleError, UnknownNameError, ZooError

TRAIN = [
    {
        "qry": "<|image_1|>\nRepresent the given image for classification\n",
        "qry_image_path": "a.png",
        "pos_text": "plane",
        "pos_image_path": "",
        "neg_text": "car",
        "neg_image_path": "",
    },
    {
        "qry": "Find me an everyday image that matches the given caption: a cat.\n",
        "qry_image_path": "",
        "pos_text": "<|image_1|>\nRepresent the given image.\n",
        "pos_image_path": "b.png",
        "neg_text": "<|image_1|>",
        "neg_image_path": "a.png",
    },
]
EVAL = [
    {
        "qry_text": "<|image_1|>\nWhich animal?\n",
        "qry_img_path": "a.png",
        "tgt_text": ["cat", "dog", "cow"],
        "tgt_img_path": ["", "", ""],
    },
    {
        "qry_text": "<|image_1|>\nWhich thing?\n",
        "qry_img_path": "b.png",
        "tgt_text": ["dog", "cat", "dog", "bus"],
        "tgt_img_path": ["", "", "", ""],
    },
]


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        file.write_text("\n\n".join(json.dumps(row) for row in rows), "utf-8")
    return file


@pytest.fixture
def images(tmp_path: Path) -> str:
    for name in ("a.png", "b.png"):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / name)
    return str(tmp_path / "images")


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_training_row(kind: str, tmp_path: Path, images: str) -> None:
    source = MmebTrain(str(write(tmp_path / f"CIRR.{kind}", TRAIN)), images)
    assert len(source) == 2 and source.name == "CIRR"
    first, second = (source.draw(i, random.Random(0)) for i in range(2))
    assert list(first.views) == ["query", "target"] and (first.id, first.source) == ("CIRR/0", "CIRR")
    assert first.views["query"].text == "\nRepresent the given image for classification\n"
    assert first.views["query"].image_at == (0,)
    assert first.views["query"].images == (Path(images) / "a.png",)
    assert first.views["target"].text == "plane" and first.views["target"].images == ()
    assert second.views["query"].images == () and second.views["query"].text.endswith("a cat.\n")
    assert second.views["target"].text == "\nRepresent the given image.\n", "what a candidate ends with is pooled"
    assert all(item.instruction is None for sample in (first, second) for item in sample.views.values())


def test_hard_negatives_on_demand(tmp_path: Path, images: str) -> None:
    source = MmebTrain(str(write(tmp_path / "x.jsonl", TRAIN)), images, negatives=True)
    (text,), (picture,) = (source.draw(i, random.Random(0)).views["negatives"] for i in range(2))
    assert (text.text, text.images) == ("car", ())
    assert (picture.text, picture.images) == (None, (Path(images) / "a.png",))
    rows = [TRAIN[0], {**TRAIN[1], "neg_text": "", "neg_image_path": None}]
    file = write(tmp_path / "y.jsonl", rows)
    with pytest.raises(SampleError, match=r"y\.jsonl row 1 \(neg_text, neg_image_path\): neither text nor picture"):
        MmebTrain(str(file), images, negatives=True).draw(1, random.Random(0))


def test_rows_with_the_same_target_share_a_duplicate_key(tmp_path: Path, images: str) -> None:
    rows = [{**TRAIN[0], "pos_text": text} for text in ("yes", "no", "yes")] + [TRAIN[1]]
    source = MmebTrain(str(write(tmp_path / "x.parquet", rows)), images)
    keys = [source.duplicate_key(i) for i in range(4)]
    assert keys[0] == keys[2] and len(set(keys)) == 3


def test_endings_in_capitals(tmp_path: Path, images: str) -> None:
    write(tmp_path / "all" / "CIRR" / "original-0.JSONL", TRAIN)
    write(tmp_path / "eval" / "Animals" / "test-0.JSONL", EVAL)
    assert len(MmebTrainFolder(str(tmp_path / "all"), images)) == 2
    assert MmebTrain(str(tmp_path / "all" / "CIRR" / "original-0.JSONL"), images).name == "original-0"
    assert [task.name for task in MmebEval([str(tmp_path / "eval")], images).tasks()] == ["Animals"]


def test_a_folder_is_one_split_and_its_shards(tmp_path: Path, images: str) -> None:
    write(tmp_path / "OVEN/original-00000-of-00002.parquet", TRAIN)
    write(tmp_path / "OVEN/original-00001-of-00002.parquet", TRAIN[:1])
    write(tmp_path / "OVEN/diverse_instruction-00000-of-00001.parquet", TRAIN * 5)
    source = MmebTrain(str(tmp_path / "OVEN"), images)
    assert (len(source), source.name) == (3, "OVEN")
    assert "00001-of-00002.parquet row 0" in source.records.where(2)
    assert len(MmebTrain(str(tmp_path / "OVEN"), images, split="diverse")) == 10
    assert len(MmebTrain(str(tmp_path / "OVEN"), images, limit=2)) == 2
    assert MmebTrain(str(tmp_path / "OVEN/original-00001-of-00002.parquet"), images).name == "OVEN"
    with pytest.raises(ZooError, match=r"no file in .*OVEN begins with 'train' .*original-00000.*set `split`"):
        MmebTrain(str(tmp_path / "OVEN"), images, split="train")


def test_a_folder_of_subsets_stands_for_its_parts(tmp_path: Path, images: str) -> None:
    for name, count in (("A", 2), ("B", 1)):
        write(tmp_path / f"train/{name}/original-0.parquet", TRAIN[:count])
    (tmp_path / "train/empty").mkdir()
    folder = MmebTrainFolder(str(tmp_path / "train"), images)
    assert [part.name for part in EmbeddingData(train=[folder]).train] == ["A", "B"]
    assert len(folder) == 3 and folder.draw(2, random.Random(0)).id == "B/0"
    assert [p.name for p in MmebTrainFolder(str(tmp_path / "train"), images, subsets=["B"]).parts] == ["B"]
    with pytest.raises(UnknownNameError, match=r"unknown subset 'AA'; did you mean 'A'"):
        MmebTrainFolder(str(tmp_path / "train"), images, subsets=["AA"])
    with pytest.raises(ZooError, match=r"no folder in .*empty holds Parquet or JSONL"):
        MmebTrainFolder(str(tmp_path / "train/empty"), images)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_an_evaluation_task_ranks_each_query_against_its_own_list(kind: str, tmp_path: Path, images: str) -> None:
    (task,) = MmebEval([str(write(tmp_path / f"Pets.{kind}", EVAL))], images).tasks()
    assert task.name == "Pets" and task.metrics == ("precision@1",)
    assert [query.text for query in task.queries] == ["\nWhich animal?\n", "\nWhich thing?\n"]
    assert [c.text for c in task.candidates] == ["cat", "dog", "cow", "bus"], "each once"
    assert [list(r) for r in task.relevant] == [[0], [1]], "the first of the list is the right one"
    assert [set(pool) for pool in task.pools] == [{0, 1, 2}, {0, 1, 3}]


def test_candidates_are_told_apart_by_text_and_picture(tmp_path: Path, images: str) -> None:
    row = {
        **EVAL[0],
        "tgt_text": ["<|image_1|>\nSee", "<|image_1|>\nSee", ""],
        "tgt_img_path": ["a.png", "b.png", "b.png"],
    }
    (task,) = MmebEval([str(write(tmp_path / "x.parquet", [row]))], images).tasks()
    assert [(c.text, c.images[0].name) for c in task.candidates] == [
        ("\nSee", "a.png"),
        ("\nSee", "b.png"),
        (None, "b.png"),
    ]


def test_missing_lists_are_filled(tmp_path: Path, images: str) -> None:
    rows = [{**EVAL[0], "tgt_img_path": []}, {**EVAL[0], "tgt_text": [], "tgt_img_path": ["a.png"]}]
    (task,) = MmebEval([str(write(tmp_path / "x.jsonl", rows))], images).tasks()
    assert len(task.candidates) == 4 and task.candidates[3].images


def test_version_2_has_instructions_of_its_own(tmp_path: Path, images: str) -> None:
    row = {
        **EVAL[0],
        "qry_inst": "<|image_1|>\nAnswer the question",
        "qry_text": "Which animal?",
        "tgt_inst": "<|image_1|>\nRepresent it",
        "tgt_text": ["", ""],
        "tgt_img_path": ["a.png", "b.png"],
    }
    write(tmp_path / "Animals/test-00000-of-00001.parquet", [row, {**row, "tgt_inst": None, "qry_inst": ""}])
    (task,) = MmebEval([str(tmp_path / "Animals")], images, pooled=False, instructions="apart").tasks()
    assert (task.name, task.pools) == ("Animals", None)
    assert [(q.text, q.instruction) for q in task.queries] == [
        ("Which animal?", "Answer the question"),
        ("Which animal?", None),
    ]
    assert [c.instruction for c in task.candidates] == ["Represent it"] * 2 + [None] * 2


def test_one_folder_of_folders_stands_for_all_tasks(tmp_path: Path, images: str) -> None:
    for name in ("B", "A"):
        write(tmp_path / f"eval/{name}/test-0.parquet", EVAL)
    assert [task.name for task in MmebEval([str(tmp_path / "eval")], images).tasks()] == ["A", "B"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tgt_text": ["a", "b"], "tgt_img_path": [""]}, r"row 1: 2 in tgt_text, but 1 in tgt_img_path"),
        ({"tgt_text": [], "tgt_img_path": []}, r"row 1: 0 in tgt_text"),
        ({"tgt_text": ["a", " "], "tgt_img_path": ["", ""]}, r"row 1 \(candidate\): neither text nor picture"),
        ({"qry_text": "<|image_1|>", "qry_img_path": ""}, r"row 1 \(query\): neither text nor picture"),
        ({"qry_text": "<|image_1|> or <|image_2|>?"}, r"row 1 \(query\): the text has 2 placeholders for one picture"),
    ],
)
def test_unusable_evaluation_rows_name_file_and_row(change: dict, message: str, tmp_path: Path, images: str) -> None:
    file = write(tmp_path / "x.jsonl", [EVAL[0], {**EVAL[1], **change}])
    with pytest.raises(SampleError, match=r"x\.jsonl " + message):
        MmebEval([str(file)], images).tasks()


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_missing_column_is_named_with_the_nearest(kind: str, tmp_path: Path, images: str) -> None:
    rows = [{("pos_txt" if key == "pos_text" else key): value for key, value in row.items()} for row in TRAIN]
    file = write(tmp_path / f"x.{kind}", rows)
    with pytest.raises(
        ZooError, match=rf"x\.{kind}.* has no column 'pos_text'; did you mean 'pos_txt'\? \(there are qry,"
    ):
        MmebTrain(str(file), images)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'[{"qry": 1},\n{"qry": 2}]', r"x\.jsonl is one JSON array, not JSONL"),
        ("x.jsonl", b"[1]", r"x\.jsonl has no line that is a JSON object; the first: .*line 1 is no JSON object"),
        ("x.jsonl", b"", "there are no rows in"),
        ("x.jsonl", '{"qry": "a"}\n'.encode("utf-16"), r"x\.jsonl is UTF-16.*UTF-8 is expected"),
        ("x.parquet", b"PAR1 or not", r"x\.parquet can't be read"),
        ("x.parquet", b"", r"x\.parquet can't be read"),
        ("x.csv", b"", "there is no Parquet or JSONL file in"),
    ],
)
def test_unreadable_files_are_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ZooError, match=message):
        Records(tmp_path, ("qry",))


def test_one_odd_line_does_not_close_a_file(tmp_path: Path) -> None:
    """The row is named when it is asked for; the others are read."""
    lines = ['{"qry": "a"}', "", '{"qry"', '{"qry": 2}', "[1]", "[" * 100_000, '{"x": 1}', '{"qry": "b"}']
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    records = Records(tmp_path / "x.jsonl", ("qry",))
    assert [records.value("qry", row) for row in (0, 5, 6)] == ["a", "", "b"] and len(records) == 7
    for row, message in ((1, "line 3 is no JSON"), (2, "row 2: 'qry' is a int"), (3, "line 5 is no JSON object")):
        with pytest.raises(SampleError, match=rf"x\.jsonl {message}"):
            records.value("qry", row)
    with pytest.raises(SampleError, match="line 6 is no JSON"):
        records.value("qry", 4)


def test_what_is_not_there_is_said(tmp_path: Path, images: str) -> None:
    with pytest.raises(ZooError, match=r"there is no file or folder .*gone"):
        MmebTrain(str(tmp_path / "gone"), images)
    file = write(tmp_path / "x.jsonl", TRAIN)
    with pytest.raises(
        ZooError, match=r"images of .*x\.jsonl are not in .*elsewhere, for example .*a\.png.*with `images`"
    ):
        MmebTrain(str(file), str(tmp_path / "elsewhere"))
    with pytest.raises(SampleError, match=r"row 0: 'qry' is a int, not a str"):
        Records(write(tmp_path / "y.jsonl", [{"qry": 1}]), ("qry",)).value("qry", 0)


@pytest.mark.parametrize("name", ["../secret.png", "/secret.png"])
def test_pictures_lie_below_their_folder(name: str, tmp_path: Path, images: str) -> None:
    train = [{**TRAIN[0], "qry_image_path": "a.png"}] * 60 + [{**TRAIN[0], "qry_image_path": name}]
    source = MmebTrain(str(write(tmp_path / "x.jsonl", train)), images)
    with pytest.raises(SampleError, match=rf"x\.jsonl row 60 \(qry, qry_image_path\): '{name}' leads out of"):
        source.draw(60, random.Random(0))
    candidates = {**EVAL[0], "tgt_text": ["", "cat"], "tgt_img_path": [name, ""]}
    with pytest.raises(SampleError, match=rf"y\.jsonl row 0 \(candidate\): '{name}' leads out of"):
        MmebEval([str(write(tmp_path / "y.jsonl", [candidates]))], images).tasks()


def test_a_source_goes_to_workers(tmp_path: Path, images: str) -> None:
    source = MmebTrain(str(write(tmp_path / "x.parquet", TRAIN)), images)
    again = pickle.loads(pickle.dumps(source))
    assert again.draw(1, random.Random(0)) == source.draw(1, random.Random(0))
