"""The `zoo` command: what it prints, how it fails, and what its light subcommands say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import zoo
from zoo import catalog, cli
from zoo.errors import ZooError
from zoo.registry import PluginWarning

RECIPE = """\
card:
  title: A small encoder
  family: dual-encoder
  license: MIT
  paper: arXiv:2103.00020
  parameters: 5_500_000
  weights:
    official: {source: "hf:org/repo@v1", convert: small.official, notes: of the authors}
  results: {emoji: {date: 2026-11-23, "text->image recall@10": 0.31}}
model:
  class_path: Small
  init_args: {processor: {init_args: {tokenizer: "hf:org/other:tokenizer.json"}}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of recipes; it holds `small.yaml`."""
    place = tmp_path / "recipes"
    place.mkdir()
    (place / "small.yaml").write_text(RECIPE)
    monkeypatch.setattr(catalog, "_PACKAGE", tmp_path / "zoo")  # whose recipes would be in the folder beside it
    return place


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], int]], None]:
    """Replace `zoo list` by a function."""

    def replace(run: Callable[[Any], int]) -> None:
        module = types.ModuleType("zoo.commands.list", "Do nothing useful.\n\nMore about it.")
        module.add_arguments = lambda parser: parser.add_argument("--colour")
        module.run = run
        monkeypatch.setitem(sys.modules, "zoo.commands.list", module)

    return replace


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_overview_names_every_command(argv: list[str], capsys) -> None:
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in cli.COMMANDS)


def test_every_command_has_a_module() -> None:
    folder = Path(cli.__file__).parent / "commands"
    there = {path.stem.replace("_", "-") for path in folder.glob("*.py") if path.stem != "__init__"}
    assert there - set(cli.COMMANDS) == set(), "zoo --help does not name these"
    assert set(cli.COMMANDS) - there == {"validate", "test", "predict"}  # fit.py runs these too


def test_version(capsys) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"zoo {zoo.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["lits"], "error: unknown command 'lits'; did you mean 'list'?"),
        (["--lst"], "error: unknown option '--lst'"),
        (["list", "--jsn"], "error: zoo list: unrecognized arguments: --jsn; did you mean --json?"),
        (["list", "--js"], "did you mean --json?"),  # no guessing from the first letters
        (["show"], "error: zoo show: the following arguments are required: name"),
        (["show", "smal"], "error: unknown model 'smal'; did you mean 'small'?"),
        (["show", "small.oficial"], "did you mean 'official'?"),
        (["list", "smal*x"], "error: no entry is called like 'smal*x'; did you mean 'small'? (`zoo list` prints all)"),
        (["list", "qq*"], "error: no entry is called like 'qq*'; there are small (`zoo list` prints all)"),
        (["list", "bare", "--pretrained"], "no entry with released weights is called like 'bare'; there are small"),
        (
            ["list", "--family", "fusion", "--pretrained"],
            "error: unknown family 'fusion'; there are dual-encoder",
        ),
        (["list", "--family", "vlm"], "error: unknown family 'vlm'; there are dual-encoder"),
        (["show", "qq"], "error: unknown model 'qq'; there are small (`zoo list` prints all)"),
        (["list", "--family", "dual_encoder"], "did you mean 'dual-encoder'?"),
    ],
)
def test_bad_input_is_one_line_and_code_2(folder: Path, capsys, argv: list[str], message: str) -> None:
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_a_zoo_error_has_a_traceback_on_demand(command, capsys, monkeypatch) -> None:
    def fail(args: Any) -> int:
        raise ZooError("the cheese is gone; buy some")

    command(fail)
    assert cli.main(["list"]) == 2
    assert capsys.readouterr().err == "error: the cheese is gone; buy some\n"
    monkeypatch.setenv("ZOO_TRACEBACK", "1")
    with pytest.raises(ZooError):
        cli.main(["list"])


def test_other_errors_keep_their_traceback(command) -> None:
    command(lambda args: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["list"])


def test_the_exit_code_is_that_of_the_command(command) -> None:
    command(lambda args: 7)
    assert cli.main(["list"]) == 7


def test_interrupt(command, capsys) -> None:
    def interrupt(args: Any) -> int:
        raise KeyboardInterrupt

    command(interrupt)
    assert cli.main(["list"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_help_of_a_command_is_its_docstring(command, capsys) -> None:
    command(lambda args: 0)
    with pytest.raises(SystemExit) as caught:
        cli.main(["list", "--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0
    assert "Do nothing useful." in out and "More about it." in out and "--colour" in out


def test_training_commands_hand_on_the_rest_of_the_line(monkeypatch) -> None:
    module = types.ModuleType("zoo.commands.fit")
    calls = []
    module.run_lightning = lambda subcommand, argv: calls.append((subcommand, argv)) or 3
    monkeypatch.setitem(sys.modules, "zoo.commands.fit", module)
    assert [cli.main([name, "--config", "x.yaml", "--help"]) for name in ("fit", "validate", "test", "predict")] == [
        3
    ] * 4
    assert calls == [(name, ["--config", "x.yaml", "--help"]) for name in ("fit", "validate", "test", "predict")]


def test_our_warnings_are_one_line_and_others_say_where_they_come_from(command, capsys) -> None:
    def warn(args: Any) -> int:
        warnings.warn("a plug-in is gone", PluginWarning, stacklevel=1)
        warnings.warn("of a library", UserWarning, stacklevel=1)
        return 0

    command(warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main(["list"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("warning: a plug-in is gone\n")
    assert "test_cli.py" in err and "UserWarning: of a library" in err


def test_a_reader_that_has_enough_is_no_error() -> None:
    code = "import sys; from zoo.cli import main; print('x' * 10**6); sys.exit(main(['list']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None and run.stderr is not None
        run.stdout.close()
        errors = run.stderr.read().decode()
    assert "Exception ignored" not in errors


def test_the_installed_script() -> None:
    script = Path(sys.executable).with_name("zoo")
    run = subprocess.run([script, "list", "--zzz"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 2 and run.stderr.startswith("error: zoo list: unrecognized arguments: --zzz")


# ---- list and show ---------------------------------------------------------------------------------------------------


def test_list_prints_one_line_per_entry(folder: Path, capsys) -> None:
    assert cli.main(["list", "small"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "family", "parameters", "weights", "licence", "what"]
    assert "small  dual-encoder  5.5M        official  MIT      A small encoder" in lines


def test_list_filters(folder: Path, capsys) -> None:
    (folder / "bare.yaml").write_text("card: {title: t, family: fusion, license: MIT}\nmodel: {class_path: X}\n")

    def listed(*argv: str) -> set[str]:
        assert cli.main(["list", "--json", *argv]) == 0
        return {entry["name"] for entry in json.loads(capsys.readouterr().out)}

    assert listed() == {"bare", "small"}
    assert listed("mal") == listed("s*l") == listed("--pretrained") == {"small"}
    assert listed("--family", "fusion") == {"bare"}


def test_list_warns_of_a_broken_recipe_and_goes_on(folder: Path, capsys) -> None:
    (folder / "torn.yaml").write_text("{")
    assert cli.main(["list"]) == 0
    captured = capsys.readouterr()
    assert (
        "small" in captured.out
        and "torn.yaml" in captured.err
        and captured.err.startswith("warning: left out a recipe of zoo: ")
    )


@pytest.mark.parametrize(
    ("count", "text"), [(None, "-"), (7, "7"), (2_208_985_600, "2.21B"), (5_500_000, "5.5M"), (40_000, "40K")]
)
def test_short_count(count: int | None, text: str) -> None:
    from zoo.commands.list import short_count

    assert short_count(count) == text


def test_show_prints_card_weights_results_and_recipe(folder: Path, capsys) -> None:
    assert cli.main(["show", "small"]) == 0
    out = capsys.readouterr().out
    for text in (
        "small: A small encoder",
        "5,500,000",
        "arXiv:2103.00020",
        'zoo.load("small.official")  not all here',
        "hf:org/repo@v1  to be fetched",
        "hf:org/other:tokenizer.json  to be fetched",
        "converter small.official",
        "text->image recall@10: 0.31",
        "class_path: Small",
    ):
        assert text in out


def test_show_sees_weights_that_are_here(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    for repository, file in (("org/repo", "model.safetensors"), ("org/other", "tokenizer.json")):
        (tmp_path / "store" / repository).mkdir(parents=True)
        (tmp_path / "store" / repository / file).touch()
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path / "store"))
    assert cli.main(["show", "small"]) == 0
    out = capsys.readouterr().out
    assert 'zoo.load("small.official")  here' in out and "to be fetched" not in out
    assert f"hf:org/repo@v1  {tmp_path / 'store' / 'org/repo'}" in out


def test_show_as_json(folder: Path, capsys) -> None:
    assert cli.main(["show", "small", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["recipe"] == RECIPE and facts["card"]["parameters"] == 5_500_000
    assert facts["weights"]["official"] == {"here": False, "missing": ["hf:org/repo@v1", "hf:org/other:tokenizer.json"]}


# ---- doctor ----------------------------------------------------------------------------------------------------------


def test_doctor_reports_what_is_here(folder: Path, capsys) -> None:
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert any(line.split()[:2] == ["torch", metadata.version("torch")] for line in out.splitlines())
    assert "small.official" in out and "no: hf:org/repo@v1, hf:org/other:tokenizer.json" in out
    assert "hf download org/repo --revision v1\n" in out and "hf download org/other tokenizer.json\n" in out
    assert os.environ["HF_HOME"] in out and "GB free" in out and "cores" in out


def test_doctor_says_what_is_too_old_and_what_is_missing(capsys, monkeypatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "transformers":
            return "4.40.0"
        if name in ("safetensors", "onnx"):
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    rows = {line.split()[0]: line for line in out.splitlines() if line}
    assert "4.40.0" in rows["transformers"] and "too old" in rows["transformers"]
    assert "missing" in rows["safetensors"] and "missing" in rows["onnx"]
    advice = out.partition("how to get what is missing")[2]
    assert "'safetensors>=" in advice and "'transformers>=" in advice and "'embedding-zoo[export]'" in advice
    assert "'torch" not in advice


def test_doctor_sees_a_cache_that_can_not_be_written(capsys, monkeypatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    cli.main(["doctor"])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("hub cache"))
    assert "NOT WRITABLE" in line and "HF_HOME" in line


def test_doctor_works_without_torch(tmp_path: Path) -> None:
    """In an interpreter that sees nothing but the zoo, PyYAML and packaging."""
    import packaging
    import yaml

    for module in (zoo, yaml, packaging):
        package = Path(str(module.__file__)).parent
        (tmp_path / package.name).symlink_to(package)
    info = Path(str(metadata.distribution("embedding-zoo")._path))  # type: ignore[attr-defined]
    (tmp_path / info.name).symlink_to(info)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from zoo.cli import main; sys.exit(main(['doctor']))"
    run = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stderr == "" and run.returncode == 1
    rows = {line.split()[0]: line for line in run.stdout.splitlines() if line}
    assert rows["torch"].split()[1:] == ["-", ">=2.11", "missing"]
    assert "torch can't be imported" in rows["accelerator"]
    assert "pip install --upgrade" in run.stdout and "'torch>=2.11'" in run.stdout
