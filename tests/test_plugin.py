"""A package from outside adds an architecture and a recipe: installed, listed, checked, trained, loaded."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent / "plugin_example"
ROOT = Path(__file__).parents[1]


def install(place: Path) -> Path:
    """What an installer does with the example: the package, and the metadata that its pyproject.toml states."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text("utf-8"))["project"]
    shutil.copytree(EXAMPLE / "colour_words", place / "colour_words", ignore=shutil.ignore_patterns("__pycache__"))
    about = place / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = project["entry-points"]["zoo.plugins"].items()
    (about / "entry_points.txt").write_text(
        "[zoo.plugins]\n" + "".join(f"{name} = {value}\n" for name, value in points)
    )
    return place


ZOO = "import sys; from zoo.cli import main; sys.exit(main(sys.argv[1:]))"


def run(place: Path, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A Python process that sees the zoo, and `place` as its site-packages."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(place), str(ROOT)]), "COLUMNS": "200"}
    environment.pop("ZOO_RECIPES", None)
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, cwd=cwd or place, timeout=600
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("site"))


def test_it_is_listed_and_shown_without_being_imported(place: Path) -> None:
    listed = run(place, "-X", "importtime", "-c", ZOO, "list")
    assert listed.returncode == 0 and "colour-words" in listed.stdout, listed.stderr
    imported = {line.rpartition("|")[2].strip() for line in listed.stderr.splitlines()}
    assert "zoo.catalog" in imported and not {"colour_words", "torch"} & imported
    shown = run(place, "-c", ZOO, "show", "colour-words")
    assert "from a package outside the zoo" in shown.stdout and "zoo-colour-words 0.1.0" in shown.stdout


CONTRACT = """
import zoo, zoo.testing
embedder = zoo.load("colour-words", weights=False)
zoo.testing.check_architecture(embedder.module)
print(type(embedder.module).__module__, embedder.dim)
"""


def test_it_keeps_the_contract_of_architectures(place: Path) -> None:
    done = run(place, "-c", CONTRACT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["colour_words.encoder", "64"]


USE = """
import zoo
embedder = zoo.load("path:runs/colour-words/bundle")
print(embedder.encode(["a red heart"]).shape, embedder.name)
"""


def test_its_recipe_is_trained_and_the_result_is_used(place: Path, tmp_path: Path) -> None:
    recipe = place / "colour_words" / "recipes" / "colour-words.yaml"
    fitted = run(place, "-c", ZOO, "fit", "--config", str(recipe), cwd=tmp_path)
    assert fitted.returncode == 0, fitted.stdout[-2000:] + fitted.stderr[-4000:]
    used = run(place, "-c", USE, cwd=tmp_path)
    assert used.stdout.split("\n")[0] == "(1, 64) colour-words", used.stderr


def test_a_broken_plug_in_is_one_warning(tmp_path: Path) -> None:
    broken = install(tmp_path)
    (broken / "colour_words" / "encoder.py").write_text("raise RuntimeError('no such luck')\n")
    done = run(broken, "-c", "import zoo.registry; print(len(zoo.registry.architectures()))")
    assert done.returncode == 0 and int(done.stdout) >= 1
    warnings = [line for line in done.stderr.splitlines() if "PluginWarning" in line]
    assert len(warnings) == 1 and "zoo-colour-words 0.1.0" in warnings[0] and "no such luck" in warnings[0]


@pytest.mark.skipif(
    importlib.util.find_spec("pip") is None or importlib.util.find_spec("setuptools") is None,
    reason="needs pip and setuptools, which are not installed here",
)
def test_pip_installs_it_as_the_other_tests_do(tmp_path: Path) -> None:
    source = shutil.copytree(EXAMPLE, tmp_path / "source")  # a build writes into its source
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", str(tmp_path / "site")]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, str(source)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    by_hand = install(tmp_path / "hand")

    def installed(site: Path) -> dict[str, str]:
        found = [
            *site.glob("colour_words/**/*.py"),
            *site.glob("**/*.yaml"),
            *site.glob("*.dist-info/entry_points.txt"),
        ]
        return {path.relative_to(site).as_posix(): path.read_text("utf-8").strip() for path in found}

    assert installed(tmp_path / "site") == installed(by_hand)
