"""What `zoo embed` makes of inputs as people have them: odd items, several files, files that rows name."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import toy
from PIL import Image

import zoo
from zoo import cli
from zoo.bundle import write_bundle
from zoo.data.text_files import JsonLines
from zoo.errors import ZooError
from zoo.vectors import shards
from zoo.vectors.files import read_vectors
from zoo.vectors.rows import open_rows

LINE = "on\u2028two\x0blines\x85here"


@pytest.fixture
def model(tmp_path: Path) -> str:
    return f"path:{write_bundle(toy.build(tmp_path), toy.recipe(tmp_path), tmp_path / 'model')}"


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_SMALLEST", 4)


def picture(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 7), colour).save(path, "PNG")
    return path


def jsonl(path: Path, *records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), "utf-8")
    return path


def embed(*arguments: object) -> int:
    os.environ["ZOO_TRACEBACK"] = "1"
    try:
        return cli.main(["embed", *map(str, arguments), "--device", "cpu"])
    finally:
        del os.environ["ZOO_TRACEBACK"]


def bad(out: Path) -> dict[str, str]:
    """Id -> error of what could not be used."""
    lines = JsonLines(Path(f"{out}.bad.jsonl"))
    return {lines[row]["id"]: lines[row]["error"] for row in range(len(lines))}


# ---- odd items -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [".parquet", ".npy"])
def test_half_a_surrogate_pair_anywhere_is_one_bad_row(model: str, tmp_path: Path, kind: str) -> None:
    rows = jsonl(
        tmp_path / "r.jsonl",
        {"id": "a", "text": "red"},
        {"id": "text", "text": "cut \ud83d"},
        {"id": "id\ud83d", "text": "dog"},
        {"id": "path", "image": "\ud83d.png"},
        {"id": "z", "text": "cat"},
    )
    out = tmp_path / f"o{kind}"
    assert embed(model, rows, "--out", out) == 3
    assert set(bad(out)) == {"text", "id\ud83d", "path"}
    assert all("not valid Unicode" in error and "\\ud83d" in error for error in bad(out).values())
    vectors = np.load(out) if kind == ".npy" else read_vectors(out).vectors
    np.testing.assert_allclose(vectors, zoo.load(model).encode(["red", "cat"]), atol=1e-6)


def test_an_instruction_that_is_no_unicode_is_one_line(model: str, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="the instruction is not valid Unicode"):
        embed(model, jsonl(tmp_path / "r.jsonl", {"text": "a"}), "--out", tmp_path / "o.npy", "--instruction", "\udce9")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_file_name_that_is_not_utf_8(model: str, tmp_path: Path, capsys: Any) -> None:
    good = picture(tmp_path / "f" / "ok.png")
    shutil.copy(good, os.fsencode(tmp_path / "f") + b"/caf\xe9.png")
    out = tmp_path / "o.parquet"
    assert embed(model, tmp_path / "f", "--out", out) == 3
    assert list(read_vectors(out).ids) == ["ok.png"]
    assert list(bad(out)) == ["caf\udce9.png"] and "rename the file" in bad(out)["caf\udce9.png"]
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9"))
    shutil.copytree(tmp_path / "f", odd)
    with pytest.raises(ZooError, match=r"none of the 2 rows could be used; .*not valid Unicode"):
        embed(model, odd, "--out", tmp_path / "p.parquet")


def test_a_file_that_vanishes_after_it_was_listed(model: str, tmp_path: Path, monkeypatch: Any) -> None:
    picture(tmp_path / "f" / "a.png")
    gone = [tmp_path / "f" / "b.png"]
    from zoo.data.sources import folder

    monkeypatch.setattr(folder, "list_images", lambda *a, of=folder.list_images: [*of(*a), *gone])
    assert embed(model, tmp_path / "f", "--out", tmp_path / "o.parquet") == 3
    assert "does not exist" in bad(tmp_path / "o.parquet")["b.png"]


def test_images_of_other_formats_are_named_and_counted(model: str, tmp_path: Path) -> None:
    picture(tmp_path / "f" / "ok.png")
    for name in ("IMG_1.JXL", "sub/raw.cr2", "notes.md", ".hidden.jxl"):
        (tmp_path / "f" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "f" / name).write_bytes(b"\0\0\0\x0cJXL ")
    assert embed(model, tmp_path / "f", "--out", tmp_path / "o.parquet") == 3
    assert set(bad(tmp_path / "o.parquet")) == {"IMG_1.JXL", "sub/raw.cr2"}


def test_rows_without_an_id_are_called_by_their_number(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b", "c", "d"], "id": [1.0, None, float("nan"), 4.0]})
    pq.write_table(table, tmp_path / "r.parquet")
    ((_, rows),) = open_rows(tmp_path / "r.parquet").shards(10, {0})
    assert [row.id for row in rows] == ["1.0", "1", "2", "4.0"]


def test_an_image_that_says_nothing_is_none(model: str, tmp_path: Path) -> None:
    empty: list[Any] = ["", None, [], [""], {"bytes": None, "path": None}, {}]
    rows = jsonl(tmp_path / "r.jsonl", *({"id": str(n), "text": "red", "image": e} for n, e in enumerate(empty)))
    assert embed(model, rows, "--out", tmp_path / "o.parquet") == 0
    assert len(read_vectors(tmp_path / "o.parquet").ids) == len(empty)


def test_what_steers_a_terminal_is_escaped(model: str, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """Names of files and captions may hold anything."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    picture(tmp_path / "f" / "a\033]0;b\007.png")
    assert cli.main(["search", model, "red", "--in", str(tmp_path / "f"), "--device", "cpu"]) == 0
    (tmp_path / "f" / "a\033]0;b\007.png").write_bytes(b"no image")
    assert cli.main(["search", model, "red", "--in", str(tmp_path / "f"), "--device", "cpu"]) == 2
    picture(tmp_path / "f" / "ok.png")
    assert cli.main(["search", model, "red", "--in", str(tmp_path / "f"), "--device", "cpu"]) == 3
    said = capsys.readouterr()
    assert "a\\x1b]0;b\\x07.png" in said.out and "a\\x1b]0;b\\x07.png" in said.err
    assert not {"\033", "\007"} & set(said.out + said.err)


