"""A probabilistic model's variances reach `encode_gaussian` and the files of `zoo embed`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import toy

from zoo.embedder import Embedder
from zoo.errors import ZooError
from zoo.types import Embedding, Inputs
from zoo.vectors.files import read_vectors
from zoo.vectors.rows import open_rows
from zoo.vectors.run import embed_rows


class Unsure(toy.ToyEncoder):
    """Variances grow with the number of words."""

    def encode(self, inputs: Inputs) -> Embedding:
        found = super().encode(inputs)
        return Embedding(found.vector, inputs["x"][:, :6].sum(1, keepdim=True).expand_as(found.vector) - 3)


@pytest.fixture
def embedder(tmp_path: Path) -> Embedder:
    torch.manual_seed(0)
    recipe = toy.recipe(tmp_path)
    words = recipe["model"]["init_args"]["processor"]["init_args"]["words"]
    return Embedder(Unsure(toy.ToyProcessor(words)), recipe, name="unsure", weights=None)


def test_means_and_log_variances(embedder: Embedder) -> None:
    means, log_var = embedder.encode_gaussian(["red", "red cat dog", "a stone"])
    assert embedder.probabilistic and means.shape == log_var.shape == (3, 4)
    assert np.array_equal(means, embedder.encode(["red", "red cat dog", "a stone"]))
    assert log_var[:, 0].tolist() == [-2, 0, -3]


def test_both_are_kept_in_files(embedder: Embedder, tmp_path: Path) -> None:
    table = tmp_path / "texts.jsonl"
    table.write_text('{"text": "red"}\n{"text": "red cat dog"}\n', "utf-8")
    rows = open_rows(table)
    embed_rows(embedder, rows, tmp_path / "out.parquet", show=False)
    found = read_vectors(tmp_path / "out.parquet")
    assert found.log_var is not None and found.log_var[:, 0].tolist() == [-2, 0]
    assert found.vectors.shape == (2, 4)
    with pytest.raises(ZooError, match=r"write \.parquet"):
        embed_rows(embedder, rows, tmp_path / "out.npy", show=False)


def test_other_models_say_that_they_have_none(tmp_path: Path) -> None:
    plain = Embedder(toy.build(tmp_path), toy.recipe(tmp_path), name="plain", weights=None)
    assert not plain.probabilistic
    with pytest.raises(ZooError, match="plain gives vectors without variances"):
        plain.encode_gaussian(["red"])
