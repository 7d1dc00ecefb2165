"""`zoo pair-select`: which rows it takes for the same pair, its table and heat map, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zoo import cli
from zoo.metrics.cka import linear_cka
from zoo.vectors.files import table_of, write_vectors

PAIRS = 40


def vectors(width: int, seed: int, like: np.ndarray[Any, Any] | None = None) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(seed)
    noise = random.standard_normal((PAIRS, width)).astype(np.float32)
    return noise if like is None else (like @ random.standard_normal((like.shape[1], width)) + noise).astype(np.float32)


def write_parquet(path: Path, rows: np.ndarray[Any, Any], ids: list[str]) -> Path:
    path.parent.mkdir(exist_ok=True)
    nothing = [None] * len(ids)
    write_vectors(path, [table_of(ids, nothing, nothing, rows, {"model": path.stem})])
    return path


def select(*arguments: object) -> int:
    return cli.main(["pair-select", *map(str, arguments)])


def expected(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], **options: bool) -> str:
    return f"{linear_cka(torch.from_numpy(x), torch.from_numpy(y), **options):.4f}"


@pytest.mark.parametrize("unbiased", [False, True])
def test_pairs_are_sorted_and_drawn(tmp_path: Path, unbiased: bool, capsys: pytest.CaptureFixture[str]) -> None:
    image, other = vectors(6, 0), vectors(5, 1)
    near, far = vectors(4, 2, like=image), vectors(3, 3)
    for name, rows in (("images/vit", image), ("images/resnet", other), ("texts/roberta", near), ("texts/bert", far)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / f"{name}.npy", rows)
    out = tmp_path / "map.html"
    options = ["--unbiased"] if unbiased else []
    assert select("--images", tmp_path / "images", "--texts", tmp_path / "texts", "--out", out, *options) == 0
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()[1:5]]
    assert lines[0][:2] == ["vit", "roberta"] and lines[0][2] == expected(image, near, unbiased=unbiased)
    values = [float(line[2]) for line in lines]
    assert values == sorted(values, reverse=True) and all(line[3] == str(PAIRS) for line in lines)
    assert ("use --unbiased" in printed) is not unbiased
    page = out.read_text("utf-8")
    assert page.count("<rect") == 4 and "vit and roberta" in page and "<script" not in page


def test_files_of_zoo_embed_are_paired_by_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One file lacks a row, the other is in another order."""
    image = vectors(6, 0)
    text = vectors(4, 1, like=image)
    ids = [f"p{number}" for number in range(PAIRS)]
    first = write_parquet(tmp_path / "images" / "a.parquet", image[:-1], ids[:-1])
    second = write_parquet(tmp_path / "texts" / "b.parquet", text[::-1], ids[::-1])
    assert select("--images", first, "--texts", second, "--out", tmp_path / "map.html") == 0
    line = capsys.readouterr().out.splitlines()[1].split()
    assert line[2:] == [expected(image[:-1], text[:-1]), str(PAIRS - 1)]


def test_npy_with_the_ids_of_zoo_embed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = vectors(6, 0)
    text = vectors(4, 1, like=image)
    order = np.random.default_rng(0).permutation(PAIRS)
    for name, rows, ids in (("a", image, range(PAIRS)), ("b", text[order], order)):
        np.save(tmp_path / f"{name}.npy", rows)
        lines = [json.dumps({"id": str(number)}) for number in ids]
        (tmp_path / f"{name}.npy.ids.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    assert select("--images", tmp_path / "a.npy", "--texts", tmp_path / "b.npy", "--out", tmp_path / "map.html") == 0
    assert capsys.readouterr().out.splitlines()[1].split()[2] == expected(image, text)


def test_equal_stems_keep_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = vectors(3, 0)
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "clip.npy", rows)
    sides = [tmp_path / "x", tmp_path / "y"]
    assert select("--images", *sides, "--texts", sides[0], "--out", tmp_path / "map.html") == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:3]} == {"x/clip", "y/clip"}


def refused(capsys: pytest.CaptureFixture[str], image: Path, text: Path) -> str:
    assert select("--images", image, "--texts", text, "--out", image.parent / "map.html") == cli.EXIT_BAD_INPUT
    return capsys.readouterr().err


def test_what_can_not_be_paired_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = vectors(3, 0)
    for name, part in (("whole", rows), ("part", rows[:7]), ("flat", rows[0]), ("whole_numbers", rows.astype(int))):
        np.save(tmp_path / f"{name}.npy", part)
    whole = tmp_path / "whole.npy"
    message = refused(capsys, whole, tmp_path / "part.npy")
    assert "whole.npy has 40 rows" in message and "part.npy has 7" in message and "zoo embed" in message
    assert "not rows of vectors" in refused(capsys, whole, tmp_path / "flat.npy")
    assert "not rows of vectors" in refused(capsys, whole, tmp_path / "whole_numbers.npy")
    (tmp_path / "empty").mkdir()
    assert "no file of vectors" in refused(capsys, whole, tmp_path / "empty")
    assert "no file or folder" in refused(capsys, whole, tmp_path / "nowhere.npy")
    (tmp_path / "notes.txt").write_text("x")
    assert "holds no vectors" in refused(capsys, whole, tmp_path / "notes.txt")
    (tmp_path / "broken.npy").write_bytes(b"no array")
    assert "can't be read as .npy" in refused(capsys, whole, tmp_path / "broken.npy")


def test_damaged_rows_and_ids_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = vectors(3, 0)
    np.save(tmp_path / "a.npy", rows)
    bad = rows.copy()
    bad[5, 0] = np.inf
    np.save(tmp_path / "b.npy", bad)
    message = refused(capsys, tmp_path / "a.npy", tmp_path / "b.npy")
    assert "b.npy" in message and "item 5 " in message
    twice = ["p0", "p1", "p0"]
    first = write_parquet(tmp_path / "c.parquet", rows[:3], twice)
    assert "'p0' stands twice" in refused(capsys, first, write_parquet(tmp_path / "d.parquet", rows[:3], twice))
    (tmp_path / "a.npy.ids.jsonl").write_text('{"id": "1"}\n', "utf-8")
    assert "1 ids for the 40 rows" in refused(capsys, tmp_path / "a.npy", first)
    (tmp_path / "a.npy.ids.jsonl").write_text("{", "utf-8")
    assert "is damaged" in refused(capsys, tmp_path / "a.npy", first)