def test_a_folder_of_tables_is_told_apart(model: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "r.parquet")
    with pytest.raises(ZooError, match=r"no images in .*; for its tables, give '.*/\*\.parquet'"):
        open_rows(tmp_path)


def test_a_text_of_a_table_that_is_not_utf_8_is_one_bad_row(model: str, tmp_path: Path) -> None:
    texts = pa.array([b"red", b"caf\xe9", b"dog"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": texts}), tmp_path / "r.parquet")
    assert embed(model, tmp_path / "r.parquet", "--out", tmp_path / "o.parquet") == 3
    assert list(read_vectors(tmp_path / "o.parquet").ids) == ["0", "2"]
    assert "not UTF-8" in bad(tmp_path / "o.parquet")["1"]


def test_a_damaged_row_group_is_so_many_bad_rows(model: str, tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    pq.write_table(pa.table({"text": [f"red {n}" for n in range(9)]}), path, row_group_size=3, compression="none")
    about = pq.ParquetFile(path).metadata.row_group(1).column(0)
    raw, start = bytearray(path.read_bytes()), about.dictionary_page_offset or about.data_page_offset
    raw[start : start + 20] = b"\xff" * 20
    path.write_bytes(raw)
    assert embed(model, path, "--out", tmp_path / "o.parquet") == 3
    assert list(read_vectors(tmp_path / "o.parquet").ids) == ["0", "1", "2", "6", "7", "8"]
    assert list(bad(tmp_path / "o.parquet")) == ["3", "4", "5"]


# ---- what is counted -------------------------------------------------------------------------------------------------


def test_lines_are_counted_once_whatever_stands_in_them(model: str, tmp_path: Path, capsys: Any) -> None:
    rows = jsonl(tmp_path / "r.jsonl", {"id": LINE, "text": ""}, {"id": "b", "text": LINE})
    out = tmp_path / "o.parquet"
    for _ in range(2):
        assert embed(model, rows, "--out", out) == 3
        assert "1 rows could not be used" in capsys.readouterr().out
    assert list(bad(out)) == [LINE] and read_vectors(out).texts == [LINE]
    assert embed(model, rows, "--out", tmp_path / "o.npy") == 3
    assert JsonLines(tmp_path / "o.npy.ids.jsonl")[0]["text"] == LINE


def test_bad_rows_of_an_earlier_result_are_not_counted(model: str, tmp_path: Path) -> None:
    out = tmp_path / "o.parquet"
    assert embed(model, jsonl(tmp_path / "r.jsonl", {"text": ""}, {"text": "a"}), "--out", out) == 3
    out.unlink()
    for _ in range(2):
        assert embed(model, jsonl(tmp_path / "r.jsonl", {"text": "b"}, {"text": "a"}), "--out", out) == 0


# ---- several files ---------------------------------------------------------------------------------------------------


def test_several_files_are_one_input(model: str, tmp_path: Path) -> None:
    folder = tmp_path / "data [v1] {a,b}"
    words = toy.WORDS[:6]
    for n in range(3):
        picture(folder / f"{n}.png")
        part = [{"text": words[2 * n], "image": f"{n}.png"}, {"text": words[2 * n + 1], "image": None}]
        if n == 2:
            jsonl(folder / "train-2.JSONL", *part)
        else:
            pq.write_table(pa.Table.from_pylist(part), folder / f"train-{n}.parquet")
    things = [{"text": w, **({"image": folder / f"{n // 2}.png"} if n % 2 == 0 else {})} for n, w in enumerate(words)]
    expected = zoo.load(model).encode(things)
    for number, inputs in enumerate(
        (
            [folder / "train-*"],
            [folder / "train-{0..1}.parquet", folder / "train-2.JSONL"],
            sorted(folder.glob("train*")),
        )
    ):
        out = tmp_path / f"{number}.parquet"
        assert embed(model, *inputs, "--out", out) == 0
        found = read_vectors(out)
        np.testing.assert_allclose(found.vectors, expected, atol=1e-6)
        assert list(found.ids) == [str(n) for n in range(6)]
    rows = open_rows([folder / "train-*"])
    whole = [row for _, part in rows.shards(6, {0}) for row in part]
    assert [row for _, part in rows.shards(1, {1, 2, 4, 5}) for row in part] == [whole[n] for n in (1, 2, 4, 5)]
    with pytest.raises(ZooError, match="is a folder of images, which is embedded alone"):
        embed(model, folder, folder / "train-0.parquet", "--out", tmp_path / "x.parquet")
    with pytest.raises(ZooError, match=r"notes\.txt can't be embedded"):
        (folder / "notes.txt").touch()
        embed(model, folder / "notes.txt", "--out", tmp_path / "x.parquet")


# ---- files that rows name --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "struct"])
def test_an_image_that_changed_is_noticed(model: str, tmp_path: Path, kind: str) -> None:
    file = picture(tmp_path / "a.png")
    cell: Any = {"bytes": None, "path": "a.png"} if kind == "struct" else "a.png"
    record, rows, out = {"id": "x", "image": cell}, tmp_path / f"r.{kind}", tmp_path / "o.parquet"
    if kind == "jsonl":
        jsonl(rows, record)
    else:
        rows = rows.with_suffix(".parquet")
        schema = pa.schema({"id": pa.string(), "image": pa.struct({"bytes": pa.binary(), "path": pa.string()})})
        pq.write_table(pa.Table.from_pylist([record], schema if kind == "struct" else None), rows)
    assert embed(model, rows, "--out", out) == 0 == embed(model, rows, "--out", out)
    before = read_vectors(out).vectors
    picture(file, "blue")
    with pytest.raises(ZooError, match=r"another run: files that rows name was .*--restart"):
        embed(model, rows, "--out", out)
    assert embed(model, rows, "--out", out, "--restart") == 0
    assert not np.allclose(read_vectors(out).vectors, before)


def test_results_of_earlier_versions_stay_complete(model: str, tmp_path: Path, capsys: Any) -> None:
    """They do not say in which state the named files were."""
    picture(tmp_path / "a.png")
    rows, out = jsonl(tmp_path / "r.jsonl", {"image": "a.png"}), tmp_path / "o.npy"
    assert embed(model, rows, "--out", out) == 0
    facts = json.loads((tmp_path / "o.npy.json").read_text())
    del facts[shards.NAMED_FILES]
    (tmp_path / "o.npy.json").write_text(json.dumps(facts))
    assert embed(model, rows, "--out", out) == 0
    assert "was complete already" in capsys.readouterr().out


# ---- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_every_row_is_read_once(tmp_path: Path, kind: str, monkeypatch: Any) -> None:
    """Whatever the number of shards; a run that goes on does not read what it has done."""
    records = [{"text": f"text {n}"} for n in range(600)]
    if kind == "jsonl":
        source = jsonl(tmp_path / "r.jsonl", *records)
    else:
        source = tmp_path / "r.parquet"
        pq.write_table(pa.Table.from_pylist(records), source)
    rows, read = open_rows(source), []
    if kind == "jsonl":
        monkeypatch.setattr(
            JsonLines, "__getitem__", lambda s, row, of=JsonLines.__getitem__: read.append(1) or of(s, row)
        )
    else:
        batches = pq.ParquetFile.iter_batches

        def counted(self: Any, *a: Any, **k: Any) -> Any:
            for batch in batches(self, *a, **k):
                read.extend([1] * len(batch))
                yield batch

        monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    assert sum(len(part) for _, part in rows.shards(10, range(60))) == 600
    assert len(read) == 600
    read.clear()
    assert [row.number for _, part in rows.shards(10, range(30, 60)) for row in part] == list(range(300, 600))
    assert len(read) == (300 if kind == "jsonl" else 600)  # of Parquet whole row groups are passed over


# ---- several processes, killed ones ----------------------------------------------------------------------------------


def started(folder: Path, name: str, *command: object, hangs_after: int = 1000) -> Any:
    """The command in a process of its own. It writes what it says to NAME.out, the items that it embeds to NAME.log."""

    def run() -> None:
        torch.set_num_threads(1)
        row, count = toy.ToyProcessor.row, itertools.count(1)

        def slow(self: Any, item: Any, title: str, query: bool) -> Any:
            if not title.startswith(("probe", "item")):
                with (folder / f"{name}.log").open("a") as log:
                    print(title, file=log)
                time.sleep(0.02 if next(count) < hangs_after else 600)
            return row(self, item, title, query)

        toy.ToyProcessor.row = slow  # type: ignore[method-assign]
        with (folder / f"{name}.out").open("w", buffering=1) as out, redirect_stdout(out), redirect_stderr(out):
            code = cli.main([*map(str, command), *(["--device", "cpu"])])
        os._exit(code)

    process = multiprocessing.get_context("fork").Process(target=run, daemon=True)
    process.start()
    return process


def until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def items_of(folder: Path) -> list[str]:
    return [line for log in sorted(folder.glob("*.log")) for line in log.read_text().split("\n")[:-1]]


needs_locks = pytest.mark.skipif(sys.platform == "win32", reason="there is no flock")


@needs_locks
@pytest.mark.usefixtures("small_shards")
def test_equal_commands_at_once_do_the_work_once(model: str, tmp_path: Path) -> None:
    rows = jsonl(tmp_path / "r.jsonl", *({"text": f"{toy.WORDS[n % 6]} cat"} for n in range(30)))
    command = ("embed", model, rows, "--out", tmp_path / "o.parquet")
    processes = [started(tmp_path, f"p{n}", *command) for n in range(3)]
    for process in processes:
        process.join(120)
    said = [(tmp_path / f"p{n}.out").read_text() for n in range(3)]
    assert [process.exitcode for process in processes] == [0, 0, 0], said
    names = items_of(tmp_path)
    assert len(names) == len(set(names)) == 30
    assert len(read_vectors(tmp_path / "o.parquet").ids) == 30
    assert sum("was complete already" in text for text in said) == 2
    assert not [p for p in tmp_path.iterdir() if "part" in p.name]


@needs_locks
def test_searches_at_once_make_one_index(model: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    for n in range(20):
        picture(tmp_path / "f" / f"{n}.png")
    processes = [started(tmp_path, f"p{n}", "search", model, "red", "--in", tmp_path / "f") for n in range(3)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0], (tmp_path / "p0.out").read_text()
    assert len(items_of(tmp_path)) == 20


@needs_locks
@pytest.mark.usefixtures("small_shards")
def test_who_waits_for_a_killed_process_goes_on(model: str, tmp_path: Path) -> None:
    """And removes what it was writing."""
    rows, out = jsonl(tmp_path / "r.jsonl", *({"text": "red cat"} for _ in range(40))), tmp_path / "o.npy"
    first = started(tmp_path, "first", "embed", model, rows, "--out", out, "--batch-size", 2, hangs_after=10)
    until(lambda: (tmp_path / "o.npy.parts" / "part-00001.parquet").is_file())
    second = started(tmp_path, "second", "embed", model, rows, "--out", out)
    until(lambda: "another process is making" in "".join(f.read_text() for f in tmp_path.glob("second.out")))
    left = [".o.npy.1.2.partial", ".o.npy.ids.jsonl.1.2.partial", "o.npy.parts/.part-00001.parquet.1.2.partial"]
    for name in (*left, ".o.npy.old.1.2.partial"):
        (tmp_path / name).touch()
    assert second.is_alive()
    first.kill()
    first.join()
    second.join(120)
    said = (tmp_path / "second.out").read_text()
    assert second.exitcode == 0 and "rows had been done before" in said, said
    assert len(np.load(out)) == 40 and len(items_of(tmp_path)) < 50
    assert not any((tmp_path / name).exists() for name in (*left, "o.npy.parts"))
    assert (tmp_path / ".o.npy.old.1.2.partial").is_file(), "of another result"


def test_a_place_that_cannot_be_written_is_told_before_anything_is_embedded(
    model: str, tmp_path: Path, monkeypatch: Any
) -> None:
    rows = jsonl(tmp_path / "r.jsonl", {"text": "a"})
    (tmp_path / "file").touch()
    (tmp_path / "folder.parquet").mkdir()
    monkeypatch.setattr(zoo.Embedder, "stream", lambda *a, **k: pytest.fail("embedded"))
    for out in (tmp_path / "file" / "o.parquet", Path("/proc/o.parquet")):
        with pytest.raises(ZooError, match="can't be written"):
            embed(model, rows, "--out", out)
    with pytest.raises(ZooError, match="the name of the result is not valid Unicode"):
        embed(model, rows, "--out", tmp_path / "\udce9.parquet")
    with pytest.raises(ZooError, match="is a folder; choose another"):
        embed(model, rows, "--out", tmp_path / "folder.parquet")
    assert not (tmp_path / "folder.parquet.parts").exists()
