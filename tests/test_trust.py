"""What comes from elsewhere runs no code of its own: every way that is known to make the parser import, open or call."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
import yaml

import zoo
from zoo import trust
from zoo.bundle import MANIFEST, write_bundle
from zoo.cli import main
from zoo.command_line import read_command_line
from zoo.data.sources.emoji_tasks import EmojiTasks
from zoo.data.sources.zero_shot import ZeroShot
from zoo.errors import RecipeError, WeightsError, ZooError
from zoo.loading import converter
from zoo.registry import plugins, without_working_folder
from zoo.weights import sha256

CODE = """
import pathlib
pathlib.Path({canary!r}).write_text('executed')
X = Objective = dict
class Evil: ...
def scheduler(optimizer): ...
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A stranger's bundle, and code beside and inside of it that tells whether it ran."""
    folder = write_bundle(toy.build(tmp_path), toy.recipe(tmp_path), tmp_path / "stranger" / "bundle")
    code = CODE.format(canary=str(tmp_path / "canary"))
    for where in (folder, folder.parent):
        for name in ("evil.py", "ev·il.py", "antigravity_too.py", "sub/evil.py", "zoo_evil/__init__.py"):
            (where / name).parent.mkdir(exist_ok=True)
            (where / name).write_text(code, "utf-8")
        (where / "sub.yaml").write_text("class_path: evil.X\n", "utf-8")
        (where / "InfoNCE").write_text("class_path: evil.X\n", "utf-8")
        (where / "name.txt").write_text("evil.X", "utf-8")
    return folder


