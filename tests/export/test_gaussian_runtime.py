"""The runtime without torch gives the variances of probabilistic entries, too, and says so where there are none."""

from __future__ import annotations

import functools
import hashlib
import json
import pickle
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from architectures.test_dual_encoder import encoder
from architectures.test_projector import projector
from PIL import Image
from torch import nn

from zoo.architectures.dual_encoder import DualEncoder
from zoo.architectures.projector import Projector
from zoo.embedder import Embedder
from zoo.export.folder import export_embedder, import_runtime
from zoo.export.verify import max_difference
from zoo.module import EmbeddingModule
from zoo.nn.gaussian import GaussianHead, LogVariance
from zoo.nn.heads import Projection

Run = Callable[..., "subprocess.CompletedProcess[str]"]

MANY = """
import pickle, sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import numpy as np
from embed import Embedder

folder, items, out = map(Path, sys.argv[1:4])
model = Embedder(folder, threads=1)
both = {f"{side}/{size}": model.encode_gaussian(pickle.loads(items.read_bytes()), side=side, batch_size=size)
        for side in ("query", "document") for size in (32, 2)}
np.savez(out, **{key: np.stack(values) for key, values in both.items()})
assert "torch" not in sys.modules and "zoo" not in sys.modules
"""


@dataclass(frozen=True)
class Exported:
    """A probabilistic entry with random weights, and where it was exported to."""

    embedder: Embedder
    folder: Path
    differences: dict[str, float]


def gaussian_head(width: int, dim: int, start: float) -> GaussianHead:
    """Log-variances about `start` that differ much from item to item."""
    log_var = LogVariance(width, dim, start)
    nn.init.normal_(log_var.weight, std=2.0)
    return GaussianHead(Projection(width, dim), log_var, limits=(-60.0, 60.0))


def dual_encoder() -> DualEncoder:
    module = encoder()
    module.image_head, module.text_head = gaussian_head(24, 16, -3), gaussian_head(12, 16, 1)
    return module


def extreme_projector() -> Projector:
    """Variances at either end of what is computed with (see `zoo.similarity`)."""
    return projector(heads={"image": gaussian_head(16, 8, -60), "text": gaussian_head(12, 8, 60)})


