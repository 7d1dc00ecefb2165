"""`zoo embed`: every kind of input, what can't be used, and runs that are stopped, continued, or mixed up."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toy
from PIL import Image

import zoo
from zoo import cli
from zoo.bundle import write_bundle
from zoo.errors import NonFiniteError, ZooError
from zoo.vectors import run, shards
from zoo.vectors.files import read_vectors
from zoo.vectors.rows import open_rows

FACTS_OF = run.facts_of


@pytest.fixture
def model(tmp_path: Path) -> str:
    return f"path:{write_bundle(toy.build(tmp_path), toy.recipe(tmp_path), tmp_path / 'model')}"


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_SMALLEST", 4)


def photos(folder: Path, count: int = 6) -> Path:
    """Pictures of different colours and sizes, some in a sub-folder."""
    (folder / "sub").mkdir(parents=True)
    for i in range(count):
        place = folder / ("sub" if i % 3 == 0 else "") / f"{i}.png"
        Image.new("RGB", (8 + i, 30 - i), (40 * i % 255, 10, 255 - 30 * i % 255)).save(place)
    return folder


def jsonl(path: Path, records: list[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), "utf-8")
    return path


def embed(*arguments: object) -> int:
    """The command in this process; errors are raised as they are."""
    os.environ["ZOO_TRACEBACK"] = "1"
    try:
        return cli.main(["embed", *map(str, arguments), "--device", "cpu"])
    finally:
        del os.environ["ZOO_TRACEBACK"]


# ---- inputs and outputs ----------------------------------------------------------------------------------------------


def test_folder(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = photos(tmp_path / "photos"), tmp_path / "out.parquet"
    assert embed(model, folder, "--out", out, "--batch-size", 2) == 0
    assert "6 vectors of 4 values" in capsys.readouterr().out
    index = read_vectors(out)
    assert sorted(index.ids) == ["1.png", "2.png", "4.png", "5.png", "sub/0.png", "sub/3.png"]
    assert [Path(str(p)) for p in index.paths] == [folder / name for name in index.ids]
    expected = zoo.load(model).encode_document([folder / name for name in index.ids])
    np.testing.assert_allclose(index.vectors, expected, atol=1e-6)
    assert not out.with_name("out.parquet.parts").exists()


def test_what_the_file_says_about_itself(model: str, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    embed(model, photos(tmp_path / "photos"), "--out", out, "--instruction", "find red")
    schema = pq.read_schema(out)
    assert schema.field("vector").type == pa.list_(pa.field("element", pa.float32()), 4)
    facts = json.loads(schema.metadata[b"zoo"])
    assert facts["model"] == "model" and facts["side"] == "document" and facts["dim"] == 4
    assert facts["fingerprint"] == zoo.load(model).fingerprint()
    assert facts["settings"]["instruction"] == "find red"
    assert facts["processor"]["class_path"] == "toy.ToyProcessor"


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_tables(model: str, tmp_path: Path, kind: str) -> None:
    folder = photos(tmp_path / "data")
    content = (folder / "1.png").read_bytes()
    records = [
        {"id": "a", "text": "red cat", "image": None},
        {"id": "b", "text": None, "image": "1.png"},
        {"id": "c", "text": "dog", "image": "sub/0.png"},
    ]
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        jsonl(path, records)
    else:
        pq.write_table(pa.Table.from_pylist(records), path, row_group_size=2)
    assert embed(model, path, "--out", tmp_path / "o.parquet", "--side", "query", "--instruction", "find") == 0
    index = read_vectors(tmp_path / "o.parquet")
    things = [{"text": "red cat"}, {"image": content}, {"text": "dog", "image": folder / "sub/0.png"}]
    np.testing.assert_allclose(index.vectors, zoo.load(model).encode_query(things, instruction="find"), atol=1e-6)
    assert list(index.ids) == ["a", "b", "c"] and index.texts[0] == "red cat"
    assert index.paths == [None, str(folder / "1.png"), str(folder / "sub/0.png")]


def test_pictures_inside_a_table(model: str, tmp_path: Path) -> None:
    content = (photos(tmp_path / "p") / "1.png").read_bytes()
    rows = [{"picture": {"bytes": content, "path": "x.png"}}, {"picture": {"bytes": content, "path": None}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert embed(model, tmp_path / "rows.parquet", "--out", tmp_path / "o.parquet", "--image-column", "picture") == 0
    index = read_vectors(tmp_path / "o.parquet")
    np.testing.assert_allclose(index.vectors, zoo.load(model).encode([content] * 2), atol=1e-6)
    assert list(index.ids) == ["0", "1"]


def test_pictures_of_a_table_may_lie_elsewhere(model: str, tmp_path: Path) -> None:
    """Paths in data stay below a folder, and the user says which one."""
    folder = photos(tmp_path / "photos")
    (tmp_path / "lists").mkdir()
    path = jsonl(tmp_path / "lists" / "rows.jsonl", [{"image": "1.png"}, {"image": str(folder / "sub/0.png")}])
    out = tmp_path / "o.parquet"
    assert embed(model, path, "--out", out, "--images", folder) == 0
    expected = zoo.load(model).encode([folder / "1.png", folder / "sub/0.png"])
    np.testing.assert_allclose(read_vectors(out).vectors, expected, atol=1e-6)
    with pytest.raises(ZooError, match="another run: settings was"):
        embed(model, path, "--out", out, "--images", tmp_path)
    with pytest.raises(ZooError, match="none of the 2 rows could be used"):
        embed(model, path, "--out", tmp_path / "b.parquet")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_wrong_folder_of_images_stops_at_once(model: str, tmp_path: Path, kind: str) -> None:
    names = [f"{i}.png" for i in range(60)]
    rows = jsonl(tmp_path / "rows.jsonl", [{"image": name} for name in names])
    if kind == "parquet":
        rows = tmp_path / "rows.parquet"
        pq.write_table(pa.table({"image": names}), rows)
    (tmp_path / "elsewhere").mkdir()
    wanted = (
        rf"the images of .*rows\.{kind} are not in .*elsewhere, for example .*0\.png is not there; .* with --images"
    )
    with pytest.raises(ZooError, match=wanted):
        embed(model, rows, "--out", tmp_path / "o.parquet", "--images", tmp_path / "elsewhere")
    assert not list(tmp_path.glob("o.parquet*"))


def test_a_path_beside_bytes_need_not_be_there(model: str, tmp_path: Path) -> None:
    """As published data sets have it: the path says where the image once lay."""
    content = (photos(tmp_path / "photos") / "1.png").read_bytes()
    rows = pa.array([{"bytes": content, "path": f"/once/{i}.png"} for i in range(3)])
    pq.write_table(pa.table({"image": rows}), tmp_path / "rows.parquet")
    assert embed(model, tmp_path / "rows.parquet", "--out", tmp_path / "o.parquet") == 0


def test_one_missing_image_among_texts_is_one_bad_row(model: str, tmp_path: Path) -> None:
    rows = jsonl(tmp_path / "rows.jsonl", [{"image": "gone.png"}, *[{"text": "a red cat"}] * 3])
    assert embed(model, rows, "--out", tmp_path / "o.parquet") == 3
    assert len(read_vectors(tmp_path / "o.parquet").ids) == 3


def test_columns_are_chosen(model: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [{"text": "red", "caption": "dog", "id": 7}])
    embed(model, path, "--out", tmp_path / "a.parquet")
    embed(model, path, "--out", tmp_path / "b.parquet", "--text-column", "caption")
    a, b = (read_vectors(tmp_path / f"{n}.parquet") for n in "ab")
    np.testing.assert_allclose(a.vectors, zoo.load(model).encode(["red"]), atol=1e-6)
    np.testing.assert_allclose(b.vectors, zoo.load(model).encode(["dog"]), atol=1e-6)
    assert list(a.ids) == ["7"]


@pytest.mark.usefixtures("small_shards")
def test_npy(model: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [{"text": f"red {'cat ' * (i % 5)}", "id": f"r{i}"} for i in range(11)])
    assert embed(model, path, "--out", tmp_path / "v.npy") == 0
    vectors = np.load(tmp_path / "v.npy", allow_pickle=False)
    expected = zoo.load(model).encode([f"red {'cat ' * (i % 5)}" for i in range(11)])
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    lines = [json.loads(line) for line in (tmp_path / "v.npy.ids.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"r{i}" for i in range(11)]
    assert json.loads((tmp_path / "v.npy.json").read_text())["model"] == "model"
    assert embed(model, path, "--out", tmp_path / "v.npy") == 0  # complete already
    with pytest.raises(ZooError, match="another run: side was document, is query"):
        embed(model, path, "--out", tmp_path / "v.npy", "--side", "query")


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (lambda p: p / "nowhere", [], "nowhere' matches no file"),
        (lambda p: (p / "empty").mkdir() or p / "empty", [], "no images in"),
        (lambda p: jsonl(p / "r.csv", []), [], "a folder of images, .parquet or .jsonl files"),
        (lambda p: jsonl(p / "r.jsonl", []), [], "has no rows"),
        (lambda p: jsonl(p / "r.jsonl", [{"a": 1}]), [], "no column 'text' or 'image'.*there are a"),
        (
            lambda p: jsonl(p / "r.jsonl", [{"caption": "x"}]),
            ["--text-column", "captoin"],
            "'captoin'; did you mean 'capt",
        ),
        (lambda p: jsonl(p / "r.parquet", ["no"]), [], "can't be read as Parquet"),
        (lambda p: photos(p / "f"), ["--text-column", "x"], "columns and --images belong to"),
        (lambda p: photos(p / "f"), ["--batch-size", "0"], "at least 1"),
        (lambda p: photos(p / "f"), ["--out", "x.csv"], r"ends in \.parquet or \.npy"),
    ],
)
def test_inputs_that_cannot_be(
    model: str, tmp_path: Path, prepare: Callable[[Path], Path], arguments: list[str], message: str
) -> None:
    with pytest.raises(ZooError, match=message):
        embed(model, prepare(tmp_path), "--out", tmp_path / "o.parquet", *arguments)
    assert not (tmp_path / "o.parquet").exists()


# ---- rows that can't be used -----------------------------------------------------------------------------------------


def broken_rows(folder: Path) -> Path:
    (photos(folder) / "broken.png").write_bytes((folder / "1.png").read_bytes()[:50])
    records = [
        {"id": "good", "text": "red", "image": "1.png"},
        {"id": "gone", "image": "nowhere.png"},
        {"id": "cut", "text": "cat", "image": "broken.png"},
        {"id": "blank", "text": "  "},
        {"id": "nothing"},
        '{"id": "half", "te',
        "[1]",
        {"id": "number", "text": 3},
        {"id": "out", "image": "../secret.png"},
        {"id": "last", "text": "dog"},
    ]
    return jsonl(folder / "rows.jsonl", records)


@pytest.mark.usefixtures("small_shards")
def test_bad_rows_are_left_out_listed_and_counted(model: str, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "o.parquet"
    rows = broken_rows(tmp_path / "data")
    assert embed(model, rows, "--out", out, "--batch-size", 3) == 3
    assert "8 rows could not be used" in capsys.readouterr().out
    index = read_vectors(out)
    assert list(index.ids) == ["good", "last"]
    np.testing.assert_allclose(index.vectors[1], zoo.load(model).encode("dog"), atol=1e-6)
    bad = [json.loads(line) for line in (tmp_path / "o.parquet.bad.jsonl").read_text().splitlines()]
    assert [(b["row"], b["id"]) for b in bad] == [
        (1, "gone"), (2, "cut"), (3, "blank"), (4, "nothing"), (5, "5"), (6, "6"), (7, "number"), (8, "out"),
    ]  # fmt: skip
    for record, word in zip(
        bad,
        ["nowhere.png", "broken.png", "empty", "neither", "no JSON", "no JSON obj", "int", "'../secret.png' leads out"],
        strict=True,
    ):
        assert word in record["error"], record
    assert embed(model, rows, "--out", out) == 3  # said again by the same command


def test_raise_stops_at_the_first(model: str, tmp_path: Path) -> None:
    rows = jsonl(tmp_path / "rows.jsonl", [{"text": "a"}, {"id": "gone", "image": "nowhere.png"}, {"text": ""}])
    with pytest.raises(ZooError, match=r"row 1 'gone'.*nowhere\.png"):
        embed(model, rows, "--out", tmp_path / "o.parquet", "--on-bad", "raise")
    assert not (tmp_path / "o.parquet").exists()


def test_nothing_usable_is_an_error(model: str, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=r"none of the 2 rows could be used; the first, 'a'.*empty"):
        embed(
            model,
            jsonl(tmp_path / "r.jsonl", [{"id": "a", "text": ""}, {"text": " "}]),
            "--out",
            tmp_path / "o.parquet",
        )


def test_values_that_are_not_finite_stop_the_run(tmp_path: Path) -> None:
    module = toy.build(tmp_path)
    module.linear.weight.data[:, 0] = 3e38  # finite, and its sums are not
    write_bundle(module, toy.recipe(tmp_path), tmp_path / "model")
    rows = jsonl(tmp_path / "r.jsonl", [{"id": "a", "text": "red red red"}])
    with pytest.raises(NonFiniteError, match="row 0 'a'"):
        embed(f"path:{tmp_path / 'model'}", rows, "--out", tmp_path / "o.parquet")


# ---- stopped, continued, mixed up ------------------------------------------------------------------------------------


def many(tmp_path: Path, count: int = 30) -> Path:
    return jsonl(
        tmp_path / "rows.jsonl", [{"text": " ".join(toy.WORDS[: i % 6 + 1]) + " cat" * (i % 4)} for i in range(count)]
    )


@pytest.mark.usefixtures("small_shards")
def test_a_stopped_run_goes_on_without_doing_anything_twice(
    model: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    rows, out = many(tmp_path), tmp_path / "o.parquet"
    embed(model, rows, "--out", tmp_path / "unbroken.parquet")
    rendered: list[str] = []
    row = toy.ToyProcessor.row

    def counted(self: Any, item: Any, name: str, query: bool) -> Any:
        if not name.startswith(("probe", "item")):
            rendered.append(name)
            if len(rendered) == 18:
                raise KeyboardInterrupt
        return row(self, item, name, query)

    monkeypatch.setattr(toy.ToyProcessor, "row", counted)
    assert embed(model, rows, "--out", out, "--batch-size", 4) == 130
    assert not out.exists()
    kept = sorted(p.name for p in (tmp_path / "o.parquet.parts").glob("*.parquet"))
    assert kept == [f"part-{k:05d}.parquet" for k in range(4)]
    rendered[:] = ["x"] * 100
    capsys.readouterr()
    assert embed(model, rows, "--out", out, "--batch-size", 4) == 0
    assert "16 of 30 rows had been done before" in capsys.readouterr().out
    assert len(rendered) == 100 + 30 - 16
    whole, continued = read_vectors(tmp_path / "unbroken.parquet"), read_vectors(out)
    assert continued.ids == whole.ids
    np.testing.assert_allclose(continued.vectors, whole.vectors, atol=1e-6)


KILLED = """
import sys, time
import toy
from zoo import cli
from zoo.vectors import run, shards
shards._SMALLEST = 4
row = toy.ToyProcessor.row
toy.ToyProcessor.row = lambda *a: (time.sleep(0.02), row(*a))[1]
sys.exit(cli.main(["embed", *sys.argv[1:]]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
@pytest.mark.usefixtures("small_shards")
def test_kill_at_any_moment(model: str, tmp_path: Path) -> None:
    rows, out = many(tmp_path, 60), tmp_path / "o.parquet"
    embed(model, rows, "--out", tmp_path / "unbroken.parquet")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", KILLED, model, str(rows), "--out", str(out), "--device", "cpu"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("o.parquet.parts/part-*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.glob("o.parquet.parts/part-*.parquet")}
    assert len(kept) >= 3
    assert embed(model, rows, "--out", out) == 0
    np.testing.assert_allclose(
        read_vectors(out).vectors, read_vectors(tmp_path / "unbroken.parquet").vectors, atol=1e-6
    )


def stop_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Have the disk fill up while shard `count` is written."""
    save = shards.Shards.save
    seen: list[int] = []

    def failing(self: Any, *arguments: Any) -> None:
        seen.append(1)
        if len(seen) > count:
            raise ZooError("stopped")
        save(self, *arguments)

    monkeypatch.setattr(shards.Shards, "save", failing)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--side", "query"], "side was document, is query"),
        (["--instruction", "find"], "settings was"),
    ],
)
def test_parts_of_another_run_are_refused(model: str, tmp_path: Path, change: list[str], message: str) -> None:
    rows, out = many(tmp_path), tmp_path / "o.parquet"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(ZooError, match="stopped"):
            embed(model, rows, "--out", out)
    with pytest.raises(ZooError, match=rf"o\.parquet\.parts belongs to.*another run: {message}.*--restart"):
        embed(model, rows, "--out", out, *change)
    assert embed(model, rows, "--out", out, "--restart", *change) == 0
    with pytest.raises(ZooError, match=r"o\.parquet is the result of another run"):
        embed(model, rows, "--out", out)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("name", ["part-00000.parquet", "part-00001.bad.jsonl", "run.json"])
def test_a_damaged_part_says_how_to_start_again(model: str, tmp_path: Path, name: str) -> None:
    rows, out = many(tmp_path), tmp_path / "o.parquet"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(ZooError, match="stopped"):
            embed(model, rows, "--out", out)
    (tmp_path / "o.parquet.parts" / name).write_bytes(b"\xff no")
    with pytest.raises(ZooError, match=rf"{re.escape(name)} can't be read \(.+\); discard .* --restart"):
        embed(model, rows, "--out", out)
    assert embed(model, rows, "--out", out, "--restart") == 0


@pytest.mark.parametrize(("out", "damaged"), [("o.npy", "o.npy.json"), ("o.parquet", "o.parquet")])
def test_a_damaged_result_says_how_to_start_again(model: str, tmp_path: Path, out: str, damaged: str) -> None:
    rows = many(tmp_path)
    assert embed(model, rows, "--out", tmp_path / out) == 0
    content = (tmp_path / damaged).read_bytes()
    (tmp_path / damaged).write_bytes(content[: len(content) // 2])
    with pytest.raises(ZooError, match=rf"{re.escape(damaged)} can't be read .*--restart"):
        embed(model, rows, "--out", tmp_path / out)
    assert embed(model, rows, "--out", tmp_path / out, "--restart") == 0


def test_a_changed_input_or_model_is_noticed(model: str, tmp_path: Path) -> None:
    rows, out = many(tmp_path), tmp_path / "o.parquet"
    embed(model, rows, "--out", out)
    rows.write_text(rows.read_text() + '{"text": "one more"}\n')
    with pytest.raises(ZooError, match="another run: input was"):
        embed(model, rows, "--out", out)
    folder = photos(tmp_path / "photos")
    embed(model, folder, "--out", tmp_path / "p.parquet")
    Image.new("RGB", (3, 3)).save(folder / "new.png")
    with pytest.raises(ZooError, match="another run: input was"):
        embed(model, folder, "--out", tmp_path / "p.parquet")
    write_bundle(toy.build(tmp_path, seed=9), toy.recipe(tmp_path), tmp_path / "model")
    with pytest.raises(ZooError, match="another run: fingerprint was"):
        embed(model, many(tmp_path), "--out", out)


def test_a_foreign_file_is_not_overwritten(model: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "mine.parquet")
    np.save(tmp_path / "mine.npy", np.zeros(3))
    for name in ("mine.parquet", "mine.npy"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(ZooError, match="not written by zoo embed"):
            embed(model, many(tmp_path), "--out", tmp_path / name)
        assert (tmp_path / name).read_bytes() == before


def test_no_space_left(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(ZooError, match=r"no space left to write .*part-00000\.parquet.*another disk"):
        embed(model, many(tmp_path), "--out", tmp_path / "o.parquet")
    assert not [p for p in tmp_path.rglob("*") if "partial" in p.name]


# ---- rows, read from any shard on ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "folder"])
def test_shards_can_be_read_alone(tmp_path: Path, kind: str) -> None:
    records = [{"id": f"r{i}", "text": f"text {i}"} for i in range(23)]
    if kind == "jsonl":
        source = jsonl(tmp_path / "r.jsonl", records)
        source.write_text(source.read_text().replace("\n", "\n\n", 5))  # blank lines are no rows
    elif kind == "parquet":
        source = tmp_path / "r.parquet"
        pq.write_table(pa.Table.from_pylist(records), source, row_group_size=4)
    else:
        source = photos(tmp_path / "f", 23)
    rows = open_rows(source)
    assert len(rows) == 23
    whole = dict(rows.shards(5, range(5)))
    assert [len(whole[k]) for k in range(5)] == [5, 5, 5, 5, 3]
    assert [row.number for k in range(5) for row in whole[k]] == list(range(23))
    assert len({row.id for k in range(5) for row in whole[k]}) == 23
    for k, part in rows.shards(5, {3, 1}):
        assert [r.id for r in part] == [r.id for r in whole[k]]


@pytest.mark.filterwarnings("ignore:a text of")
def test_texts_that_are_cut_are_counted_once_also_beside_bad_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": "a cat"}, {"text": "word " * 10_000}, {"text": " "}, {"text": "dog " * 300}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    assert embed("clip-emoji", tmp_path / "in.jsonl", "--out", tmp_path / "out.parquet") == 3
    out = capsys.readouterr().out
    assert "2 texts were longer than the model takes, and were cut" in out and "1 rows could not be used" in out


@pytest.mark.parametrize("stopped", [False, True])
def test_results_of_the_first_version_are_gone_on_with(
    stopped: bool, model: str, tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It told classes apart by their short names alone: fingerprint and processor of classes that are not the zoo's were
    others then.
    """
    folder, out = photos(tmp_path / "photos"), tmp_path / "out.parquet"
    embedder, rows = zoo.load(model, device="cpu"), open_rows(folder)
    assert embedder.former_fingerprint() != embedder.fingerprint()
    with monkeypatch.context() as before:
        before.setattr(run, "facts_of", lambda *args, **_: FACTS_OF(*args, former=True))
        if stopped:
            before.setattr(shards.Shards, "finish", lambda self: None)
        run.embed_rows(embedder, rows, out)
    assert out.exists() is not stopped
    result = run.embed_rows(embedder, rows, out)
    assert (result.rows, result.bad, result.before) == (6, 0, 6)
    assert embedder.gave(read_vectors(out).facts["fingerprint"])
    other = zoo.load(f"path:{write_bundle(toy.build(tmp_path, seed=5), toy.recipe(tmp_path), tmp_path / 'other')}")
    with pytest.raises(ZooError, match=r"is the result of another run: .*fingerprint was"):
        run.embed_rows(other, rows, out)
