"""`import zoo` and the light commands load no heavy library. (Modules are looked for: seconds are not stable.)"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import zoo

HEAVY = ("torch", "lightning", "transformers", "jsonargparse", "matplotlib", "pyarrow", "rich", "PIL", "numpy", "peft")


def loaded_by(code: str) -> set[str]:
    """Top-level packages in a fresh interpreter after running `code`."""
    report = "import sys, json; print('\\n' + json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import zoo",
        "import zoo.types, zoo.errors, zoo.registry, zoo.catalog",
        "from zoo import Item, Sample, Batch, Embedding, Graph, RetrievalTask, register, list_models, show",
        "import zoo; zoo.list_models()",
        "from zoo.cli import main; assert main(['--help']) == 0",
        "from zoo.cli import main; assert main(['list']) == 0",
        "from zoo.cli import main; assert main(['list', '--json']) == 0",
        "import zoo.cli, zoo.commands.list, zoo.commands.show, zoo.commands.doctor",
    ],
)
def test_light_paths_load_no_heavy_library(code: str) -> None:
    assert not loaded_by(code) & set(HEAVY)


def test_the_check_sees_a_heavy_library() -> None:
    assert "numpy" in loaded_by("import numpy")


@pytest.mark.parametrize("command", ["list", "show", "doctor", "data", "embed", "search", "export"])
def test_help_of_a_command_loads_no_heavy_library(command: str) -> None:
    code = f"from zoo.cli import main\ntry: main(['{command}', '--help'])\nexcept SystemExit as e: assert not e.code"
    assert not loaded_by(code) & set(HEAVY)


def test_show_loads_no_torch() -> None:
    names = zoo.list_models()
    assert names, "the zoo has no recipes"
    code = f"from zoo.cli import main; assert main(['show', {names[0]!r}]) == 0"
    assert not loaded_by(code) & {"torch", "lightning", "transformers", "jsonargparse"}


def test_public_names_are_all_there() -> None:
    for name in zoo.__all__:
        assert getattr(zoo, name) is not None
        assert name in dir(zoo)


def test_an_unknown_public_name_lists_those_that_exist() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'lod'.*load"):
        zoo.lod  # noqa: B018


def test_version_is_the_distribution_s() -> None:
    from importlib.metadata import version

    assert zoo.__version__ == version("embedding-zoo")


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(zoo.__file__).parent / "py.typed").is_file()
