"""`zoo compare` as a command: processes, files, a recipe that fails, and what a second call does not do again."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
import toy
import yaml
from PIL import Image

from zoo import cli
from zoo.comparison import runner

TESTS = Path(__file__).parents[1]
COLOURS = {"red": (200, 10, 10), "green": (10, 200, 10), "blue": (10, 10, 200)}


def write(folder: Path, name: str, task: str = "colours", **init_args: Any) -> Path:
    """A toy recipe over three folders of one-coloured pictures."""
    pictures = {"path": str(folder / "pictures"), "captions": "folder"}
    tasks = {"class_path": "ImageFolderTasks", "init_args": {**pictures, "which": ["image_to_text"], "name": task}}
    raw = toy.recipe(folder, objective={"class_path": "InfoNCE", "init_args": {"temperature": 0.1}}, **init_args)
    train = [{"class_path": "ImageFolder", "init_args": pictures}]
    data = {"train": train, "val": [tasks], "test": [tasks], "batch_size": 3}
    raw["data"] = {"class_path": "EmbeddingData", "init_args": data}
    raw["trainer"] = {"accelerator": "cpu", "max_steps": 50, "max_epochs": -1}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False), "utf-8")
    return path


def compare(*arguments: object) -> int:
    return cli.main(["compare", *map(str, arguments)])


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recipes that work and one that does not, two seeds each: the folder with all of it."""
    folder = tmp_path_factory.mktemp("compared")
    for word, colour in COLOURS.items():
        (folder / "pictures" / word).mkdir(parents=True)
        for shade in (1.0, 0.8):
            picture = Image.new("RGB", (8, 8), tuple(int(c * shade) for c in colour))
            picture.save(folder / "pictures" / word / f"{shade}.png")
    recipes = [write(folder, "narrow"), write(folder, "wide", task="others", width=7), write(folder, "broken", widht=7)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        code = compare(*recipes, "--seeds", 2, "--steps", 3, "--out", folder / "out")
    assert code == 3  # some run failed
    return folder


def again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[list[str]]]:
    """The exit code of the same command without the broken recipe, and the processes that it started."""
    started: list[list[str]] = []
    popen = runner.subprocess.Popen

    def noted(command: list[str], **options: Any) -> Any:
        started.append(command)
        return popen(command, **options)

    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setattr(runner.subprocess, "Popen", noted)
    recipes = [folder / "narrow.yaml", folder / "wide.yaml"]
    return compare(*recipes, "--seeds", 2, "--steps", 3, "--out", folder / "out"), started


def test_all_train_on_the_data_of_the_first(compared: Path) -> None:
    found = json.loads((compared / "out" / "compare.json").read_text("utf-8"))
    assert found["data"] == "narrow" and found["steps"] == 3
    by_name = {one["name"]: one for one in found["recipes"]}
    assert by_name["narrow"]["finished"] == by_name["wide"]["finished"] == [0, 1]
    assert by_name["wide"]["parameters"] > by_name["narrow"]["parameters"]
    assert {measure["task"] for measure in found["measures"]} == {"image_to_text[colours]"}  # not `others`
    for measure in found["measures"]:
        assert set(measure["recipes"]) == {"narrow", "wide"} and measure["chance"] is not None
        assert all(len(one["values"]) == 2 for one in measure["recipes"].values())
    for seed in (0, 1):
        results = json.loads((compared / "out" / "wide" / f"seed-{seed}" / "results-test.json").read_text("utf-8"))
        assert results["training"]["steps"] == 3


def test_a_recipe_that_fails_is_a_line(compared: Path) -> None:
    found = json.loads((compared / "out" / "compare.json").read_text("utf-8"))
    (broken,) = [one for one in found["recipes"] if one["name"] == "broken"]
    assert broken["finished"] == [] and set(broken["failed"]) == {"0", "1"}
    assert all("widht" in why and "width" in why for why in broken["failed"].values())
    page = (compared / "out" / "compare.html").read_text("utf-8")
    assert "Failed runs" in page and "broken seed 0" in page


def test_seeds_differ_and_the_table_holds_every_run(compared: Path) -> None:
    weights = [compared / "out" / "narrow" / f"seed-{k}" / "bundle" / "model.safetensors" for k in (0, 1)]
    assert weights[0].read_bytes() != weights[1].read_bytes()
    rows = list(csv.DictReader((compared / "out" / "compare.csv").open(encoding="utf-8")))
    assert {row["recipe"] for row in rows} == {"narrow", "wide"}
    assert all(len(row["values"].split(";")) == 2 and row["seeds"] == "2" for row in rows)
    page = (compared / "out" / "compare.html").read_text("utf-8")
    assert page.count("<circle") >= 4 and "<script" not in page and "http" not in page.split("</style>")[1]


def test_a_second_call_trains_nothing(compared: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    table = (compared / "out" / "compare.csv").read_text("utf-8")
    code, started = again(compared, monkeypatch)
    assert (code, started) == (0, [])
    assert "4 of 4 runs were finished before" in capsys.readouterr().out
    assert (compared / "out" / "compare.csv").read_text("utf-8") == table


def test_an_interrupted_run_goes_on(compared: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    results = compared / "out" / "wide" / "seed-1" / "results-test.json"
    before = json.loads(results.read_text("utf-8"))
    results.unlink()
    code, started = again(compared, monkeypatch)
    assert code == 0 and len(started) == 1 and "--ckpt_path" in started[0]
    assert "1/1 wide seed 1: goes on" in capsys.readouterr().out
    after = json.loads(results.read_text("utf-8"))
    assert after["tasks"] == before["tasks"] and after["training"]["steps"] == 3


def test_other_settings_are_refused(compared: Path, capsys: Any) -> None:
    recipes = [compared / "narrow.yaml", compared / "wide.yaml"]
    assert compare(*recipes, "--seeds", 2, "--steps", 4, "--out", compared / "out") == cli.EXIT_BAD_INPUT
    message = capsys.readouterr().err
    assert "'narrow' was trained into" in message and "--out" in message
