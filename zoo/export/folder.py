"""The export folder: graphs, tokenizer, the runtime itself, golden items, and the manifest that ties them together.

Written whole or not at all, and only after the runtime in it has given torch's vectors.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

import zoo
from zoo.bundle import versions, whole_or_nothing
from zoo.data.processors import image_arrays, image_sources, png_rows
from zoo.errors import RecipeError, ZooError
from zoo.export.golden import ITEMS, write_golden
from zoo.export.onnx import OPSETS, run_torch
from zoo.export.readme import readme
from zoo.export.verify import TOLERANCE, Verified, export_all
from zoo.machine import free_memory
from zoo.types import Graph
from zoo.weights import sha256

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.embedder import Embedder

MANIFEST = "manifest.json"
_IMAGES = (image_sources, png_rows, image_arrays)  # in the order in which they import each other
_PEAK = 1.5  # memory that an export needs beside the model, per byte of its weights (measured: 1.3)
FORMAT = 2
"""1: the file of the processor stood alone; `embed.py` opened images by itself."""


@dataclass(frozen=True)
class Exported:
    """What was written and what was measured on the way."""

    folder: Path
    graphs: dict[str, Verified]
    runtime: dict[str, float]
    """golden item -> largest difference of the runtime's values to torch's"""


def export_embedder(
    embedder: Embedder,
    folder: Path,
    *,
    opset: int = 20,
    tolerance: float = TOLERANCE,
    report: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Write a folder that embeds without torch.

    Adapters that act on every row become part of the model's weights, in place: `embedder` gives the same vectors
    afterwards, but has no adapters to train on. Those for rows with an instruction stay in the graph as they are.

    Args:
        embedder: on the CPU, in float32.
        folder: what to create; an earlier export at that place is replaced at the last moment.
        opset: version of the ONNX operators, one of `OPSETS`.
        tolerance: largest allowed difference to torch (see `zoo.export.verify`).
        report: told in a line what is being done.

    Raises:
        ZooError: the model can't be exported, a graph or the runtime gives other values than torch, or the folder
            holds something else. Nothing is left behind.
    """
    folder = folder.expanduser().absolute()
    _check_request(embedder, folder, opset)
    size = sum(t.nbytes for t in embedder.module.state_dict().values())
    _check_memory(embedder.name, size)
    graphs, fingerprint = embedder.module.export_graphs(), embedder.fingerprint()
    with whole_or_nothing(folder, size) as partial:
        write_golden(embedder, partial, report, probabilistic(graphs))
        embedder.module.merge_adapters()  # golden items come before it: they show that it changes nothing
        verified = export_all(graphs, partial, tolerance, opset, report)
        processor = embedder.processor.export(partial)
        for source in runtime_files():
            shutil.copyfile(source, partial / source.name)
        for module in _IMAGES:
            shutil.copyfile(str(module.__file__), partial / _file(module))
        manifest = _manifest(embedder, fingerprint, graphs, verified, processor, opset, tolerance)
        (partial / "README.md").write_text(readme(manifest), "utf-8")
        manifest["files"] = _files(partial)
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", "utf-8")
        report("runtime: embedding the golden items without torch")
        runtime = check_runtime(partial, tolerance)
    return Exported(folder, verified, runtime)


def probabilistic(graphs: Sequence[Graph]) -> bool:
    """Whether every graph that gives vectors gives their log-variances, too."""
    outputs = [graph.outputs for graph in graphs if "embeddings" in graph.outputs]
    return bool(outputs) and all("log_var" in names for names in outputs)


def check_runtime(folder: Path, tolerance: float = TOLERANCE) -> dict[str, float]:
    """Run `embed.py` of an export folder on its golden items: item -> largest difference to torch.

    Raises:
        ZooError: the runtime does not work, or a vector or log-variance differs by more than `tolerance`.
    """
    with _no_bytecode():
        runtime = import_runtime(folder)
        try:
            differences: dict[str, float] = runtime.Embedder(folder).check()
        except runtime.EmbedError as error:
            raise ZooError(f"the exported runtime does not work: {error}") from error
    for name, difference in differences.items():
        if not difference <= tolerance:
            raise ZooError(
                f"the exported runtime gives other values than torch for the golden item '{name}': "
                f"they differ by {difference:.2e}, allowed is {tolerance:.0e}"
            )
    return differences


