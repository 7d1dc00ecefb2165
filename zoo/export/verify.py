"""Exported graphs against torch, in ONNX Runtime, at every size that the examples have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from torch import Tensor

from zoo.errors import ZooError
from zoo.export.onnx import axis_sizes, describe_sizes, export_graph, run_torch
from zoo.types import Graph

TOLERANCE = 1e-4
"""Largest difference to torch in fp32, per unit of the output's own scale (1 for unit vectors)."""


@dataclass(frozen=True)
class Verified:
    """What was measured on one graph: the sizes it ran at, the largest difference to torch among them, and the inputs that
    it reads (a text tower without a mask has no `attention_mask`).
    """

    tested: list[dict[str, int]] = field(default_factory=list)
    max_diff: float = 0.0
    inputs: tuple[str, ...] = ()


def check_graphs(graphs: Sequence[Graph], folder: Path, tolerance: float = TOLERANCE) -> dict[str, Verified]:
    """Run `folder/NAME.onnx` of every graph on all its examples.

    Returns:
        graph name -> what was measured.

    Raises:
        ZooError: a graph does not load, does not run at some size, or differs from torch by more than `tolerance`.
    """
    return {graph.name: check_graph(graph, folder / f"{graph.name}.onnx", tolerance) for graph in graphs}


def check_graph(graph: Graph, path: Path, tolerance: float = TOLERANCE) -> Verified:
    """`check_graphs` for one graph."""
    try:
        session = onnxruntime.InferenceSession(str(path), _quiet(), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no public base class of its errors
        raise ZooError(f"graph '{graph.name}': ONNX Runtime can't load the file: {error}") from error
    tested, worst = [], 0.0
    for example in graph.examples:
        sizes = axis_sizes(graph, example)
        described = describe_sizes(sizes) or ", ".join(f"{n} {tuple(t.shape)}" for n, t in example.items())
        difference = _difference(graph, session, example, described)
        if not difference <= tolerance:
            raise ZooError(
                f"graph '{graph.name}' gives other values than torch at {described}: they differ by {difference:.2e}, "
                f"allowed is {tolerance:.0e}"
            )
        tested.append(sizes)
        worst = max(worst, difference)
    return Verified(tested, worst, _inputs(session))


def export_and_verify(
    graphs: Sequence[Graph],
    folder: Path,
    *,
    tolerance: float = TOLERANCE,
    opset: int = 20,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, float]:
    """Write every graph into `folder` and check it; graph name -> largest difference to torch. Raises ZooError."""
    return {name: v.max_diff for name, v in export_all(graphs, folder, tolerance, opset, report).items()}


def export_all(
    graphs: Sequence[Graph], folder: Path, tolerance: float, opset: int, report: Callable[[str], None]
) -> dict[str, Verified]:
    """Write every graph into `folder` and check it, saying what is done."""
    verified = {}
    for graph in graphs:
        path = folder / f"{graph.name}.onnx"
        report(f"{graph.name}: tracing, opset {opset}")
        export_graph(graph, path, opset)
        report(f"{graph.name}: running in ONNX Runtime at {len(graph.examples)} sizes")
        verified[graph.name] = check_graph(graph, path, tolerance)
    return verified


def _difference(
    graph: Graph, session: onnxruntime.InferenceSession, example: Mapping[str, Tensor], described: str
) -> float:
    """Largest difference over the outputs, each relative to its largest value where that is above 1."""
    inputs = {name: example[name].numpy() for name in _inputs(session)}
    try:
        found = session.run(list(graph.outputs), inputs)
    except Exception as error:  # onnxruntime has no public base class of its errors
        traced = example is graph.examples[0]
        cause = "not even the size it was traced at" if traced else "the size it was traced at is baked in"
        raise ZooError(f"graph '{graph.name}' does not run at {described} ({cause}): {error}") from error
    worst = 0.0
    for name, expected_tensor, value in zip(graph.outputs, run_torch(graph, example), found, strict=True):
        expected = expected_tensor.numpy()
        if value.shape != expected.shape:
            raise ZooError(
                f"graph '{graph.name}' at {described}: '{name}' has shape {value.shape}, in torch {expected.shape}"
            )
        worst = max(worst, max_difference(value, expected))
    return worst


def max_difference(value: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """Largest absolute difference, relative to the largest expected value where that is above 1; inf if not finite."""
    if not (np.isfinite(value).all() and np.isfinite(expected).all()):
        return float("inf")
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    return float(np.abs(value - expected).max(initial=0.0)) / scale


def _inputs(session: onnxruntime.InferenceSession) -> tuple[str, ...]:
    return tuple(value.name for value in session.get_inputs())


def _quiet() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, too
    return options
