"""Fitting a released model on images of one's own: what has to be said, and what the run then says of itself."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
import yaml
from PIL import Image
from safetensors.torch import save_file

import zoo
from zoo import cli
from zoo.card import card_of_run, card_text, example_of_use
from zoo.command_line import read_command_line
from zoo.comparison.plan import plan
from zoo.errors import RecipeError, UnknownNameError
from zoo.loading import recipe_at
from zoo.nn.start import recipe_without_pretrained
from zoo.weights import sha256

COLOURS = {"red": (200, 10, 10), "green": (10, 200, 10), "blue": (10, 10, 200)}


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six captioned images, in the working folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for word, colour in COLOURS.items():
        for shade in (10, 8):
            Image.new("RGB", (8, 8), tuple(c * shade // 10 for c in colour)).save(folder / f"{word}{shade}.png")
            (folder / f"{word}{shade}.txt").write_text(f"{word} cat", "utf-8")
    return folder


@pytest.fixture
def released(photos: Path, tmp_path: Path) -> Path:
    """A trained bundle whose recipe names data, figures and a place of `pretrained` weights that are gone."""
    gone = tmp_path / "gone.safetensors"
    save_file(toy.ToyBackbone().state_dict(), gone)
    backbone = {"class_path": "toy.ToyBackbone", "init_args": {"pretrained": f"path:{gone}"}}
    objective = {"class_path": "InfoNCE", "init_args": {"temperature": 0.1}}
    raw = toy.recipe(tmp_path, objective=objective, backbone=backbone, freeze=["backbone"])
    raw["model"]["class_path"] = "toy.ToyAdapted"
    raw["card"] |= {"notes": "Trained on the packaged emoji.", "results": {"emoji test": {"recall@1": 0.5}}}
    task = {"class_path": "ImageFolderTasks", "init_args": {"path": "photos", "name": "theirs"}}
    train = [{"class_path": "ImageFolder", "init_args": {"path": "photos"}}] * 2
    raw["data"] = {
        "class_path": "EmbeddingData",
        "init_args": {"train": train, "weights": [0.7, 0.3], "val": [], "test": [task], "batch_size": 3},
    }
    raw["trainer"] = {"accelerator": "cpu", "max_steps": 2, "max_epochs": -1, "limit_val_batches": 0}
    raw["trainer"] |= {"enable_progress_bar": False, "val_check_interval": None, "check_val_every_n_epoch": None}
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False), "utf-8")
    assert run("fit", "--config", path) == 0
    gone.unlink()
    return tmp_path / "runs/theirs/bundle"


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def own(**data: Any) -> Path:
    """A recipe file that says nothing but data."""
    train = [{"class_path": "ImageFolder", "init_args": {"path": "photos"}}]
    arguments = {"train": train, "batch_size": 3, **data}
    raw = {"data": {"class_path": "EmbeddingData", "init_args": arguments}}
    path = Path("mine.yaml")
    path.write_text(yaml.safe_dump(raw), "utf-8")
    return path


QUIET = ("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu")


# ---- the command line, read as layers ----


def test_names_after_config_become_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("card: {title: x, family: vlm-encoder, license: x}\nmodel: {a: 1}", "utf-8")
    monkeypatch.setenv("ZOO_RECIPES", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    file = str(tmp_path / "small.yaml")
    argv = [
        "--config",
        "small",
        "--config=small",
        "-c",
        "small",
        "--config=~/small.yaml",
        "--name",
        "small",
        "--x=small",
    ]
    line = read_command_line("test", argv)
    assert line.arguments == ["--config", file] * 4 + ["--name", "small", "--x=small"]
    assert (line.name, line.recipe) == ("small", Path(file))
    with pytest.raises(UnknownNameError, match="small"):
        read_command_line("fit", ["--config=smal"])


def test_a_run_goes_by_the_name_of_the_file_the_bundle_or_the_run(released: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/recipe.yaml").write_text("model: {a: 1}", "utf-8")
    files = ["theirs.yaml", released / "recipe.yaml", "runs/theirs/recipe.yaml", "folder/recipe.yaml", own()]
    names = [read_command_line("fit", ["--config", str(file)]).name for file in files]
    assert names == ["theirs", "theirs", "theirs", "recipe", "mine"]
    assert read_command_line("fit", ["--start", str(released)]).name == "theirs"
    assert read_command_line("fit", ["--start", str(released), "--config", "mine.yaml"]).name == "mine"


def test_null_is_nothing_however_deep_it_stands(released: Path) -> None:
    assert run("fit", "--start", released, "--config", own(), "--trainer.max_steps", 1, *QUIET,
               "--model.init_args.objective.init_args.max_scale", "null",
               "--model.init_args.optimizer", "torch.optim.AdamW",
               "--model.init_args.optimizer.init_args.foreach", "null") == 0  # fmt: skip
    model = yaml.safe_load(Path("runs/mine/recipe.yaml").read_text("utf-8"))["model"]["init_args"]
    assert model["objective"]["init_args"]["max_scale"] is None
    assert model["optimizer"]["init_args"]["foreach"] is None


def values(line: list[str]) -> list[Any]:
    """The texts among the `--config` of a command line."""
    pairs = pairwise(line)
    return [json.loads(text) for option, text in pairs if option == "--config" and text.startswith("{")]


def test_shares_of_sources_that_are_replaced_go_with_them(released: Path) -> None:
    theirs = str(released.parent.parent.parent / "theirs.yaml")
    nothing = {"data": {"init_args": {"weights": None}}}
    train = ["--data.init_args.train", "[]"]
    assert nothing in values(read_command_line("fit", ["--config", theirs, *train]).arguments)
    assert nothing in values(read_command_line("fit", ["--config", theirs, "--config", str(own())]).arguments)
    for kept in (["--data.init_args.weights", "[1]"], ["--data.init_args.weights=[1]"]):
        assert nothing not in values(read_command_line("fit", ["--config", theirs, *kept, *train]).arguments)
    again = own(weights=[2.0])
    assert nothing not in values(read_command_line("fit", ["--config", theirs, "--config", str(again)]).arguments)
    assert nothing not in values(read_command_line("fit", ["--config", theirs]).arguments)


def test_a_refit_measures_again_where_there_are_tasks(released: Path) -> None:
    theirs = ["--config", str(released / "recipe.yaml")]
    measured = {"trainer": {"limit_val_batches": None, "check_val_every_n_epoch": 1}}
    val = ["--data.init_args.val", "[{}]"]
    assert measured in values(read_command_line("fit", [*theirs, *val]).arguments)
    limited = [*theirs, *val, "--trainer.limit_val_batches", "0"]
    assert measured not in values(read_command_line("fit", limited).arguments)
    assert measured not in values(read_command_line("fit", theirs).arguments)


def test_a_bundles_recipe_works_where_the_bundle_is(released: Path, tmp_path: Path, capsys: Any) -> None:
    assert "bundle:words.json" in (released / "recipe.yaml").read_text("utf-8")
    assert run("fit", "--config", released / "recipe.yaml", "--start", released, "--run_dir", "runs/again") == 0
    assert zoo.load("path:runs/again/bundle").name == "theirs", "called like the bundle"
    for command in ("test", "predict"):
        assert run(command, "--config", released / "recipe.yaml", "--run_dir", "runs/measured") == 0
        assert f"these are the weights of the bundle {released}" in capsys.readouterr().out
    measured, before = (
        json.loads(Path(f"runs/{name}/results-test.json").read_text()) for name in ("measured", "theirs")
    )
    assert measured["tasks"] == before["tasks"]
    (tmp_path / "recipe.yaml").write_text((released / "recipe.yaml").read_text("utf-8"), "utf-8")
    assert run("fit", "--config", tmp_path / "recipe.yaml") == cli.EXIT_BAD_INPUT
    assert "names files of a bundle (bundle:...), but does not lie in one" in capsys.readouterr().err


def test_a_bundles_recipe_names_its_files_wherever_recipes_are_read(released: Path) -> None:
    """`zoo cache` takes them, too. `zoo compare` trains what it writes as the user's own, so it takes none of a bundle."""
    recipe = recipe_at(released / "recipe.yaml")
    assert recipe.name == "theirs" and recipe.raw["model"]["init_args"]["processor"]["init_args"]["words"] == str(
        released / "words.json"
    )
    with pytest.raises(RecipeError, match="the recipe of a bundle, which is not compared"):
        plan([str(released / "recipe.yaml")], Path("out"))


