"""Write ONNX graphs and a runtime that give the same vectors without torch: `zoo export NAME --to DIR`.

NAME is an entry (`zoo list`) or `path:PLACE` for a bundle or a training run. Every graph is run in ONNX Runtime at
other batch sizes, lengths and picture sizes than it was traced at, and the runtime on golden items; if one value
differs from torch by more than 1e-4, nothing is written.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import MissingExtraError
from zoo.files import user_path

if TYPE_CHECKING:
    from zoo.export.folder import Exported

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `zoo export` takes."""
    parser.add_argument("name", help="which model: an entry of `zoo list`, or path:PLACE")
    parser.add_argument(
        "--to",
        required=True,
        type=user_path,
        metavar="DIR",
        help="the folder to create (an earlier export is replaced)",
    )
    parser.add_argument("--opset", type=int, default=20, help="version of the ONNX operators, 18 to 25 (default 20)")


def run(args: argparse.Namespace) -> int:
    """Export, verify, and print what was measured."""
    if any(importlib.util.find_spec(package) is None for package in _PACKAGES):
        raise MissingExtraError("zoo export", "export")
    print(f"loading {args.name}", flush=True)
    from zoo.export.folder import export_embedder
    from zoo.loading import load

    embedder = load(args.name, device="cpu", dtype="float32")
    exported = export_embedder(embedder, args.to, opset=args.opset, report=lambda line: print(line, flush=True))
    _print_measured(exported)
    return 0


def _print_measured(exported: Exported) -> None:
    from rich.console import Console
    from rich.table import Table

    from zoo.export.onnx import describe_sizes

    table = Table(title=f"{exported.folder.name}: ONNX Runtime against torch", title_justify="left")
    table.add_column("graph")
    table.add_column("size", justify="right")
    table.add_column("run at")
    table.add_column("max diff", justify="right")
    for name, verified in exported.graphs.items():
        sizes = "\n".join(describe_sizes(sizes) for sizes in verified.tested)
        table.add_row(name, _megabytes(exported.folder, name), sizes, f"{verified.max_diff:.1e}")
    items = "\n".join(exported.runtime)
    table.add_row("embed.py", "", items, f"{max(exported.runtime.values()):.1e}")
    console = Console()
    console.print(table)
    print(f"\nwritten to {exported.folder}")
    print(f'use it:  python {exported.folder / "embed.py"} {exported.folder} --text "a cat"')


def _megabytes(folder: Path, name: str) -> str:
    return f"{sum(path.stat().st_size for path in folder.glob(f'{name}.onnx*')) / 1e6:.1f} MB"
