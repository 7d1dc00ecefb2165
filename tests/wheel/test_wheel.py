"""The wheel: what is inside, that it works from where it is installed, and what it says it needs."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import zoo
from zoo import catalog
from zoo.bundle import read_bundle
from zoo.weights import packaged

ROOT = Path(zoo.__file__).parent.parent
needs_checkout = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="there is no source to build from")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the unpacked wheel, as site-packages does."""
    from hatchling.build import build_wheel

    folder = tmp_path_factory.mktemp("wheel")
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        name = build_wheel(str(folder))
    finally:
        os.chdir(before)
    with zipfile.ZipFile(folder / name) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def run_in(site: Path, code: str, timeout: int = 120) -> str:
    """Output of `code` where the unpacked wheel comes first and the checkout is not the working folder."""
    program = f"import sys; sys.path.insert(0, {str(site)!r})\n{code}"
    run = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, cwd=site, timeout=timeout
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


@needs_checkout
def test_the_wheel_lists_its_own_recipes(site: Path) -> None:
    code = "import zoo; assert zoo.__file__.startswith(sys.path[0]); print(*zoo.list_models())"
    assert run_in(site, code).split() == catalog.names()
    shown = run_in(site, f"import zoo; print(zoo.show({catalog.names()[0]!r})['file'])")
    assert Path(shown.strip()).parent == site / "zoo" / "_recipes"


@needs_checkout
def test_the_wheel_holds_data_runtime_licence_and_types(site: Path) -> None:
    for name in ("data/packaged/emoji.parquet", "_exports/python/embed.py", "py.typed"):
        assert (site / "zoo" / name).is_file(), name
    assert list(site.glob("*.dist-info/licenses/LICENSE"))


@needs_checkout
def test_the_wheel_holds_the_packaged_bundles(site: Path) -> None:
    """Reading one compares the digest of every file."""
    assert {folder.name for folder in (site / "zoo" / "bundles").iterdir()} == set(packaged())
    for name in packaged():
        written = sorted(read_bundle(site / "zoo" / "bundles" / name).folder.iterdir())
        assert [file.name for file in written] == sorted(file.name for file in (ROOT / "zoo/bundles" / name).iterdir())


@needs_checkout
def test_the_wheel_loads_a_packaged_bundle(site: Path) -> None:
    code = (
        "import zoo; m = zoo.load('clip-emoji', device='cpu')\n"
        "assert zoo.__file__.startswith(sys.path[0]) and m.weights.startswith(sys.path[0])\n"
        "print(m.encode('a dog').shape)"
    )
    assert run_in(site, code, timeout=600) == "(256,)\n"


@needs_checkout
def test_the_wheel_holds_every_module_and_nothing_else(site: Path) -> None:
    built = {p.relative_to(site) for p in (site / "zoo").rglob("*.py") if "_exports" not in p.parts}
    written = {p.relative_to(ROOT) for p in (ROOT / "zoo").rglob("*.py")}
    assert built == written
    assert {p.name for p in site.iterdir() if p.suffix != ".dist-info"} == {"zoo"}, "stray packages beside zoo"


@needs_checkout
def test_constraints_are_the_lower_bounds() -> None:
    project = pyproject()["project"]
    stated = project["dependencies"] + project["optional-dependencies"]["export"]
    bounds = {}
    for requirement in map(Requirement, stated):
        (bound,) = requirement.specifier
        assert bound.operator == ">=", f"{requirement}: one lower bound, no upper bound"
        bounds[requirement.name] = tuple(map(int, bound.version.split(".")))
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    tested = {}
    for requirement in (Requirement(line) for line in lines if not line.startswith("#")):
        (pin,) = requirement.specifier
        tested[requirement.name] = tuple(map(int, pin.version.split(".")))
    assert tested.keys() == bounds.keys()
    assert {name: version[: len(bounds[name])] for name, version in tested.items()} == bounds
    for name, version in tested.items():
        assert not any(version[len(bounds[name]) :]), f"{name}: test the bound itself, not a later release"