# ---- fitting ----


@pytest.mark.parametrize("prefix", ["", "path:"])
def test_start_and_data_are_enough(released: Path, prefix: str, tmp_path: Path, capsys: Any) -> None:
    task = {"class_path": "ImageFolderTasks", "init_args": {"path": "photos", "name": "mine"}}
    assert (
        run("fit", "--start", f"{prefix}{released}", "--config", own(test=[task]), *QUIET, "--trainer.max_steps", 1)
        == 0
    )
    said = capsys.readouterr().out
    assert "zoo search" in said and "--in photos" in said and "'red cat'" not in said.split("use it:")[0]
    recipe = yaml.safe_load(Path("runs/mine/recipe.yaml").read_text("utf-8"))
    assert recipe["start"] == f"path:{released}" and recipe["data"]["init_args"]["weights"] is None
    card = Path("runs/mine/bundle/README.md").read_text("utf-8")
    assert "ToyAdapted trained on ImageFolder (photos), starting from" in card
    assert "emoji" not in card and "| test, image_to_text[mine], recall@1 | " in card
    again = ("--start", "runs/mine", "--run_dir", "runs/next")
    assert run("fit", "--config", "runs/mine/bundle/recipe.yaml", *again) == 0, "and on from there, by its own recipe"


def test_nothing_that_start_brings_is_read_again(released: Path, capsys: Any) -> None:
    """The place that the recipe names is gone: with a start nobody asks for it, and the run's recipe does not name it."""
    once = ("--trainer.max_steps", 1, "--model.init_args.optimizer.init_args.lr", 0.0, "--run_dir", "runs/mine")
    optimizer = ("--model.init_args.optimizer", "torch.optim.SGD")
    assert run("fit", "--config", "theirs.yaml", *optimizer, *once) == cli.EXIT_BAD_INPUT
    assert "gone.safetensors" in capsys.readouterr().err
    assert run("fit", "--config", "theirs.yaml", "--start", released, *optimizer, *once) == 0
    begun, trained = (
        zoo.load(f"path:{released}").module.state_dict(),
        zoo.load("path:runs/mine/bundle").module.state_dict(),
    )
    assert all(torch.equal(begun[key], trained[key]) for key in begun)
    recipe = yaml.safe_load(Path("runs/mine/recipe.yaml").read_text("utf-8"))
    assert recipe["model"]["init_args"]["backbone"]["init_args"]["pretrained"] is None
    assert run("fit", "--config", "theirs.yaml", "--start", released, "--ckpt_path", "last", *optimizer, *once[:-2],
               "--trainer.max_steps", 2, "--run_dir", "runs/mine") == 0, "nor when the run goes on"  # fmt: skip


