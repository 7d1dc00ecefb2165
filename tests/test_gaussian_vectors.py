"""A probabilistic model's variances reach `encode_gaussian` and the files of `zoo embed`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy

from zoo import cli
from zoo.embedder import Embedder
from zoo.errors import ZooError
from zoo.vectors import shards
from zoo.vectors.files import read_vectors
from zoo.vectors.paired import open_sides
from zoo.vectors.rows import open_rows
from zoo.vectors.run import embed_rows


@pytest.fixture
def embedder(tmp_path: Path) -> Embedder:
    torch.manual_seed(0)
    recipe = toy.recipe(tmp_path)
    words = recipe["model"]["init_args"]["processor"]["init_args"]["words"]
    recipe["model"]["class_path"] = "toy.UnsureEncoder"
    return Embedder(toy.UnsureEncoder(toy.ToyProcessor(words)), recipe, name="unsure", weights=None)


def test_means_and_log_variances(embedder: Embedder) -> None:
    means, log_var = embedder.encode_gaussian(["red", "red cat dog", "a stone"])
    assert embedder.probabilistic and means.shape == log_var.shape == (3, 4)
    assert np.array_equal(means, embedder.encode(["red", "red cat dog", "a stone"]))
    assert log_var[:, 0].tolist() == [-2, 0, -3]
    assert embedder.encode_gaussian("red", instruction="find blue")[1].tolist() == [[0, 0, 0, 0]]


def test_both_are_kept_in_files(embedder: Embedder, tmp_path: Path) -> None:
    table = tmp_path / "texts.jsonl"
    table.write_text('{"text": "red"}\n{"text": "red cat dog"}\n', "utf-8")
    rows = open_rows(table)
    embed_rows(embedder, rows, tmp_path / "out.parquet", show=False)
    found = read_vectors(tmp_path / "out.parquet")
    assert found.log_var is not None and found.log_var[:, 0].tolist() == [-2, 0]
    assert found.vectors.shape == (2, 4)


def stopped(*_: Any) -> None:
    raise ZooError("stopped")


def test_npy_has_them_in_a_file_beside_it(embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped when two of three shards are there, and continued."""
    monkeypatch.setattr(shards, "_SMALLEST", 2)
    texts = ["red", "red cat dog", "a stone", "cat", "find red"]
    table = tmp_path / "texts.jsonl"
    table.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    out = tmp_path / "out.npy"
    with monkeypatch.context() as patch:
        patch.setattr(shards.Shards, "finish", stopped)
        with pytest.raises(ZooError, match="stopped"):
            embed_rows(embedder, open_rows(table), out, show=False)
    (tmp_path / "out.npy.parts" / "part-00002.parquet").unlink()
    assert embed_rows(embedder, open_rows(table), out, show=False).before == 4
    means, log_var = embedder.encode_gaussian(texts)
    np.testing.assert_allclose(np.load(out), means, atol=1e-6)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy.log_var.npy"), log_var)
    assert log_var[:, 0].tolist() == [-2, 0, -3, -2, -1]
    assert not [path.name for path in tmp_path.iterdir() if "part" in path.name]
    assert embed_rows(embedder, open_rows(table), out, show=False).before == 5


def test_the_command_says_where_they_are(
    embedder: Embedder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, table, out = embedder.save(tmp_path / "unsure"), tmp_path / "texts.jsonl", tmp_path / "out.npy"
    table.write_text('{"text": "red"}\n{"text": "red cat dog"}\n', "utf-8")
    assert cli.main(["embed", f"path:{bundle}", str(table), "--out", str(out), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out.replace("\n", "")
    assert f"2 vectors of 4 values in {out}" in printed and f"their log-variances in {out}.log_var.npy" in printed
    assert np.load(f"{out}.log_var.npy")[:, 0].tolist() == [-2, 0]


def test_discarding_a_result_discards_its_variances(embedder: Embedder, tmp_path: Path) -> None:
    """A model without variances that takes the same name leaves none of another one's beside its vectors."""
    table = tmp_path / "texts.jsonl"
    table.write_text('{"text": "red"}\n', "utf-8")
    out = tmp_path / "out.npy"
    embed_rows(embedder, open_rows(table), out, show=False)
    assert (tmp_path / "out.npy.log_var.npy").is_file()
    plain = Embedder(toy.build(tmp_path), toy.recipe(tmp_path), name="plain", weights=None)
    embed_rows(plain, open_rows(table), out, earlier="discard", show=False)
    assert out.is_file() and not (tmp_path / "out.npy.log_var.npy").exists()


def test_files_of_log_variances_are_no_vectors(embedder: Embedder, tmp_path: Path) -> None:
    table = tmp_path / "texts.jsonl"
    table.write_text('{"text": "red"}\n{"text": "cat"}\n', "utf-8")
    embed_rows(embedder, open_rows(table), tmp_path / "there" / "out.npy", show=False)
    assert [side.name for side in open_sides([tmp_path / "there"])] == ["out"]


def test_other_models_say_that_they_have_none(tmp_path: Path) -> None:
    plain = Embedder(toy.build(tmp_path), toy.recipe(tmp_path), name="plain", weights=None)
    assert not plain.probabilistic
    with pytest.raises(ZooError, match="plain gives vectors without variances"):
        plain.encode_gaussian(["red"])
