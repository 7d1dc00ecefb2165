"""`zoo fit`, `validate`, `test` and `predict` as commands: what they leave behind, and which weights they take."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import toy
import yaml
from PIL import Image

import zoo
from zoo import catalog, cli


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return toy.fit_recipe(tmp_path)


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_the_bundle_is_what_was_trained_with_all_options(recipe: Path, tmp_path: Path) -> None:
    """A later `--config` and a dotted option decide the model, so they must be in what is loaded afterwards."""
    later = tmp_path / "later.yaml"
    later.write_text("model: {init_args: {notes: {a: 1}}}", "utf-8")
    assert run("fit", "--config", recipe, "--config", later, "--model.width", 7) == 0
    from_bundle = zoo.load("path:runs/mine/bundle")
    assert from_bundle.dim == 7 and from_bundle.module.notes == {"a": 1}
    from_checkpoint = zoo.load("path:runs/mine/checkpoints/last.ckpt")
    assert from_bundle.name == from_checkpoint.name == "mine"
    assert np.array_equal(from_bundle.encode("red cat"), from_checkpoint.encode("red cat"))
    assert "results" not in from_bundle.card


def test_a_recipe_without_a_card_is_refused_before_it_trains(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = yaml.safe_load(recipe.read_text("utf-8"))
    del raw["card"]
    recipe.write_text(yaml.safe_dump(raw), "utf-8")
    assert run("fit", "--config", recipe) == cli.EXIT_BAD_INPUT
    assert "card lacks title, family, license" in capsys.readouterr().err
    assert not Path("runs/mine/checkpoints").exists()


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_weights_are_those_of_the_recipe_file(recipe: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A recipe of the user's that is called like one of ours is not measured with our weights."""
    namesake = recipe.rename(recipe.with_name("clip-emoji.yaml"))
    assert run(command, "--config", namesake) == cli.EXIT_BAD_INPUT
    message = capsys.readouterr().err
    assert f"'clip-emoji' has no released weights to {command} with" in message and "--ckpt_path" in message
    assert run("fit", "--config", namesake) == 0
    raw = yaml.safe_load(namesake.read_text("utf-8"))
    weights = {"source": f"path:{Path('runs/clip-emoji/bundle').absolute()}", "notes": "they have seen the test tasks"}
    raw["card"]["weights"] = {"mine": weights}
    namesake.write_text(yaml.safe_dump(raw), "utf-8")
    assert run(command, "--config", namesake, "--run_dir", "runs/again") == 0
    assert "note: they have seen the test tasks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--trainer.max_stepz", 2], "unknown option --trainer.max_stepz; did you mean '--trainer.max_steps'"),
        (["--ckpt_path", "nope.ckpt"], "--ckpt_path: there is no nope.ckpt, and none in runs/mine/checkpoints"),
        (["--ckpt_path", "x/best.ckpt"], "(best.ckpt is written by the first validation)"),
    ],
)
def test_options_that_lead_nowhere_are_one_line(
    recipe: Path, arguments: list[object], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "--config", recipe, *arguments) == 2
    assert told in capsys.readouterr().err
    assert run("fit") == 2
    assert "name a recipe that has them: --config NAME or FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("head", "told"),
    [
        ({"mean": {"class_path": "Projection", "init_args": {"dm": 3}}}, "mean (Projection): unknown option 'dm'"),
        ({"widht": 3}, "model.image_head (GaussianHead): unknown option 'widht'"),
        ({}, "(GaussianHead): the following arguments are required: mean"),
    ],
)
def test_a_slip_within_a_union_is_named_where_it_is(
    head: dict[str, object], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A head may be one of several kinds; that the class is none of the others is no news."""
    raw = yaml.safe_load(catalog.find_path("prolip-emoji").read_text("utf-8"))
    raw["model"]["init_args"]["image_head"]["init_args"] |= head
    if not head:
        del raw["model"]["init_args"]["image_head"]["init_args"]["mean"]
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump(raw), "utf-8")
    assert run("fit", "--config", mine) == cli.EXIT_BAD_INPUT
    assert told in capsys.readouterr().err


def test_predict_writes_the_vectors_of_the_checkpoint(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "--config", recipe) == 0
    last = "runs/mine/checkpoints/last.ckpt"
    assert run("predict", "--config", recipe, "--ckpt_path", last) == 0
    assert "runs/mine/predictions/image_to_text-colours" in capsys.readouterr().out
    (path,) = Path("runs/mine/predictions").glob("*.parquet")
    rows = {row["id"]: row for row in pq.read_table(path).to_pylist()}
    model = zoo.load(f"path:{last}")
    assert len(rows) == 6 + 3  # pictures and words
    words = sorted(toy.COLOURS)
    for number, word in enumerate(words):
        assert rows[f"c:{number}"]["view"] == "target"
        assert np.allclose(rows[f"c:{number}"]["vector"], model.encode(word), atol=1e-6)


def test_predict_embeds_what_it_can(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sources whose names make the same file name, items that can't be used; a later run without any forgets them."""
    sources = []
    for name in ("my photos", "my-photos", "my photos", "MY/photos"):
        folder = tmp_path / f"{len(sources)}"
        folder.mkdir()
        for number in range(3):
            Image.new("RGB", (8, 8), (90 * number, 9, len(sources) * 60)).save(folder / f"{number}.png")
            (folder / f"{number}.txt").write_text("red cat")
        sources.append({"class_path": "ImageFolder", "init_args": {"path": str(folder), "name": name}})
    odd = [tmp_path / "0" / "1.png", tmp_path / "2" / "0.png"]
    for file in odd:
        shutil.copy(file, file.with_suffix(".kept"))
        file.write_bytes(b"no image")
    (tmp_path / "3" / "2.txt").write_text("")
    raw = yaml.safe_load(recipe.read_text("utf-8"))
    raw["data"]["init_args"] |= {"predict": sources, "eval_batch_size": 2}
    recipe.write_text(yaml.safe_dump(raw), "utf-8")
    assert run("fit", "--config", recipe) == 0
    command = ("predict", "--config", recipe, "--ckpt_path", "runs/mine/checkpoints/last.ckpt")
    Path("runs/mine/predictions").mkdir()
    Path("runs/mine/predictions/.my-photos.parquet.1.2.partial").touch()
    capsys.readouterr()
    assert run(*command) == 3
    assert "3 items could not be used" in (said := capsys.readouterr().out), said
    files = sorted(path.name for path in Path("runs/mine/predictions").iterdir())
    assert files == [
        "MY-photos-4.parquet",
        "bad.jsonl",
        "my-photos-2.parquet",
        "my-photos-3.parquet",
        "my-photos.parquet",
    ]
    assert "vectors of MY/photos: runs/mine/predictions/MY-photos-4.parquet" in said

    def ids(name: str) -> list[str]:
        return sorted(set(pq.read_table(f"runs/mine/predictions/{name}.parquet").column("id").to_pylist()))

    assert ids("my-photos") == ["my photos/0.png", "my photos/2.png"]
    assert ids("my-photos-2") == [f"my-photos/{n}.png" for n in range(3)]
    assert ids("my-photos-3") == ["my photos/1.png", "my photos/2.png"]
    assert ids("MY-photos-4") == ["MY/photos/0.png", "MY/photos/1.png"]
    listed = Path("runs/mine/predictions/bad.jsonl").read_text().split("\n")[:-1]
    errors = [json.loads(line)["error"] for line in listed]
    assert [name in error for name, error in zip(("0/1.png", "2/0.png", "2.png"), errors, strict=True)] == [True] * 3
    for file in odd:
        shutil.move(file.with_suffix(".kept"), file)
    (tmp_path / "3" / "2.txt").write_text("cat")
    assert run(*command) == 0 and not Path("runs/mine/predictions/bad.jsonl").exists()
    for file in tmp_path.glob("[0-3]/*.png"):
        file.write_bytes(b"no image")
    assert run(*command) == 2
    assert "none of the 12 items could be used; the first: " in capsys.readouterr().err


def test_a_source_that_finds_nothing_is_one_sentence(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also below lists and unions, where the parser would list all that it tried."""
    later = recipe.with_name("later.yaml")
    later.write_text(
        "data: {init_args: {train: [{class_path: WebDataset, init_args: {shards: 'no/{0..3}.tar'}}]}}", "utf-8"
    )
    assert run("fit", "--config", recipe, "--config", later) == cli.EXIT_BAD_INPUT
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "matches no file" in line


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_an_ended_fit_does_not_seem_finished(
    recipe: Path, sent: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ZOO_TRACEBACK", raising=False)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    raw = yaml.safe_load(recipe.read_text("utf-8"))
    raw["trainer"] |= {
        "max_steps": 9,
        "callbacks": [{"class_path": "toy.Ended", "init_args": {"signal": int(sent), "after": 4}}],
    }
    recipe.write_text(yaml.safe_dump(raw), "utf-8")
    try:
        assert run("fit", "--config", recipe) == code
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning leaves it ignored
    assert not Path("runs/mine/bundle").exists()
    assert "stopped at step 4; go on with the same command and --ckpt_path last" in capsys.readouterr().out
    raw["trainer"]["callbacks"] = []
    recipe.write_text(yaml.safe_dump(raw), "utf-8")
    assert run("fit", "--config", recipe, "--ckpt_path", "last") == 0
    assert torch.load("runs/mine/checkpoints/last.ckpt", weights_only=True)["global_step"] == 9