def runtime_source() -> Path:
    """The torch-free runtime: inside the package, or beside it where the zoo runs from its repository."""
    package = Path(zoo.__file__).parent
    packaged = package / "_exports"
    return (packaged if packaged.is_dir() else package.parent / "exports") / "python" / "embed.py"


def runtime_files() -> list[Path]:
    """`embed.py` and what lies beside it for its use."""
    return sorted(runtime_source().parent.glob("embed*.py"))


def public_source(source: str | None) -> str | None:
    """Where weights came from, without the folders of this machine."""
    return Path(source).name if source is not None and Path(source).is_absolute() else source


def _is_export(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() and (folder / "embed.py").is_file()


def _check_request(embedder: Embedder, folder: Path, opset: int) -> None:
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not _is_export(folder)):
        raise ZooError(f"{folder} exists and is no export; choose another folder")
    if opset not in OPSETS:
        raise RecipeError(f"opset {opset} can't be written reliably; choose one of {OPSETS[0]} to {OPSETS[-1]}")
    if not callable(getattr(embedder.processor, "export", None)):
        kind = type(embedder.processor).__name__
        raise ZooError(f"{embedder.name} can't be exported: there is no runtime for its processor ({kind})")
    parameters = list(embedder.module.parameters())
    if any(p.device.type != "cpu" or p.dtype != torch.float32 for p in parameters):
        raise ZooError(
            "only a float32 model on the CPU can be exported: `zoo export NAME` loads it so, and in Python "
            "zoo.load(NAME, device='cpu', dtype='float32')"
        )


def _check_memory(name: str, size: int) -> None:
    needed, free = _PEAK * size, free_memory()
    if free is not None and needed > free:
        raise ZooError(
            f"exporting {name} takes {needed / 1e9:.1f} GB of memory beside the model's own {size / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free: close other programs, or export on a machine with more"
        )


def _manifest(
    embedder: Embedder,
    fingerprint: str,
    graphs: list[Graph],
    verified: Mapping[str, Verified],
    processor: Mapping[str, Any],
    opset: int,
    tolerance: float,
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": embedder.name,
        "weights": {"source": public_source(embedder.weights), "fingerprint": fingerprint},
        "license": embedder.card.get("license"),
        "dim": embedder.dim,
        **({"probabilistic": True} if probabilistic(graphs) else {}),
        "opset": opset,
        "tolerance": tolerance,
        "graphs": {graph.name: _graph(graph, verified[graph.name]) for graph in graphs},
        "processor": dict(processor),
        "images": [_file(module) for module in _IMAGES],
        "golden": ITEMS,
        "versions": versions() | {name: metadata.version(name) for name in ("onnx", "onnxscript", "onnxruntime")},
    }


def _file(module: ModuleType) -> str:
    return Path(str(module.__file__)).name


def _graph(graph: Graph, verified: Verified) -> dict[str, Any]:
    example = graph.examples[0]
    outputs = dict(zip(graph.outputs, run_torch(graph, example), strict=True))
    return {
        "file": f"{graph.name}.onnx",
        "inputs": [_value(graph, name, example[name]) for name in verified.inputs],
        "outputs": [_value(graph, name, tensor) for name, tensor in outputs.items()],
        "tested": verified.tested,
        "max_diff": verified.max_diff,
    }


def _value(graph: Graph, name: str, tensor: Tensor) -> dict[str, Any]:
    """Name, type and shape, in which an axis of any size is its name."""
    names = graph.dynamic_axes.get(name, {})
    shape = [names.get(axis, size) for axis, size in enumerate(tensor.shape)]
    return {"name": name, "dtype": str(tensor.dtype).removeprefix("torch."), "shape": shape}


def _files(folder: Path) -> dict[str, Any]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size} for path in paths
    }


@contextmanager
def _no_bytecode() -> Iterator[None]:
    """Code imported within leaves no `__pycache__` beside itself: an export holds what its manifest lists, and no more."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def import_runtime(folder: Path) -> ModuleType:
    """`embed.py` of an export folder as a module."""
    spec = importlib.util.spec_from_file_location("zoo_exported_runtime", folder / "embed.py")
    assert spec is not None and spec.loader is not None  # a .py file always has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
