"""One Graph -> one ONNX file whose named axes are really free.

Only a run at other sizes proves that (`zoo.export.verify`): a file may declare an axis free and have the traced size
baked into its body.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.types import Graph

OPSETS = range(18, 26)
"""Older ones are silently replaced by 18; 26 gives files that ONNX Runtime refuses. 20 is read most widely."""

_CAUSE_LINES = 12  # torch appends the whole traced graph to its messages


def export_graph(graph: Graph, path: Path, opset: int = 20) -> None:
    """Trace `graph` with its first example and write `path`, its weights beside it as `<path>.data`.

    Raises:
        ZooError: the examples can't prove what they should, or the module can't be traced; names graph and cause.
    """
    check_examples(graph)
    free = torch.export.Dim.DYNAMIC
    shapes = {name: dict.fromkeys(graph.dynamic_axes.get(name, {}), free) for name in graph.examples[0]}
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # these, and what goes to stderr, are about torch's own internals
        try:
            program = torch.onnx.export(
                graph.module.eval(),
                kwargs=dict(graph.examples[0]),
                input_names=list(graph.examples[0]),
                output_names=list(graph.outputs),
                dynamic_shapes=shapes,
                dynamo=True,
                opset_version=opset,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            cause = error.__cause__ or error
            raise ZooError(f"graph '{graph.name}' can't be exported: {_first_lines(cause)}") from cause
        assert program is not None  # torch: only the old exporter returns nothing
        program.save(str(path), external_data=True)
        tidy(path, graph, [tuple(value.shape) for value in run_torch(graph, graph.examples[0])])


def run_torch(graph: Graph, example: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """The outputs of the module, in the order of `graph.outputs`."""
    with torch.no_grad():
        result = graph.module(**example)
    return result if isinstance(result, tuple) else (result,)


def check_examples(graph: Graph) -> None:
    """Raise ZooError if the examples can't show that the named axes are free.

    The first must have 2 or more along every axis (torch takes 1 for a constant) and no two axes of one size; each axis
    must have another size in another example.
    """
    if "embedding" in graph.outputs:
        raise ZooError(f"graph '{graph.name}': an output must not be named 'embedding', torch uses that name inside")
    sizes = [axis_sizes(graph, example) for example in graph.examples]
    for axis, size in sizes[0].items():
        if size < 2:
            raise ZooError(f"graph '{graph.name}': the first example must have 2 or more {axis}, it has {size}")
        same = [other for other, count in sizes[0].items() if count == size and other != axis]
        if same:
            raise ZooError(f"graph '{graph.name}': {axis} and {same[0]} are both {size} in the first example")
        if all(other[axis] == size for other in sizes[1:]):
            raise ZooError(f"graph '{graph.name}': no other example has another number of {axis} than {size}")


def axis_sizes(graph: Graph, example: Mapping[str, Tensor]) -> dict[str, int]:
    """Axis name -> its size in this example. Raises ZooError for two sizes under one name."""
    sizes: dict[str, int] = {}
    for name, tensor in example.items():
        for axis, label in graph.dynamic_axes.get(name, {}).items():
            size = tensor.shape[axis]
            if sizes.setdefault(label, size) != size:
                raise ZooError(f"graph '{graph.name}': one example has {sizes[label]} and {size} {label} (in '{name}')")
    return sizes


def describe_sizes(sizes: Mapping[str, int]) -> str:
    """{"batch": 4, "sequence": 23} -> "4 batch, 23 sequence"."""
    return ", ".join(f"{size} {axis}" for axis, size in sizes.items())


def tidy(path: Path, graph: Graph, output_shapes: Sequence[tuple[int, ...]]) -> None:
    """Name the axes as `graph` does, remove inputs that nothing reads and what only describes this machine's source code.

    torch's own axis names may be wrong: it has been seen to give two independent axes one name.
    """
    model = onnx.load(str(path), load_external_data=False)
    shapes = {name: tuple(tensor.shape) for name, tensor in graph.examples[0].items()}
    shapes |= dict(zip(graph.outputs, output_shapes, strict=True))
    for value in [*model.graph.input, *model.graph.output]:
        names = graph.dynamic_axes.get(value.name, {})
        for axis, (dim, size) in enumerate(zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True)):
            if axis in names:
                dim.dim_param = names[axis]
            else:
                dim.dim_value = size
    body = model.graph
    used = _names_read(body)
    for value in [value for value in body.input if value.name not in used]:
        body.input.remove(value)  # other tools take it out, and feeding it then fails
    del model.graph.value_info[:]  # holds torch's axis names; runtimes infer it anew
    for part in (model, body, *body.node, *body.input, *body.output, *body.initializer):
        del part.metadata_props[:]  # stack traces with paths of this machine, printed graphs
    onnx.save(model, str(path))


def _names_read(graph: onnx.GraphProto) -> set[str]:
    """The values that a graph's nodes, those of the graphs in them, and its outputs take."""
    names = {value.name for value in graph.output}
    for node in graph.node:
        names.update(node.input)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                names |= _names_read(inner)
    return names


def _first_lines(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    shown = "\n  ".join(lines[:_CAUSE_LINES]) + ("\n  ..." if len(lines) > _CAUSE_LINES else "")
    return f"{type(error).__name__}: {shown}"