def test_frozen_encoders_that_no_bundle_holds_keep_their_place() -> None:
    part = {"class_path": "P", "init_args": {"pretrained": "path:gone"}}
    model = {"class_path": "M", "init_args": {"image": part, "encoders": {"text": part}, "list": [part]}}
    written = recipe_without_pretrained(model, ("encoders.text.",))
    assert written["init_args"]["image"]["init_args"]["pretrained"] is None
    assert written["init_args"]["list"][0]["init_args"]["pretrained"] is None
    assert written["init_args"]["encoders"]["text"]["init_args"]["pretrained"] == "path:gone"


def test_what_can_fail_fails_before_the_first_step(released: Path, tmp_path: Path, capsys: Any) -> None:
    gone = {"class_path": "ImageFolderTasks", "init_args": {"path": "nowhere"}}
    start = ("fit", "--start", released, *QUIET, "--trainer.max_steps", 1)
    cases = [(own(test=[gone]), "there is no folder 'nowhere'")]
    broken = tmp_path / "photos/blue10.png"
    for config, told in cases:
        assert run(*start, "--config", config) != 0
        assert told in capsys.readouterr().err
    good = broken.read_bytes()
    broken.write_bytes(b"not an image")
    assert run(*start, "--config", own()) != 0 and "blue10" in capsys.readouterr().err
    assert run(*start, "--config", own(on_bad_sample="skip", bad_sample_limit=1.0)) == 0
    broken.write_bytes(good)
    Path("runs/mine2/bundle").mkdir(parents=True)
    Path("runs/mine2/bundle/notes.txt").write_text("mine", "utf-8")
    capsys.readouterr()
    assert run(*start, "--config", own(), "--run_dir", "runs/mine2") != 0
    assert "exists and is no bundle" in capsys.readouterr().err
    assert not Path("runs/mine2/checkpoints").exists()