@pytest.fixture(params=["", "bundle"])
def started_in(request: pytest.FixtureRequest, place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Python was started in the bundle, or all that is on the import path."""
    before = set(sys.modules)
    if request.param:
        monkeypatch.chdir(place)
        monkeypatch.syspath_prepend("")
    else:  # as if installed, which makes it no part of the zoo
        monkeypatch.syspath_prepend(place)
    yield request.param
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("evil", "ev·il", "sub", "bundle", "zoo_evil", "antigravity"):
            del sys.modules[name]


def rewritten(bundle: Path, text: str) -> None:
    """Another recipe in a bundle whose manifest vouches for it and for all files."""
    (bundle / "recipe.yaml").write_text(text, "utf-8")
    manifest = json.loads((bundle / MANIFEST).read_text("utf-8"))
    files = sorted(p for p in bundle.rglob("*") if p.is_file() and p.name != MANIFEST)
    manifest["files"] = {
        p.relative_to(bundle).as_posix(): {"sha256": sha256(p), "bytes": p.stat().st_size} for p in files
    }
    (bundle / MANIFEST).write_text(json.dumps(manifest), "utf-8")


def with_argument(bundle: Path, key: str, yaml_text: str) -> None:
    """A line in `init_args`, written as it stands."""
    recipe = toy.recipe(bundle.parent.parent)
    recipe["model"]["init_args"] |= {
        "processor": {"class_path": "toy.ToyProcessor", "init_args": {"words": "bundle:words.json"}}
    }
    if key == "processor":
        del recipe["model"]["init_args"]["processor"]
    text = yaml.safe_dump(recipe, sort_keys=False).replace(
        "  init_args:\n", f"  init_args:\n    {key}: {yaml_text}\n", 1
    )
    rewritten(bundle, text)


def refused(place: Path, canary: Path) -> str:
    """The message with which the bundle is refused; nothing ran."""
    with pytest.raises(ZooError) as caught:
        zoo.load(f"path:{place}")
    assert not canary.exists()
    return str(caught.value)


VALUES = {
    "a class of a file": "{class_path: evil.X}",
    "a bare name": "evil.X",
    "a name in text that is JSON": """'{"class_path": "evil.X"}'""",
    "an escape of JSON in text": r"""'{"class_path": "evil\u002eX"}'""",
    "an escape of YAML in text": r"""'{"class_path": "\x65vil\x2eX"}'""",
    "an escape of YAML": r'"\x65vil\u002eX"',
    "an escape of YAML in a class path": r'{class_path: "\x65vil.X"}',
    "letters that Python folds": '{class_path: "ｅｖｉｌ.X"}',
    "a middle dot": "{class_path: ev·il.X}",
    "a middle dot in text": "ev·il.X",
    "a file": "sub.yaml",
    "a file called like a class": "InfoNCE",
    "a file in text in text": """'"sub.yaml"'""",
    "a file with a name": "name.txt",
    "a file of the bundle": '"bundle:sub.yaml"',
    "a file of the bundle with a name": '"bundle:name.txt"',
    "a module in a folder": "{class_path: sub.evil.X}",
    "a folder above": "{class_path: bundle.evil.X}",
    "a name that begins like the zoo": "{class_path: zoo_evil.X}",
    "a relative path": '{class_path: ".evil.X"}',
    "a tag of YAML": "!!python/object:evil.X {}",
    "a tag that makes modules": "!!python/module:evil {}",
    "an alias": "[&a {class_path: evil.X}, *a]",
    "a merge key": "{<<: {class_path: evil.X}}",
    "a class path that is a list": "{class_path: [evil.X]}",
    "a class path that is none": "{class_path: null, init_args: {class_path: evil.X}}",
    "a class of a class": "{class_path: {class_path: evil.X}}",
    "arguments of a good class": "{class_path: zoo.objectives.infonce.InfoNCE, init_args: {temperature: evil.X}}",
    "an object among arguments": "{class_path: InfoNCE, init_args: {temperature: {class_path: evil.X}}}",
    "keyword arguments": "{class_path: InfoNCE, dict_kwargs: {temperature: {class_path: evil.X}}}",
    "a list": "[evil.X]",
    "a list of classes": "[{class_path: evil.X}]",
    "what a module of the zoo imports": "{class_path: zoo.cli.os.system, init_args: {command: touch canary}}",
    "the same as text": "zoo.cli.os.system",
    "a class that the zoo imports": "{class_path: zoo.bundle.Path}",
    "a module of the standard library": "{class_path: antigravity.X}",
    "the same as text, again": "antigravity.X",
    "a module that runs a program": "{class_path: zoo.__main__.X}",
    "a shell": "{class_path: subprocess.Popen, init_args: {args: touch canary}}",
    "a function of torch": "{class_path: torch.load, init_args: {f: weights.pt}}",
    "code from a repository": "{class_path: torch.hub.load, init_args: {repo_or_dir: x/y, model: m}}",
    "a function through torch.nn": "{class_path: torch.nn.modules.module.torch.load, init_args: {f: w.pt}}",
    "a compiler": "{class_path: torch.utils.cpp_extension.load, init_args: {name: a, sources: [a.c]}}",
    "pickled modules": "{class_path: torch.package.PackageImporter, init_args: {file_or_buffer: a.pt}}",
    "a class of torch that is no module": "{class_path: torch.nn.parameter.OrderedDict}",
    "a module of torch elsewhere": "{class_path: torch.jit.ScriptModule}",
    "a function of the zoo": "{class_path: zoo.loading.build_model, init_args: {model: {}, recipe: a}}",
    "the way around": "{class_path: zoo.trust.importlib.import_module, init_args: {name: evil}}",
}
PLACES = ["objective", "optimizer", "notes", "freeze"]


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_nothing_runs(place: Path, tmp_path: Path, started_in: str, value: str) -> None:
    """In no place where a class, a function, data of any kind, or a list of text is due."""
    for key in PLACES:
        with_argument(place, key, value)
        with contextlib.suppress(ZooError):  # plain data is no danger: it stays what it is
            embedder = zoo.load(f"path:{place}")
            held = embedder.module.notes if key == "notes" else embedder.module.freeze_patterns
            assert isinstance(held, dict | tuple), (key, held)
        assert not (tmp_path / "canary").exists(), key


REFUSED = {
    "objective": [key for key in VALUES if key != "a file called like a class"],
    "optimizer": list(VALUES),
    "scheduler": list(VALUES),
}


@pytest.mark.parametrize("key", REFUSED)
def test_all_of_it_is_refused_where_a_class_is_due(place: Path, tmp_path: Path, key: str) -> None:
    for name in REFUSED[key]:
        with_argument(place, key, VALUES[name])
        with pytest.raises(ZooError):
            zoo.load(f"path:{place}")


@pytest.mark.parametrize(
    "function",
    [
        "os.system",
        "evil.scheduler",
        "torch.load",
        "zoo.loading.load",
        "functools.partial",
        "torch.optim.swa_utils.update_bn",
    ],
)
@pytest.mark.parametrize("key", ["optimizer", "scheduler"])
def test_no_function_is_called_in_place_of_a_class(place: Path, tmp_path: Path, key: str, function: str) -> None:
    for value in (function, f"{{class_path: {function}}}"):
        with_argument(place, key, value)
        refused(place, tmp_path / "canary")


def test_the_message_names_the_class_and_the_way_out(place: Path, tmp_path: Path) -> None:
    with_argument(place, "objective", "{class_path: evil.X}")
    message = refused(place, tmp_path / "canary")
    assert str(place) in message and "'evil.X'" in message and "ZOO_TRUST=evil" in message
    assert "\n" not in message


def test_what_belongs_there_is_built(place: Path) -> None:
    """Short names and full ones, of the zoo and of torch, written as mappings or as text."""
    with_argument(place, "objective", "{class_path: zoo.objectives.infonce.InfoNCE, init_args: {temperature: 0.05}}")
    assert type(zoo.load(f"path:{place}").module.objective).__name__ == "InfoNCE"
    with_argument(place, "objective", "InfoNCE")
    assert type(zoo.load(f"path:{place}").module.objective).__name__ == "InfoNCE"
    for optimizer in ("{class_path: torch.optim.AdamW, init_args: {lr: 0.5}}", "zoo.module.adamw"):
        with_argument(place, "optimizer", optimizer)
        made = zoo.load(f"path:{place}").module.optimizer([torch.nn.Parameter(torch.zeros(1))])
        assert isinstance(made, torch.optim.AdamW)
        assert made.param_groups[0]["lr"] == (0.5 if "lr" in optimizer else 1e-3)


def test_a_class_of_ones_own_needs_to_be_trusted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOO_TRUST", raising=False)
    with pytest.raises(WeightsError, match=r"'toy\.ToyEncoder'.*ZOO_TRUST=toy"):
        zoo.load(f"path:{place}")
    monkeypatch.setenv("ZOO_TRUST", "other, toy")
    assert zoo.load(f"path:{place}").name == "bundle"


# ---- runs, recipes, converters --------------------------------------------------------------------------------------


def a_run(folder: Path, **card: Any) -> Path:
    """A run without a bundle."""
    recipe = toy.recipe(folder.parent) | {}
    recipe["card"] |= card
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    torch.save({"state_dict": toy.build(folder.parent).state_dict()}, folder / "checkpoints" / "last.ckpt")
    return folder


@pytest.mark.parametrize("name", ["", "checkpoints/last.ckpt", "recipe.yaml"])
def test_a_run_without_a_bundle_is_held_to_it(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(tmp_path / "run")
    (tmp_path / "evil.py").write_text(CODE.format(canary=str(tmp_path / "canary")), "utf-8")
    text = (run / "recipe.yaml").read_text("utf-8")
    (run / "recipe.yaml").write_text(text.replace("init_args:", "init_args:\n    objective: evil.X", 1), "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    for weights in (True, False):
        with pytest.raises(ZooError):
            zoo.load(f"path:{run / name}", weights=weights)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "convert", ["evil:scheduler", "zoo.cli:os", "os:system", "zoo.trust:importlib", "vlm2vec.sys.exit"]
)
def test_converters_of_a_run_are_those_of_the_zoo(
    tmp_path: Path, convert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path / "run", convert=convert)
    (run / "evil.py").write_text(CODE.format(canary=str(tmp_path / "canary")), "utf-8")
    shutil.copy(run / "checkpoints" / "last.ckpt", run / "checkpoints" / "last.pt")
    monkeypatch.chdir(run)
    monkeypatch.syspath_prepend("")
    with pytest.raises(ZooError):
        zoo.load(f"path:{run / 'checkpoints' / 'last.pt'}")
    assert not (tmp_path / "canary").exists()
    with trust.elsewhere("a run"):
        with pytest.raises(ZooError):
            converter(convert)
        assert callable(converter("open_clip.gelu"))


def test_recipes_of_ones_own_keep_their_freedom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the command line and in Python people name what they wrote themselves."""
    monkeypatch.delenv("ZOO_TRUST", raising=False)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(toy.recipe(tmp_path)), "utf-8")
    assert zoo.load(f"path:{tmp_path / 'mine.yaml'}", weights=False).name == "mine"


