"""One export of the tiny encoder, shared by all tests here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

WITHOUT_TORCH = """
import runpy, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "zoo", "transformers", "lightning", "onnx", "peft"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Missing())
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The graphs are tiny: more threads only wait for one another."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_embedder() -> Callable[..., Any]:
    """Folder and arguments of the tiny encoder -> what `zoo.load` would give."""

    def make(folder: Path, **arguments: Any) -> Any:
        from zoo.embedder import Embedder

        recipe = {"card": {"license": "Apache-2.0"}, "model": {"class_path": "VlmEncoder", "init_args": {}}}
        return Embedder(tiny.vlm_encoder(folder, **arguments), recipe, name="tiny", weights=None)

    return make


@pytest.fixture(scope="session")
def embedder(make_embedder: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny encoder as it is."""
    return make_embedder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def exported(embedder: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What `export_embedder` gave. Not to be changed: copy the folder first."""
    from zoo.export.folder import export_embedder

    before, sys.dont_write_bytecode = sys.dont_write_bytecode, False  # as for most users, whatever is set here
    try:
        return export_embedder(embedder, tmp_path_factory.mktemp("export") / "tiny")
    finally:
        sys.dont_write_bytecode = before


@pytest.fixture(scope="session", autouse=True)
def written(exported: Any) -> set[str]:
    """What lay in the folder right after the export, before any test ran the code in it (Python then adds its caches)."""
    return {p.relative_to(exported.folder).as_posix() for p in exported.folder.rglob("*") if p.is_file()}


@pytest.fixture
def copied(exported: Any, tmp_path: Path) -> Path:
    """A copy of the export folder, to be damaged."""
    return Path(shutil.copytree(exported.folder, tmp_path / "copied"))


@pytest.fixture
def without_tracing(exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of the tiny encoder take the graphs from the shared one: what follows them is tested."""
    from zoo.export import folder as folders
    from zoo.export import verify

    def copy(graph: Any, path: Path, opset: int) -> None:
        for file in exported.folder.glob(f"{graph.name}.onnx*"):
            shutil.copyfile(file, path.parent / file.name)

    assert folders.export_all is verify.export_all
    monkeypatch.setattr(verify, "export_graph", copy)


@pytest.fixture
def run_without_torch(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script in a fresh interpreter that can import neither torch nor the zoo."""

    def run(script: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WITHOUT_TORCH, str(script), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)

    return run