# ---- what a run says of itself ----


def test_the_card_holds_the_figures_of_the_weights_that_it_releases(released: Path) -> None:
    """Those of the best validation, though a later one came."""
    task = {"class_path": "ImageFolderTasks", "init_args": {"path": "photos", "name": "mine"}}
    often = ("--trainer.max_steps", 3, "--trainer.val_check_interval", 1, "--trainer.check_val_every_n_epoch", "null")
    assert run("fit", "--start", released, "--config", own(val=[task]), *QUIET, *often) == 0
    checkpoint = torch.load("runs/mine/checkpoints/best.ckpt", map_location="cpu", weights_only=False)
    card = Path("runs/mine/bundle/README.md").read_text("utf-8")
    steps = set(re.findall(r"validation at step (\d+), image_to_text\[mine\], recall@1 \|", card))
    assert steps == {str(checkpoint["global_step"])} and "primary" not in card
    model = zoo.load("path:runs/mine/bundle")
    files, texts = sorted(Path("photos").glob("*.png")), ["blue cat", "green cat", "red cat"]
    scores = model.encode_query(files) @ model.encode_document(texts).T
    right = torch.tensor([texts.index(f"{file.stem.rstrip('018')} cat") for file in files])
    recall = (torch.as_tensor(scores).argmax(1) == right).float().mean().item()
    assert f"image_to_text[mine], recall@1 | {recall:.4f} |" in card


def recipe_of(place: str, kind: str = "ImageFolder", key: str = "path", **more: Any) -> dict[str, Any]:
    train = [{"class_path": f"zoo.{kind}", "init_args": {key: place}}]
    data = {"class_path": "EmbeddingData", "init_args": {"train": train}}
    return {"model": {"class_path": "zoo.DualEncoder"}, "data": data, **more}


RELEASED = {
    "title": "CLIP on the packaged emoji", "family": "dual-encoder", "license": "Apache-2.0", "paper": "arXiv:2103.00020",
    "languages": ["en"], "notes": "Trained on the packaged emoji", "results": {"a": 1}, "tiny": True,
}  # fmt: skip


def test_a_card_keeps_what_still_holds() -> None:
    recipe = recipe_of("/home/me/photos", card=RELEASED, start="clip-emoji")
    card = card_of_run(recipe, stale=set(RELEASED))
    assert card == {
        "title": "DualEncoder trained on ImageFolder (photos), starting from clip-emoji",
        "family": "dual-encoder",
        "license": "not stated, starting from clip-emoji (Apache-2.0)",
        "paper": "arXiv:2103.00020",
    }
    text = card_text("mine", recipe | {"card": card}, 5)
    assert "emoji" not in text.replace("clip-emoji", "") and "license: other" in text
    assert "- started from: clip-emoji" in text and "/home/me" not in text
    mine = card_of_run(recipe, stale=set(RELEASED) - {"title", "license", "notes"})
    assert (mine["title"], mine["license"], mine["notes"]) == tuple(RELEASED[k] for k in ("title", "license", "notes"))
    assert card_of_run(recipe) == {key: value for key, value in RELEASED.items() if key != "results"}