@pytest.mark.parametrize("templates", ["evil:X", "os:system", "zoo.cli:os", "zoo.loading:load", "sys:path"])
def test_prompts_of_a_recipe_from_elsewhere_are_not_those_of_any_module(
    tmp_path: Path, templates: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text(CODE.format(canary=str(tmp_path / "canary")), "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with trust.elsewhere("a bundle"), pytest.raises(ZooError):
        ZeroShot(EmojiTasks(), templates=templates)
    assert not (tmp_path / "canary").exists()


def test_fitting_from_a_bundle_runs_none_of_its_code(place: Path, tmp_path: Path, started_in: str) -> None:
    """`--start` hands its recipe to the parser of the command line, which opens files called like a class."""
    with_argument(place, "objective", "InfoNCE")
    arguments = read_command_line("fit", ["--start", str(place)]).arguments
    model = json.loads(arguments[arguments.index("--config") + 1])["model"]
    assert model["init_args"]["objective"]["class_path"].endswith(".InfoNCE")
    main(["fit", "--start", str(place), "--data", "EmbeddingData", "--run_dir", str(tmp_path / "run")])
    assert not (tmp_path / "canary").exists()
    with_argument(place, "optimizer", "zoo.module.adamw")
    assert "optimizer" not in read_command_line("fit", ["--start", str(place)]).arguments[1]
    with_argument(place, "objective", "{class_path: evil.X}")
    with pytest.raises(WeightsError, match=r"evil\.X"):
        read_command_line("fit", ["--start", str(place)])
    assert not (tmp_path / "canary").exists()


SECTIONS: dict[str, dict[str, Any]] = {
    "a callback": {"trainer": {"callbacks": [{"class_path": "evil.X"}]}},
    "a logger": {"trainer": {"logger": {"class_path": "evil.X"}}},
    "a plug-in of the trainer": {"trainer": {"plugins": ["evil.X"]}},
    "data": {"data": {"class_path": "evil.X"}},
    "a source": {"data": {"class_path": "EmbeddingData", "init_args": {"train": [{"class_path": "evil.X"}]}}},
}


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_no_section_of_a_bundles_recipe_runs_code(
    command: str, section: str, place: Path, tmp_path: Path, started_in: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of it goes to the parser where the recipe itself is named."""
    with_argument(place, "objective", "InfoNCE")
    recipe = yaml.safe_load((place / "recipe.yaml").read_text("utf-8"))
    rewritten(place, yaml.safe_dump({"data": {"class_path": "EmbeddingData"}} | recipe | SECTIONS[section]))
    assert main([command, "--config", str(place / "recipe.yaml"), "--run_dir", str(tmp_path / "run")]) != 0
    assert "names 'evil', which is never run" in capsys.readouterr().err
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_text_that_is_read_while_parts_are_made_imports_nothing(
    command: str, place: Path, tmp_path: Path, started_in: str
) -> None:
    """The trainer's profiler may be a text, which only its constructor looks at."""
    with_argument(place, "objective", "InfoNCE")
    recipe = yaml.safe_load((place / "recipe.yaml").read_text("utf-8"))
    trainer = {"trainer": {"profiler": "{class_path: evil.X}"}}
    rewritten(place, yaml.safe_dump({"data": {"class_path": "EmbeddingData"}} | recipe | trainer))
    assert main([command, "--config", str(place / "recipe.yaml"), "--run_dir", str(tmp_path / "run")]) != 0
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("section", [name for name, value in SECTIONS.items() if "data" in value])
def test_a_bundles_recipe_whose_data_is_cached_runs_no_code(
    section: str, place: Path, tmp_path: Path, started_in: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with_argument(place, "objective", "InfoNCE")
    recipe = yaml.safe_load((place / "recipe.yaml").read_text("utf-8"))
    rewritten(place, yaml.safe_dump(recipe | SECTIONS[section]))
    assert main(["cache", "--config", str(place / "recipe.yaml"), "--folder", str(tmp_path / "latents")]) != 0
    assert "names 'evil', which is never run" in capsys.readouterr().err
    assert not (tmp_path / "canary").exists()


# ---- the folder that Python was started in --------------------------------------------------------------------------

FAKES = """
import sys
from pathlib import Path
import zoo
try:
    zoo.load("path:bundle")
except zoo.ZooError as error:
    print("REFUSED", error)
print("canary" if Path("canary").exists() else "nothing ran")
"""


@pytest.mark.parametrize(
    "way", ["-c", pytest.param("file", marks=pytest.mark.slow), pytest.param("-m", marks=pytest.mark.slow)]
)
def test_a_plugin_that_lies_in_the_working_folder_is_not_installed(place: Path, way: str) -> None:
    """Its metadata, its package, and a package called like a library that a bundle may name."""
    here = place.parent
    code = "import pathlib; pathlib.Path('canary').write_text('executed')\nclass X: ...\n"
    about = here / "faked-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: faked\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[zoo.plugins]\nfaked = faked\n")
    for name in ("faked/__init__.py", "timm/__init__.py", "timm/optim/__init__.py"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text(code)
    with_argument(place, "objective", "{class_path: faked.X}")
    (here / "started.py").write_text(FAKES)
    argv = {"-c": ["-c", FAKES], "file": ["started.py"], "-m": ["-m", "started"]}[way]
    needed = Path(zoo.__file__).parents[1], Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, needed))}
    done = subprocess.run(
        [sys.executable, *argv], capture_output=True, text=True, env=environment, cwd=here, timeout=300
    )
    assert done.stdout.startswith("REFUSED") and "faked.X" in done.stdout, done.stdout + done.stderr
    assert done.stdout.endswith("nothing ran\n")


def test_the_working_folder_is_off_the_path_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "/first", str(tmp_path), "/second", *sys.path])
    before = list(sys.path)
    with without_working_folder():
        assert sys.path == [entry for entry in before if entry not in ("", str(tmp_path))]
    assert sys.path == before
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # named on purpose
    with without_working_folder():
        assert str(tmp_path) in sys.path and "" not in sys.path


def test_an_installation_in_place_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pip install --editable .` puts the folder behind the standard library."""
    about = tmp_path / "inplace-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: inplace\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[zoo.plugins]\ninplace = inplace\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert "inplace" in [point.name for point in plugins()]


def test_a_missing_library_is_named(place: Path) -> None:
    with_argument(place, "optimizer", "{class_path: timm.optim.no_such_module.Lion}")
    with pytest.raises(RecipeError, match=r"'timm\.optim\.no_such_module\.Lion'.*no such module"):
        zoo.load(f"path:{place}")
