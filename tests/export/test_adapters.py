"""Adapters that always act are weights of the exported graph; no graph has inputs that nothing reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from zoo.errors import ZooError
from zoo.export import folder as folders
from zoo.export.onnx import export_graph
from zoo.export.verify import check_graph
from zoo.nn.adapters import Lora
from zoo.types import Graph

ALL = r".*language_model.*(q|k|v|o|up|down|gate)_proj"


def graph_of(folder: Path, name: str = "language") -> Any:
    return onnx.load(str(folder / f"{name}.onnx"), load_external_data=False).graph


def inputs_of(folder: Path, name: str = "language") -> list[str]:
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    listed = [value["name"] for value in manifest["graphs"][name]["inputs"]]
    assert [value.name for value in graph_of(folder, name).input] == listed
    return listed


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_that_always_acts_is_merged(
    dora: bool, make_embedder: Callable[..., Any], exported: Any, tmp_path: Path
) -> None:
    """The graph is the one of a model that never had adapters, with the vectors of the one that has them."""
    adapted = make_embedder(tmp_path, adapter=Lora(4, 8.0, ALL, init="gaussian", dora=dora))
    for name, parameter in adapted.module.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5)  # zero at first, and then the adapter would do nothing
    before, fingerprint = adapted.encode(["a cat", "red dog"]), adapted.fingerprint()
    folder = folders.export_embedder(adapted, tmp_path / "out").folder
    plain, graph = graph_of(exported.folder), graph_of(folder)
    assert Counter(node.op_type for node in graph.node) == Counter(node.op_type for node in plain.node)
    found = folders.import_runtime(folder).Embedder(folder).encode(["a cat", "red dog"])
    assert np.abs(found - before).max() <= 1e-5
    assert (
        np.abs(
            found - folders.import_runtime(exported.folder).Embedder(exported.folder).encode(["a cat", "red dog"])
        ).max()
        > 1e-2
    )
    assert json.loads((folder / "manifest.json").read_text("utf-8"))["weights"]["fingerprint"] == fingerprint


def test_only_a_gated_adapter_asks_which_rows_are_instructed(exported: Any, make_embedder: Any, tmp_path: Path) -> None:
    """Merged, it would act on rows without an instruction, too. (Their vectors: test_runtime.)"""
    assert "instructed" not in inputs_of(exported.folder)
    gated = make_embedder(tmp_path, adapter=Lora(4, 8.0, ALL, init="gaussian", when="instruction"))
    folder = folders.export_embedder(gated, tmp_path / "out").folder
    assert "instructed" in inputs_of(folder)
    products = [sum(node.op_type == "MatMul" for node in graph_of(f).node) for f in (folder, exported.folder)]
    assert products[0] >= products[1] + 2 * 14  # up and down beside 7 matrices of 2 layers


class HalfUsed(torch.nn.Module):
    def forward(self, used: torch.Tensor, unused: torch.Tensor) -> torch.Tensor:
        return torch.where(used.sum() > 0, used * 2, used - 1)


def test_an_input_that_nothing_reads_is_no_input(tmp_path: Path) -> None:
    examples = [{"used": torch.rand(n, 3), "unused": torch.rand(n, 5)} for n in (2, 4)]
    axes = {"used": {0: "rows"}, "unused": {0: "rows"}, "embeddings": {0: "rows"}}
    graph = Graph("half", HalfUsed(), examples, axes)
    export_graph(graph, tmp_path / "half.onnx")
    assert check_graph(graph, tmp_path / "half.onnx").inputs == ("used",)


def test_memory_is_checked_before_anything_is_done(
    embedder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(tensor.nbytes for tensor in embedder.module.state_dict().values())
    monkeypatch.setattr(folders, "free_memory", lambda: size)
    with pytest.raises(ZooError, match=r"exporting tiny takes \d\.\d GB of memory .* and \d\.\d GB are free"):
        folders.export_embedder(embedder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