@pytest.mark.parametrize(
    ("argv", "stale"),
    [
        (["--config", "theirs.yaml"], set()),
        (["--config", "theirs.yaml", "--trainer.max_steps", "1"], set()),
        (["--config", "theirs.yaml", "--config", "mine.yaml"], {"title", "family", "license", "notes", "results"}),
        (["--config", "theirs.yaml", "--start", "x"], {"title", "family", "license", "notes", "results"}),
        (["--config", "theirs.yaml", "--config", "titled.yaml"], {"family", "license", "notes", "results"}),
    ],
)
def test_a_card_is_stale_where_a_later_layer_changes_what_it_is_about(
    released: Path, argv: list[str], stale: set[str]
) -> None:
    own()
    Path("titled.yaml").write_text("card: {title: mine}\ndata: {init_args: {train: []}}", "utf-8")
    assert read_command_line("fit", argv).stale == stale


def test_the_hint_uses_what_was_trained_on(photos: Path) -> None:
    table = photos.parent / "rows of mine.parquet"
    table.touch()
    bundle = Path("runs/mine/bundle")
    hints = [
        (recipe_of("photos"), "zoo search path:runs/mine/bundle 'red cat' --in photos"),
        (recipe_of(str(table), "TablePairs", "table"),
         f"zoo embed path:runs/mine/bundle '{table}' --out vectors.parquet"),
        (recipe_of("a-{0..3}.tar", "WebDataset", "shards"), 'zoo.load("path:runs/mine/bundle")'),
        (recipe_of("x", "EmojiRetrieval", "name"), 'zoo search path:runs/mine/bundle "a slice of pizza" --in emoji'),
        ({"model": {}}, 'zoo.load("path:runs/mine/bundle")'),
    ]  # fmt: skip
    for recipe, hint in hints:
        assert example_of_use(bundle, recipe, "red cat") == hint


@pytest.mark.parametrize(
    ("start", "told"),
    [("x/gone", "there is no 'x/gone'"), ("~/gone", "there is no '"), ("clip-emojy", "did you mean 'clip-emoji'")],
)
def test_a_start_that_is_not_there_is_one_line(photos: Path, start: str, told: str, capsys: Any) -> None:
    assert run("fit", "--start", start, "--config", own()) == cli.EXIT_BAD_INPUT
    assert told in capsys.readouterr().err and not Path("runs").exists()


@pytest.mark.slow
def test_a_released_entry_is_fitted_on_a_folder(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command of docs/start.md, for the entry whose towers come from a folder that no user has."""
    assert run("fit", "--start", "clip-emoji", "--config", own(), *QUIET, "--trainer.max_steps", 2) == 0
    model = zoo.load("path:runs/mine/bundle")
    assert (
        model.dim == zoo.load("clip-emoji").dim and "pretrained: path:" not in Path("runs/mine/recipe.yaml").read_text()
    )


@pytest.mark.parametrize("arguments", [["--start", "BUNDLE"], ["--config", "BUNDLE/recipe.yaml"]])
def test_a_bundle_that_is_fitted_on_runs_no_code_of_its_own(released: Path, arguments: list[str], capsys: Any) -> None:
    Path("evil.py").write_text("from pathlib import Path\nPath('ran').touch()\nclass X: ...", "utf-8")
    recipe = yaml.safe_load((released / "recipe.yaml").read_text("utf-8"))
    recipe["model"]["init_args"]["objective"] = {"class_path": "evil.X"}
    (released / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    manifest = json.loads((released / "bundle.json").read_text("utf-8"))
    manifest["files"]["recipe.yaml"]["sha256"] = sha256(released / "recipe.yaml")
    (released / "bundle.json").write_text(json.dumps(manifest), "utf-8")
    said = [one.replace("BUNDLE", str(released)) for one in arguments]
    assert run("fit", *said, "--config", own(), *QUIET, "--trainer.max_steps", 1) == cli.EXIT_BAD_INPUT
    assert "'evil.X', which is never run" in capsys.readouterr().err and not Path("ran").exists()
