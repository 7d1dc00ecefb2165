"""A graph is written only if it gives torch's values at other sizes than it was traced at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.export.onnx import check_examples, describe_sizes
from zoo.export.verify import check_graph, export_and_verify, max_difference
from zoo.types import Graph


class Affine(nn.Module):
    """y = 2 x + 1."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + 1


class Baked(nn.Module):
    """Adds a table that has the rows of the first example."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


class DependsOnData(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if int(x.sum().item()) > 3 else -x


class OtherWhenTraced(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if torch.compiler.is_exporting() else x


class NotFinite(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x - x)


def graph(
    module: nn.Module, axes: Mapping[str, Mapping[int, str]] | None = None, rows: tuple[int, ...] = (4, 3, 1)
) -> Graph:
    axes = {"x": {0: "batch"}, "y": {0: "batch"}} if axes is None else axes
    return Graph("toy", module, [{"x": torch.rand(r, 5)} for r in rows], axes, ("y",))


def test_good_graph_is_measured(tmp_path: Path) -> None:
    lines: list[str] = []
    assert export_and_verify([graph(Affine())], tmp_path, report=lines.append) == {"toy": pytest.approx(0, abs=1e-6)}
    assert [line.partition(":")[0] for line in lines] == ["toy", "toy"]


def test_batch_in_the_module_is_refused_and_the_cause_shown(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=r"'toy' can't be exported.*") as failure:
        export_and_verify([graph(Baked())], tmp_path)
    assert "static shape of 4" in str(failure.value) and "x" in str(failure.value)


def test_batch_in_the_file_is_refused(tmp_path: Path) -> None:
    """The axis is free by its name only: a wrong file that a check of declared shapes would let pass."""
    right = graph(Affine())
    fixed = graph(Baked(), axes={})
    export_only(fixed, tmp_path / "toy.onnx")
    model = onnx.load(str(tmp_path / "toy.onnx"))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, str(tmp_path / "toy.onnx"))
    with pytest.raises(ZooError, match=r"'toy'.*3 batch.*baked in"):
        check_graph(Graph("toy", Baked(), right.examples, right.dynamic_axes, ("y",)), tmp_path / "toy.onnx")


def export_only(graph: Graph, path: Path) -> None:
    torch.onnx.export(
        graph.module.eval(), kwargs=dict(graph.examples[0]), output_names=["y"], dynamo=True, f=str(path), verbose=False
    )


@pytest.mark.parametrize("module", [OtherWhenTraced(), NotFinite()])
def test_other_values_than_torch_are_refused(module: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="'toy' gives other values than torch at 4 batch: they differ by"):
        export_and_verify([graph(module)], tmp_path)


def test_message_is_the_cause_not_the_traced_graph(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZooError, match="'toy' can't be exported: GuardOnDataDependentSymNode") as failure:
        export_and_verify([graph(DependsOnData())], tmp_path)
    assert str(failure.value).count("\n") <= 13
    assert "def forward" not in str(failure.value) + capfd.readouterr().err


def test_file_that_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "toy.onnx").write_bytes(b"no graph")
    with pytest.raises(ZooError, match="ONNX Runtime can't load"):
        check_graph(graph(Affine()), tmp_path / "toy.onnx")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((1, 3), "first example must have 2 or more batch"),
        ((4, 4), "no other example has another number of batch than 4"),
        ((4,), "no other example"),
    ],
)
def test_examples_that_prove_nothing_are_refused(rows: tuple[int, ...], message: str) -> None:
    with pytest.raises(ZooError, match=message):
        check_examples(graph(Affine(), rows=rows))


def test_two_axes_of_one_size_are_refused() -> None:
    both = {"x": {0: "batch", 1: "width"}}
    with pytest.raises(ZooError, match="are both 5"):
        check_examples(graph(Affine(), axes=both, rows=(5, 3)))


def test_one_axis_of_two_sizes_is_refused() -> None:
    with pytest.raises(ZooError, match="one example has 4 and 5 batch"):
        check_examples(graph(Affine(), axes={"x": {0: "batch", 1: "batch"}}))


def test_output_with_torch_s_own_name_is_refused() -> None:
    with pytest.raises(ZooError, match="must not be named 'embedding'"):
        check_examples(Graph("toy", Affine(), [{"x": torch.rand(4, 5)}], {}, ("embedding",)))


def test_difference_is_relative_to_large_values() -> None:
    expected = np.array([1000.0, 0.5], np.float32)
    assert max_difference(expected + np.float32(0.05), expected) == pytest.approx(5e-5, rel=1e-2)
    assert max_difference(np.array([0.25], np.float32), np.array([0.5], np.float32)) == 0.25
    assert max_difference(np.array([np.nan], np.float32), np.array([0.5], np.float32)) == np.inf


def test_sizes_are_described() -> None:
    assert describe_sizes({"batch": 4, "sequence": 23}) == "4 batch, 23 sequence"


# ---- the encoder's own graphs ----------------------------------------------------------------------------------------


def test_axes_have_our_names_and_the_rest_is_fixed(exported: Any) -> None:
    shapes = {}
    for name in ("vision", "language"):
        model = onnx.load(str(exported.folder / f"{name}.onnx"), load_external_data=False)
        for value in (*model.graph.input, *model.graph.output):
            dims = value.type.tensor_type.shape.dim
            shapes[f"{name}/{value.name}"] = [d.dim_param or d.dim_value for d in dims]
    assert shapes["vision/patches"] == ["images", "patches", 96]
    assert shapes["vision/image_features"] == ["images", "image_tokens", 32] == shapes["language/image_features"]
    assert shapes["language/input_ids"] == ["batch", "sequence"]
    assert shapes["language/position_ids"] == ["batch", 3, "sequence"]
    assert "language/instructed" not in shapes  # of gated adapters alone (test_adapters)
    assert shapes["language/embeddings"] == ["batch", 32]


def test_every_axis_was_run_at_several_sizes_down_to_one(exported: Any) -> None:
    for verified in exported.graphs.values():
        assert verified.max_diff <= 1e-5
        for axis in verified.tested[0]:
            assert len({sizes[axis] for sizes in verified.tested}) >= 3 or axis == "images"
    assert {sizes["batch"] for sizes in exported.graphs["language"].tested} == {4, 1, 5, 3}
    assert {sizes["images"] for sizes in exported.graphs["vision"].tested} == {3, 1, 4}


def test_files_tell_nothing_of_this_machine(exported: Any) -> None:
    import zoo

    source = str(Path(zoo.__file__).parent.parent).encode()
    for path in exported.folder.rglob("*.onnx"):
        data = path.read_bytes()
        assert source not in data and b"site-packages" not in data and b".py" not in data


def test_each_graph_holds_its_own_weights_only(exported: Any, embedder: Any) -> None:
    backbone = embedder.module.backbone.model
    for name, part in (("vision", backbone.visual), ("language", backbone.language_model)):
        own = sum(parameter.nbytes for parameter in part.parameters())
        size = sum(path.stat().st_size for path in exported.folder.glob(f"{name}.onnx*"))
        assert own * 0.9 <= size <= own + 60_000


@pytest.mark.parametrize(("smallest", "largest"), [(64, 4096), (1024, 1024), (256, 576), (8 * 8 * 80, 8 * 8 * 300)])
def test_examples_fit_any_pixel_budget(smallest: int, largest: int, tmp_path: Path) -> None:
    """Also where all pictures are resized to about the same area."""
    import tiny

    from zoo.data.processors.vlm_arrays import Pixels

    module = tiny.vlm_encoder(tmp_path)
    module.processor.arrays.pixels = Pixels(patch_size=4, min_pixels=smallest, max_pixels=largest)
    for made in module.eval().export_graphs():
        check_examples(made)