ENTRIES: dict[str, Callable[[], EmbeddingModule]] = {"dual": dual_encoder, "projector": extreme_projector}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Name of an entry -> its export, made once. Not to be changed: copy the folder first."""

    @functools.cache
    def once(kind: str) -> Exported:
        embedder = Embedder(ENTRIES[kind](), {}, name=kind, weights=None)
        exported = export_embedder(embedder, tmp_path_factory.mktemp("gaussian") / kind)
        return Exported(embedder, exported.folder, exported.runtime)

    return once


@pytest.fixture(params=list(ENTRIES))
def gaussian(request: pytest.FixtureRequest, export: Callable[[str], Exported]) -> Exported:
    return export(request.param)


@pytest.fixture
def dual(export: Callable[[str], Exported]) -> Exported:
    return export("dual")


@pytest.fixture
def runtime(dual: Exported) -> ModuleType:
    return import_runtime(dual.folder)


def _list_anew(manifest: dict[str, Any], file: Path) -> None:
    content = file.read_bytes()
    facts = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["files"]["golden/items.json"] = facts


@pytest.fixture
def older(dual: Exported, tmp_path: Path) -> Path:
    """A copy of the folder as it was written when golden items and manifests knew nothing of variances."""
    folder = Path(shutil.copytree(dual.folder, tmp_path / "older"))
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    del manifest["probabilistic"]
    items = json.loads((folder / "golden/items.json").read_text("utf-8"))
    for item in items:
        del item["log_var"]
    (folder / "golden/items.json").write_text(json.dumps(items), "utf-8")
    _list_anew(manifest, folder / "golden/items.json")
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return folder


@pytest.fixture
def items(tmp_path: Path) -> list[Any]:
    """Text, pictures, both, and several pictures with a text."""
    for seed, name in enumerate(("a", "b")):
        values = np.random.default_rng(seed).integers(0, 255, (40, 30 + seed, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    return [
        "a cat",
        a,
        {"text": "a red dog in the sea", "image": b},
        {"text": "two", "images": [a, b]},
        {"images": [b, a]},
        b,
        "red",
    ]


def test_means_and_variances_are_torch_s(
    gaussian: Exported, items: list[Any], run_without_torch: Run, tmp_path: Path
) -> None:
    (tmp_path / "items.pickle").write_bytes(pickle.dumps(items))
    (tmp_path / "many.py").write_text(MANY, "utf-8")
    out = tmp_path / "both.npz"
    result = run_without_torch(tmp_path / "many.py", gaussian.folder, tmp_path / "items.pickle", out)
    assert result.returncode == 0, result.stderr
    found = dict(np.load(out))
    for side in ("query", "document"):
        means, log_var = gaussian.embedder.encode_gaussian(items, side=side)
        assert np.ptp(log_var) > 4
        for size in (32, 2):
            assert max_difference(found[f"{side}/{size}"][0], means) <= 1e-5
            assert max_difference(found[f"{side}/{size}"][1], log_var) <= 1e-5


def test_vectors_are_the_means(runtime: ModuleType, dual: Exported, items: list[Any]) -> None:
    model = runtime.Embedder(dual.folder)
    means, log_var = model.encode_gaussian(items)
    assert model.probabilistic and means.dtype == log_var.dtype == np.float32
    assert np.array_equal(model.encode_document(items), means)
    one = model.encode_gaussian(items[2])
    assert [values.shape for values in one] == [(1, 16), (1, 16)] and model.encode(items[2]).shape == (16,)
    np.testing.assert_allclose(one[1][0], log_var[2], atol=1e-5)
    assert [values.shape for values in model.encode_gaussian([])] == [(0, 16), (0, 16)]
    with pytest.raises(runtime.EmbedError, match="item 1: a int can't be embedded"):
        model.encode_gaussian(["a", 3])


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_the_folder_says_that_there_are_variances(gaussian: Exported) -> None:
    manifest = json.loads((gaussian.folder / "manifest.json").read_text("utf-8"))
    assert manifest["probabilistic"] is True and manifest["format"] == 2
    for graph in manifest["graphs"].values():
        assert [output["name"] for output in graph["outputs"]] == ["embeddings", "log_var"]
    golden = json.loads((gaussian.folder / "golden/items.json").read_text("utf-8"))
    assert {len(item["log_var"]) for item in golden} == {manifest["dim"]}
    assert set(gaussian.differences) == {item["name"] for item in golden} and max(gaussian.differences.values()) <= 1e-5
    text = (gaussian.folder / "README.md").read_text("utf-8")
    assert "second output, `log_var`" in text and "model.encode_gaussian(" in text


def test_other_variances_are_noticed(runtime: ModuleType, dual: Exported, tmp_path: Path) -> None:
    """Relative to the largest of them, where that is above 1."""
    folder = Path(shutil.copytree(dual.folder, tmp_path / "changed"))
    golden = json.loads((folder / "golden/items.json").read_text("utf-8"))
    golden[0]["log_var"][3] += 0.5
    golden[1]["vector"][3] += 0.5
    text = json.dumps(golden)
    (folder / "golden/items.json").write_text(text, "utf-8")
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    _list_anew(manifest, folder / "golden/items.json")
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    found = list(runtime.Embedder(folder).check().values())
    largest = np.abs(golden[0]["log_var"]).max()
    assert largest > 1 and found[0] == pytest.approx(0.5 / largest, rel=1e-4)
    assert found[1] == pytest.approx(0.5, rel=1e-4) and max(found[2:]) <= 1e-5


def test_a_folder_of_an_older_zoo_works_as_before(
    runtime: ModuleType, dual: Exported, older: Path, items: list[Any]
) -> None:
    model = runtime.Embedder(older)
    assert max(model.check().values()) <= 1e-5
    assert np.abs(model.encode(items) - dual.embedder.encode(items)).max() <= 1e-5
    with pytest.raises(runtime.EmbedError, match=r"dual gives vectors without variances.*has to be exported again"):
        model.encode_gaussian(items)


def test_other_models_say_that_they_have_none(
    runtime: ModuleType, exported: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((exported.folder / "manifest.json").read_text("utf-8"))
    assert "probabilistic" not in manifest
    assert "log_var" not in (exported.folder / "README.md").read_text("utf-8")
    assert "log_var" not in (exported.folder / "golden/items.json").read_text("utf-8")
    model = runtime.Embedder(exported.folder)
    assert model.probabilistic is False
    with pytest.raises(runtime.EmbedError, match="tiny gives vectors without variances: use encode"):
        model.encode_gaussian(["a cat"])
    assert runtime.main([str(exported.folder), "--text", "a cat", "--log-var"]) == 2
    assert "tiny gives vectors without variances" in capsys.readouterr().err


# ---- the command -----------------------------------------------------------------------------------------------------


def test_command_prints_and_writes_both(
    runtime: ModuleType, dual: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "items.jsonl"
    lines.write_text('{"text": "a cat"}\n{"text": "red"}\n', "utf-8")
    request = [str(dual.folder), "--jsonl", str(lines), "--side", "query", "--log-var"]
    means, log_var = dual.embedder.encode_gaussian(["a cat", "red"], side="query")
    assert runtime.main(request) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [set(line) for line in printed] == [{"vector", "log_var"}] * 2
    np.testing.assert_allclose([line["vector"] for line in printed], means, atol=1e-5)
    np.testing.assert_allclose([line["log_var"] for line in printed], log_var, atol=1e-4)
    assert runtime.main([*request, "--out", str(tmp_path / "x.npy")]) == 0
    assert "2 vectors of 16 values; their log-variances: " in capsys.readouterr().out
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), means, atol=1e-5)
    np.testing.assert_allclose(np.load(tmp_path / "x.log_var.npy"), log_var, atol=1e-4)


def test_without_the_option_there_are_vectors_alone(
    runtime: ModuleType, dual: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runtime.main([str(dual.folder), "--text", "a cat"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 16
    assert runtime.main([str(dual.folder), "--text", "a cat", "--out", str(tmp_path / "x.npy")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]
