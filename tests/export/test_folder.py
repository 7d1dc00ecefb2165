"""The export folder: complete, verified through its own runtime, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.errors import RecipeError, ZooError
from zoo.export import folder as folders
from zoo.export.folder import check_runtime, export_embedder
from zoo.types import Graph, Item
from zoo.weights import sha256


def manifest_of(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
    return manifest


def test_manifest_says_all_that_a_runtime_needs(exported: Any, embedder: Any) -> None:
    manifest = manifest_of(exported.folder)
    assert manifest["name"] == "tiny" and manifest["dim"] == 32 and manifest["opset"] == 20
    assert manifest["weights"]["fingerprint"] == embedder.fingerprint()
    processor = manifest["processor"]
    assert processor["template"]["suffix"] == "<|endoftext|>" and processor["pixels"]["patch_size"] == 4
    assert processor["query_views"] == ["query"] and processor["position_mode"] == "mrope"
    assert processor["padding_side"] == "right" and processor["pad_token"] == "<|endoftext|>"
    language = manifest["graphs"]["language"]
    assert language["inputs"][0] == {"name": "input_ids", "dtype": "int64", "shape": ["batch", "sequence"]}
    assert language["outputs"] == [{"name": "embeddings", "dtype": "float32", "shape": ["batch", 32]}]
    assert language["max_diff"] == exported.graphs["language"].max_diff <= 1e-4
    assert {"torch", "onnx", "onnxruntime", "embedding-zoo", "pillow", "numpy"} <= set(manifest["versions"])


def test_manifest_lists_every_file_with_its_hash(exported: Any, written: set[str]) -> None:
    files = manifest_of(exported.folder)["files"]
    assert set(files) == written - {"manifest.json"}
    assert {
        "embed.py",
        "image_arrays.py",
        "vlm_arrays.py",
        "tokenizer.json",
        "README.md",
        "golden/items.json",
    } <= written
    for name, entry in files.items():
        assert entry["sha256"] == sha256(exported.folder / name)


def test_code_in_the_folder_is_the_code_of_training(exported: Any) -> None:
    from zoo.data.processors import vlm_arrays

    assert (exported.folder / "vlm_arrays.py").read_text() == Path(vlm_arrays.__file__).read_text()
    files = folders.runtime_files()
    assert {"embed.py", "embed_model.py", "embed_items.py", "embed_folder.py"} == {file.name for file in files}
    for file in files:
        assert (exported.folder / file.name).read_text() == file.read_text() and len(
            file.read_text().splitlines()
        ) < 300


def test_golden_vectors_are_torch_s_to_the_last_bit(exported: Any, embedder: Any) -> None:
    items = json.loads((exported.folder / "golden/items.json").read_text("utf-8"))
    assert [bool(i["images"]) for i in items].count(True) >= 3 and any(len(i["images"]) == 2 for i in items)
    assert any(i["instruction"] for i in items) and {i["side"] for i in items} == {"query", "document"}
    assert Image.open(exported.folder / "golden/badge.png").mode == "RGBA"
    for item in items:
        images = tuple(exported.folder / image for image in item["images"])
        vector = embedder.encode(Item(item["text"], images, item["instruction"]), side=item["side"])
        assert np.array_equal(np.array(item["vector"], np.float32), vector)
    assert len({tuple(item["vector"]) for item in items}) == len(items)


def test_runtime_was_checked_on_all_of_them(exported: Any) -> None:
    assert len(exported.runtime) == 7 and max(exported.runtime.values()) <= 1e-5


def test_wrong_graph_leaves_nothing_behind(embedder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch of the first example is fixed in the file: right at that size, wrong at every other."""
    wrong = Graph("vision", torch.nn.Flatten(), [{"input": torch.rand(4, 5)}, {"input": torch.rand(3, 5)}], {}, ("y",))
    monkeypatch.setattr(embedder.module, "export_graphs", lambda: [wrong])
    with pytest.raises(ZooError, match=r"'vision' does not run at input \(3, 5\).*baked in"):
        export_embedder(embedder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("without_tracing")
def test_runtime_with_other_vectors_leaves_nothing_behind(
    embedder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs are right, but a step around them is not the model's."""
    spec = embedder.processor.spec()
    template = spec["template"] | {"suffix": ""}
    monkeypatch.setattr(embedder.processor, "spec", lambda: spec | {"template": template})
    with pytest.raises(ZooError, match=r"other values than torch for the golden item 'text'.*differ by"):
        export_embedder(embedder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("without_tracing")
def test_only_an_earlier_export_is_replaced(embedder: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(ZooError, match="out exists and is no export"):
        export_embedder(embedder, tmp_path / "out")
    assert (tmp_path / "out" / "precious").read_text() == "x"
    (tmp_path / "out" / "precious").unlink()
    export_embedder(embedder, tmp_path / "out")
    (tmp_path / "out" / "stale").write_text("x")
    export_embedder(embedder, tmp_path / "out")
    assert not (tmp_path / "out" / "stale").exists()
    assert max(check_runtime(tmp_path / "out").values()) <= 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("without_tracing")
def test_item_that_the_model_refuses_is_reported_and_left_out(
    embedder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder.processor.arrays, "max_length", 60)
    monkeypatch.setitem(embedder.processor._settings, "max_length", 60)
    lines: list[str] = []
    result = export_embedder(embedder, tmp_path / "out", report=lines.append)
    assert any("'two pictures and text' is left out" in line and "max_length=60" in line for line in lines)
    assert "two pictures and text" not in result.runtime and "text" in result.runtime


def test_opset_that_can_t_be_written(embedder: Any, tmp_path: Path) -> None:
    for opset in (17, 26):
        with pytest.raises(RecipeError, match=f"opset {opset} can't be written reliably; choose one of 18 to 25"):
            export_embedder(embedder, tmp_path / "out", opset=opset)


def test_half_precision_is_refused(embedder: Any, tmp_path: Path) -> None:
    weight = embedder.module.backbone.model.visual.merger.mlp[0].weight
    weight.data = weight.data.to(torch.float16)
    try:
        with pytest.raises(ZooError, match="only a float32 model on the CPU"):
            export_embedder(embedder, tmp_path / "out")
    finally:
        weight.data = weight.data.float()


def test_processor_without_a_runtime_is_named(embedder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        pass

    monkeypatch.setattr(embedder.module, "processor", Other())
    with pytest.raises(ZooError, match=r"tiny can't be exported.*\(Other\)"):
        export_embedder(embedder, tmp_path / "out")


def test_where_the_weights_came_from_is_not_a_path_of_this_machine(embedder: Any, tmp_path: Path) -> None:
    assert folders.public_source(str(tmp_path / "bundle")) == "bundle"
    assert folders.public_source("hf:org/repo@1") == "hf:org/repo@1"
    assert folders.public_source(None) is None
