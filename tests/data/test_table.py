"""Image-text pairs in Parquet files and in data sets saved by Hugging Face `datasets`."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import sys
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pair_files import picture

from zoo.data.captions import CaptionFilter
from zoo.data.left_out import LeftOutWarning
from zoo.data.sampler import HomogeneousBatches
from zoo.data.source import Source
from zoo.data.sources import hf_dataset, parquet_rows
from zoo.data.sources.parquet_rows import OPEN_FILES, ParquetRows, SlowRowsWarning
from zoo.data.sources.table import TablePairs
from zoo.errors import SampleError, UnknownNameError, ZooError
from zoo.types import Item, Sample

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table(count: int = 10, first: int = 0, **columns: object) -> pa.Table:
    numbers = range(first, first + count)
    columns = {
        "image": [picture(n) for n in numbers],
        "caption": [f"a picture of number {n}" for n in numbers],
        **columns,
    }
    return pa.table(columns)


def parquet(path: Path, content: pa.Table, rows: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path, row_group_size=rows)
    return path


def saved(folder: Path, *shards: pa.Table, state: dict | None = None, file_format: bool = False) -> Path:
    """As `datasets.Dataset.save_to_disk` writes it: streaming format, and `state.json` with the names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{n:05d}-of-{len(shards):05d}.arrow" for n in range(len(shards))]
    for name, content in zip(names, shards, strict=True):
        make = pa.ipc.new_file if file_format else pa.ipc.new_stream
        with make(str(folder / name), content.schema) as writer:
            writer.write_table(content, max_chunksize=4)
    whole = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "x", "_split": "train"}
    (folder / "state.json").write_text(json.dumps({**whole, **(state or {})}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def draw(source: Source, index: int = 0, seed: int = 0) -> Sample:
    return source.draw(index, random.Random(seed))


def quiet(*args: object, **settings: object) -> TablePairs:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return TablePairs(*args, **settings)


@pytest.mark.parametrize("stored", ["parquet", "arrow", "arrow file"])
def test_rows_of_several_files_in_any_order(stored: str, tmp_path: Path) -> None:
    if stored == "parquet":
        for n in range(3):
            parquet(tmp_path / "pets" / f"{n}.parquet", table(10, n * 10))
        found = quiet(str(tmp_path / "pets"))
    else:
        content = (table(10), table(10, 10), table(10, 20))
        found = quiet(str(saved(tmp_path / "pets", *content, file_format=stored == "arrow file")))
    assert (found.name, len(found)) == ("pets", 30) and isinstance(found, Source)
    order = random.Random(0).sample(range(30), 30)
    for number in order:
        sample = draw(found, number)
        assert sample.views["query"].images == (picture(number),)
        assert sample.views["target"] == Item(text=f"a picture of number {number}")
        assert sample.id.startswith("pets/") and sample.id.endswith(f"/{number % 10}")
    assert len({draw(found, n).id for n in range(30)}) == len({draw(found, n).label for n in range(30)}) == 30
    copy = pickle.loads(pickle.dumps(found))
    assert [draw(copy, n) for n in range(30)] == [draw(found, n) for n in range(30)]
    assert found.duplicate_key is None


def test_a_pickled_source_travels_without_its_rows(tmp_path: Path) -> None:
    long = ["x " * 5000] * 10
    found = [
        quiet(str(saved(tmp_path / "a", table(caption=long)))),
        quiet(str(parquet(tmp_path / "b.parquet", table()))),
    ]
    for source in found:
        draw(source)
        assert len(pickle.dumps(source)) < 5000


@pytest.mark.parametrize(
    "images",
    [
        pa.array([picture(n) for n in range(10)], pa.large_binary()),
        pa.array([{"bytes": picture(n), "path": "x.png"} for n in range(10)], STRUCT),
        pa.array([{"bytes": picture(n), "path": None} for n in range(10)], STRUCT),
        pa.array([{"bytes": picture(n)} for n in range(10)]),
    ],
)
def test_ways_to_keep_bytes(images: pa.Array, tmp_path: Path) -> None:
    for place in (parquet(tmp_path / "a.parquet", table(image=images)), saved(tmp_path / "hf", table(image=images))):
        assert draw(quiet(str(place)), 7).views["query"].images == (picture(7),)


@pytest.mark.parametrize("kind", ["text", "struct", "dictionary"])
def test_paths(kind: str, tmp_path: Path) -> None:
    names = [f"{n // 2}.png" for n in range(10)]
    columns = {
        "text": pa.array(names),
        "struct": pa.array([{"bytes": None, "path": name} for name in names], STRUCT),
        "dictionary": pa.array(names).dictionary_encode(),
    }
    file = str(parquet(tmp_path / "t" / "a.parquet", table(image=columns[kind])))
    found = quiet(file)
    assert draw(found, 7).views["query"].images == (tmp_path / "t" / "3.png",)
    assert draw(found, 6).label == draw(found, 7).label != draw(found, 8).label
    for outside in ("../3.png", "/3.png"):
        column = (
            pa.array([outside] * 10) if kind != "struct" else pa.array([{"bytes": None, "path": outside}] * 10, STRUCT)
        )
        hostile = quiet(str(parquet(tmp_path / "t" / "b.parquet", table(image=column))))
        with pytest.raises(SampleError, match=rf"b/7 \(image\): '{outside}' leads out of"):
            draw(hostile, 7)
    other = quiet(file, images=str(tmp_path / "pictures"))
    assert draw(other, 7).views["query"].images == (tmp_path / "pictures" / "3.png",)
    if kind != "struct":  # paths name pictures, so duplicates are known without reading one
        keys = [found.duplicate_key(n) for n in range(10)]
        assert keys == [keys[n // 2 * 2] for n in range(10)] and len(set(keys)) == 5
        assert all(len({d.index // 2 for d in batch}) == 5 for batch in HomogeneousBatches([found], 5))


def test_an_image_id(tmp_path: Path) -> None:
    found = quiet(str(parquet(tmp_path / "a.parquet", table(number=[n % 5 for n in range(10)]))), image_id="number")
    assert draw(found, 2).label == draw(found, 7).label != draw(found, 3).label
    assert [found.duplicate_key(n) == found.duplicate_key(2) for n in range(10)] == [n % 5 == 2 for n in range(10)]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize("kind", ["parquet", "hf"])
def test_a_table_whose_name_is_not_utf_8_is_one_line(kind: str, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    odd.mkdir()
    place = tmp_path / "a.parquet" if kind == "parquet" else tmp_path / "saved"
    place = parquet(place, table(3)) if kind == "parquet" else saved(place, table(3))
    shutil.move(place, odd)
    with pytest.raises(ZooError, match="can't be read"):
        TablePairs(str(odd / place.name))


@pytest.mark.parametrize("kind", ["parquet", "hf"])
def test_a_text_that_is_not_utf_8_is_one_bad_row(kind: str, tmp_path: Path) -> None:
    """Arrow does not check it."""
    texts = pa.array([b"one two", b"caf\xe9", b"three four"], pa.binary()).view(pa.string())
    content = table(3, caption=texts)
    place = parquet(tmp_path / "a.parquet", content) if kind == "parquet" else saved(tmp_path / "saved", content)
    found = quiet(str(place))
    with pytest.raises(SampleError, match="a text is not UTF-8"):
        draw(found, 1)
    assert [draw(found, n).views["target"].text for n in (0, 2)] == ["one two", "three four"]
    assert list(found.captions()) == [("one two",), (), ("three four",)]


@pytest.mark.parametrize("kind", ["parquet", "hf"])
@pytest.mark.parametrize(
    "ids", [pa.array(["a", None, "a", None, "", ""]), pa.array([1.0, None, 1.0, None, float("nan"), float("nan")])]
)
def test_rows_without_an_id_are_images_of_their_own(ids: pa.Array, kind: str, tmp_path: Path) -> None:
    """Null, NaN and "" name nothing: the content tells, as where there is no such column."""
    content = table(6, number=ids)
    place = parquet(tmp_path / "a.parquet", content) if kind == "parquet" else saved(tmp_path / "saved", content)
    found = quiet(str(place), image_id="number")
    labels, keys = [draw(found, n).label for n in range(6)], [found.duplicate_key(n) for n in range(6)]
    for several in (labels, keys):
        assert several[0] == several[2] and len(set(several)) == 5
    assert labels[1] == draw(quiet(str(place)), 1).label


@pytest.mark.parametrize("type_", [pa.list_(pa.string()), pa.large_list(pa.string())])
def test_lists_of_captions(type_: pa.DataType, tmp_path: Path) -> None:
    captions = pa.array([["x", " y ", None, ""]] + [["z"]] * 9, type_)
    file = str(parquet(tmp_path / "a.parquet", table(caption=captions)))
    assert {draw(quiet(file), 0, seed).views["target"].text for seed in range(20)} == {"x", "y"}
    assert {i.text for i in draw(quiet(file, captions=2), 0).views["target"]} == {"x", "y"}


def test_other_columns_and_views(tmp_path: Path) -> None:
    content = table().rename_columns(["jpg", "text"])
    found = quiet(str(parquet(tmp_path / "a.parquet", content)), "jpg", "text", views=("image", "text"), name="n")
    sample = draw(found, 4)
    assert (sample.id, list(sample.views), sample.source) == ("n/a/4", ["image", "text"], "n")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": "imgae"}, r"unknown column 'imgae'; did you mean 'image'\? \(.* has image, caption, n\)"),
        ({"caption": "text"}, r"unknown column 'text' \(.* has image, caption, n\)"),
        ({"image_id": "key"}, r"unknown column 'key'"),
        ({"caption": "n"}, r"column 'n' of .* holds int64, no captions \(texts or lists of texts\)"),
        ({"caption": "image"}, r"column 'image' of .* holds binary, no captions"),
        ({"image": "n"}, r"column 'n' of .* holds int64, no pictures \(bytes, paths, or structs"),
    ],
)
@pytest.mark.parametrize("stored", ["parquet", "arrow"])
def test_columns_that_do_not_fit(settings, message: str, stored: str, tmp_path: Path) -> None:
    content = table(n=list(range(10)))
    place = parquet(tmp_path / "a.parquet", content) if stored == "parquet" else saved(tmp_path / "hf", content)
    with pytest.raises(ZooError, match=message):
        TablePairs(str(place), **settings)


def test_a_column_that_one_of_the_files_lacks(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", table())
    parquet(tmp_path / "b.parquet", table().rename_columns(["image", "txt"]))
    with pytest.raises(UnknownNameError, match=r"unknown column 'caption' \(.*b.parquet has image, txt\)"):
        TablePairs(str(tmp_path))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [None]}, r"^a/a/0 \(image\): there is no picture$"),
        ({"image": [b""]}, r"^a/a/0 \(image\): the picture is empty \(0 bytes\)$"),
        ({"image": [""]}, r"^a/a/0 \(image\): there is no picture$"),
        ({"image": pa.array([{"bytes": None, "path": None}], STRUCT)}, "there is no picture"),
        ({"image": pa.array([{"bytes": b"", "path": "x"}], STRUCT)}, r"is empty \(0 bytes\)"),
        ({"caption": [" "]}, r"^a/a/0 \(caption\): the caption is empty$"),
        ({"caption": pa.array([None], pa.string())}, "the caption is empty"),
        ({"caption": pa.array([[]], pa.list_(pa.string()))}, "the caption is empty"),
    ],
)
def test_rows_that_can_not_be_used(columns, message: str, tmp_path: Path) -> None:
    if columns.get("image") == [None]:
        columns = {"image": pa.array([None], pa.binary())}
    file = parquet(tmp_path / "a.parquet", table(1, **columns))
    with pytest.raises(SampleError, match=message):
        draw(quiet(str(file)))


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(ZooError, match=r"a.parquet can't be read"):
        TablePairs(str(tmp_path / "a.parquet"))
    with pytest.raises(ZooError, match="matches no file"):
        TablePairs(str(tmp_path / "b-{0..3}.parquet"))
    with pytest.raises(ZooError, match="has no usable row: it is empty"):
        TablePairs(str(parquet(tmp_path / "c.parquet", table(0).cast(table(1).schema))))


def test_damage_inside_a_file_names_the_row_group(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", table(40), rows=20)
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 200] = bytes(200)
    path.write_bytes(content)
    found = quiet(str(path))
    assert draw(found, 3).views["target"].text == "a picture of number 3"
    with pytest.raises(SampleError, match=r"a.parquet, row group 1, can't be read"):
        draw(found, 25)


def test_memory_is_bounded_and_files_are_closed(tmp_path: Path) -> None:
    files = [parquet(tmp_path / f"{n:03d}.parquet", table(4, n * 4), rows=2) for n in range(OPEN_FILES + 3)]
    rows = ParquetRows(files, ["image", "caption"], cache_bytes=2000)
    for number in range(len(rows)):
        assert rows.row(number)["image"] == picture(number)
        assert len(rows._read) == 1 or sum(part.nbytes for part in rows._read.values()) <= 2000
    assert len(rows._open) <= OPEN_FILES and len(rows._read) > 1


def test_large_row_groups_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_rows, "SLOW_BYTES", 1000)
    file = str(parquet(tmp_path / "a.parquet", table(100), rows=50))
    quiet(file)  # all of it fits into memory
    with pytest.warns(SlowRowsWarning, match=r"row groups of .* MB.*zoo data shard"):
        TablePairs(file, cache_mb=0)


@pytest.mark.parametrize("stored", ["parquet", "arrow"])
def test_the_caption_filter(stored: str, tmp_path: Path) -> None:
    captions = pa.array([["a stock photo"], ["a stock photo", "a red car"], ["short"], None, ["a big dog"]])
    content = table(5, caption=captions, number=[0, 1, 2, 3, 1])
    place = parquet(tmp_path / "t.parquet", content) if stored == "parquet" else saved(tmp_path / "t", content)
    with pytest.warns(LeftOutWarning, match=r"has 2 usable records; left out: 2 captions of more than 1 pictures"):
        found = TablePairs(str(place), caption_filter=CaptionFilter(max_images=1))
    assert [draw(found, n).views["target"].text for n in range(len(found))] == ["a red car", "a big dog"]
    assert found.left_out.counts["records of which no caption is left"] == 3
    assert [draw(found, n).views["query"].images[0] for n in range(2)] == [picture(1), picture(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = TablePairs(str(place), caption_filter=CaptionFilter(max_images=1), image_id="number")
    assert known.duplicate_key(0) == known.duplicate_key(1), "keys belong to the rows that are left"


def test_splits_are_chosen(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    saved(tmp_path / "d" / "train", table())
    with pytest.raises(ZooError, match=r"d holds the splits train, test: give the folder of one, such as .*d/train"):
        TablePairs(str(tmp_path / "d"))
    assert len(quiet(str(tmp_path / "d" / "train"))) == 10


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"_indices_files": [{"filename": "indices.arrow"}]}, r"keeps the order of its rows apart.*flatten_indices"),
        ({"_indices_data_files": [{"filename": "indices.arrow"}]}, "flatten_indices"),
        ({"_data_files": []}, "names no Arrow files"),
        ({"_data_files": [{"filename": "../../secret.arrow"}]}, "names no Arrow files beside it"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, r"gone.arrow can't be read as an Arrow file"),
        ({"_data_files": ["x"]}, "names no Arrow files"),
    ],
)
def test_saved_data_sets_that_can_not_be_read(state, message: str, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=message):
        TablePairs(str(saved(tmp_path / "d", table(), state=state)))


def test_damaged_files_of_a_saved_data_set(tmp_path: Path) -> None:
    folder = saved(tmp_path / "d", table())
    next(folder.glob("*.arrow")).write_bytes(b"nonsense")
    with pytest.raises(ZooError, match="can't be read as an Arrow file"):
        TablePairs(str(folder))
    for content in ("[]", "{", "\x00"):
        (folder / "state.json").write_text(content)
        with pytest.raises(ZooError, match=r"state.json (can't be read|is no JSON object|is UTF-16)"):
            hf_dataset.arrow_files(folder)
