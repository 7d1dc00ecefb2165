"""`zoo cache`: what it fills, lists and removes; and processes that are killed at any point."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from frozen_towers import files_in

from zoo import cli
from zoo.data import latent_folder
from zoo.data.latent_folder import read_manifest
from zoo.errors import RecipeError, SampleError, ZooError


def emoji(split: str) -> dict[str, Any]:
    return {"class_path": "EmojiRetrieval", "init_args": {"split": split, "styles": ["google"]}}


def recipe(folder: Path, **sections: Any) -> Path:
    """A recipe of two small frozen towers with random weights on packaged data."""
    picture = {"size": 16}
    processor = {"tokenizer": "packaged:emoji-tokenizer.json", "picture": picture, "caption": {"max_length": 32}}
    objective = {"class_path": "zoo.objectives.infonce.InfoNCE", "init_args": {"temperature": 0.1}}
    content: dict[str, Any] = {
        "card": {"title": "Frozen towers", "family": "toys", "license": "Apache-2.0"},
        "model": {
            "class_path": "frozen_towers.FrozenTowers",
            "init_args": {"processor": {"class_path": "DualProcessor", "init_args": processor}, "objective": objective},
        },
        "data": {"class_path": "EmbeddingData", "init_args": {"train": [emoji("val")], "batch_size": 32}},
    }
    path = folder / "towers.yaml"
    path.write_text(yaml.safe_dump(content | sections), "utf-8")
    return path


def zoo(*arguments: object) -> int:
    """The command in this process; errors are raised as they are."""
    os.environ["ZOO_TRACEBACK"] = "1"
    try:
        return cli.main([*map(str, arguments)])
    finally:
        del os.environ["ZOO_TRACEBACK"]


def cache(config: Path, folder: Path, *options: object) -> int:
    return zoo("cache", "--config", config, "--folder", folder, *options)


def lists_in(folder: Path) -> dict[str, Any]:
    """Modality -> manifest."""
    return {found.modality: found for found in map(read_manifest, latent_folder.folders_in(folder))}


def test_it_fills_prints_a_table_and_has_nothing_to_do_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = recipe(tmp_path)
    assert cache(config, tmp_path / "latents") == 0
    header, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert header == ["modality", "source", "items", "distinct", "dims", "MB", "items/s", "folder"]
    assert [row[:2] for row in rows] == [["image", "emoji"], ["text", "emoji"]]
    found = lists_in(tmp_path / "latents")
    assert [row[3] for row in rows] == [f"{found[name].rows:,}" for name in ("image", "text")]
    assert all(Path(row[7]).is_dir() for row in rows)
    before = files_in(tmp_path / "latents")
    assert cache(config, tmp_path / "latents") == 0
    assert capsys.readouterr().out.count("cached before") == 2
    assert files_in(tmp_path / "latents") == before


def test_the_fit_finds_what_the_command_has_filled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Random towers, too: both start from the seed of the recipe."""
    section = {"enabled": True, "dtype": "float16", "folder": str(tmp_path / "latents")}
    config = recipe(
        tmp_path, cache=section, trainer={"max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False}
    )
    assert zoo("cache", "--config", config) == 0
    assert lists_in(tmp_path / "latents")["text"].dtype == "float16"
    capsys.readouterr()
    assert zoo("fit", "--config", config, "--run_dir", tmp_path / "run") == 0
    assert capsys.readouterr().out.count("all cached before") == 2
    assert (tmp_path / "run" / "bundle" / "tokenizer.json").is_file()


def test_options_win_over_the_recipe(tmp_path: Path) -> None:
    config = recipe(tmp_path, cache={"dtype": "float16"})
    assert cache(config, tmp_path / "latents", "--dtype", "float32", "--tokens", "--batch_size", 5) == 0
    found = lists_in(tmp_path / "latents")
    assert {one.dtype for one in found.values()} == {"float32"}
    assert found["image"].tokens == 16 and found["text"].tokens > 1


def test_bad_pictures_are_left_out_where_the_recipe_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = {"class_path": "frozen_towers.ManyPairs", "init_args": {"count": 12, "bad": [3, 5]}}
    data = {"class_path": "EmbeddingData", "init_args": {"train": [pairs], "batch_size": 4}}
    with pytest.raises(SampleError, match=r"pairs, image 3 .*is not a picture"):
        cache(recipe(tmp_path, data=data), tmp_path / "latents")
    data["init_args"]["on_bad_sample"] = "skip"
    assert cache(recipe(tmp_path, data=data), tmp_path / "latents") == 3
    assert "note: 2 images of pairs can't be used; " in capsys.readouterr().out
    assert lists_in(tmp_path / "latents")["image"].rows == 10


def test_list_and_remove(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "latents"
    cache(recipe(tmp_path), folder)
    (unfinished, other) = latent_folder.folders_in(folder)
    (unfinished / "manifest.json").unlink()
    (folder / "text-notes" / "mine").mkdir(parents=True)
    capsys.readouterr()
    assert zoo("cache", "--list", "--folder", folder) == 0
    out = capsys.readouterr().out
    assert "unfinished" in out and other.relative_to(folder).as_posix() in out and "mine" not in out
    with pytest.raises(ZooError, match=r"no latents in 'text-notes'; `zoo cache --list` names the folders"):
        zoo("cache", "--remove", "text-notes", "--folder", folder)
    assert zoo("cache", "--remove", other.relative_to(folder), "--folder", folder) == 0
    assert list(latent_folder.folders_in(folder)) == [unfinished] and not other.parent.exists()
    (second := tmp_path / "elsewhere").mkdir()
    cache(recipe(tmp_path), second)
    damaged = next(iter(latent_folder.folders_in(second)))
    part = damaged / "part-00000.safetensors"
    part.write_bytes(part.read_bytes()[:-3])
    with pytest.raises(
        ZooError, match=rf"{part} .*zoo cache --folder {second} --remove {damaged.relative_to(second)}\)"
    ):  # also where nothing is left to encode
        cache(recipe(tmp_path), second)
    with pytest.raises(ZooError, match="there are no latents in"):
        zoo("cache", "--remove", damaged, "--folder", folder)
    assert zoo("cache", "--remove", damaged.relative_to(second), "--folder", second) == 0  # as the message says
    assert not damaged.exists()
    assert zoo("cache", "--remove", "all", "--folder", folder) == 0
    assert [path.name for path in folder.iterdir()] == ["text-notes"]
    assert "1 folder removed" in capsys.readouterr().out


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    cache(recipe(tmp_path), tmp_path / "latents")
    for folder in latent_folder.folders_in(tmp_path / "latents"):
        (folder / "manifest.json").unlink()
        (folder / ".part-00000.safetensors.123.456.partial").write_bytes(b"half")
    cache(recipe(tmp_path), tmp_path / "latents")
    assert not list(tmp_path.rglob("*.partial"))
    assert len(lists_in(tmp_path / "latents")) == 2


def latents_in(root: Path) -> Path:
    """An unfinished list of latents, as its names tell."""
    folder = root / f"image-{'a' * 16}" / ("0" * 16)
    folder.mkdir(parents=True)
    (folder / "part-00000.safetensors").write_bytes(b"1234")
    return folder


def test_nothing_outside_the_root_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also not where the working folder, or one beside it, is named like latents."""
    root, work = tmp_path / "root", tmp_path / "project" / f"text-{'b' * 16}" / ("1" * 16)
    own = latents_in(root)
    beside = latents_in(tmp_path / "project")
    work.mkdir(parents=True)
    (work / "thesis.txt").write_text("years of work")
    monkeypatch.chdir(work)
    for wanted in (".", "..", work, beside, f"../../{beside.relative_to(tmp_path / 'project')}", tmp_path / "project"):
        with pytest.raises(ZooError, match="there are no latents in"):
            zoo("cache", "--remove", wanted, "--folder", root)
    assert zoo("cache", "--remove", "all", "--folder", root) == 0
    assert not own.exists() and root.is_dir()
    assert (work / "thesis.txt").is_file() and (beside / "part-00000.safetensors").is_file()


@pytest.mark.parametrize("level", ["list", "encoder"])
@pytest.mark.parametrize("wanted", ["all", "named"])
def test_links_and_foreign_files_stay(tmp_path: Path, level: str, wanted: str) -> None:
    """Refused before anything is removed."""
    root, target = tmp_path / "root", latents_in(tmp_path / "elsewhere")
    own, link = latents_in(root), root / f"text-{'c' * 16}"
    if level == "list":
        link.mkdir()
        link = link / ("2" * 16)
    link.symlink_to(target if level == "list" else target.parent)
    with pytest.raises(ZooError, match=f"{link} is a link"):
        zoo("cache", "--remove", "all" if wanted == "all" else link.relative_to(root), "--folder", root)
    assert own.exists() and (target / "part-00000.safetensors").is_file()
    link.unlink()
    (own / "notes.txt").write_text("mine")
    with pytest.raises(ZooError, match=r"holds more than latents, for example 'notes\.txt'"):
        zoo("cache", "--remove", "all" if wanted == "all" else own.relative_to(root), "--folder", root)
    assert (own / "notes.txt").is_file() and (own / "part-00000.safetensors").is_file()


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="one of the arguments --config --list --remove is required"):
        zoo("cache")
    with pytest.raises(RecipeError, match="recipe 'towers' has no `data:`"):
        cache(recipe(tmp_path, data=None), tmp_path)
    with pytest.raises(RecipeError, match="DualEncoder has no frozen encoders"):
        zoo("cache", "--config", "clip", "--folder", tmp_path)
    wrong = {"class_path": "EmbeddingData", "init_args": {"batchsize": 3}}
    with pytest.raises(RecipeError, match=r"recipe 'towers': .*unknown option 'batchsize'; did you mean"):
        cache(recipe(tmp_path, data=wrong), tmp_path)
    augmented = {
        "class_path": "EmbeddingData",
        "init_args": {"train": [emoji("val")], "augment": [{"class_path": "Mirror"}]},
    }
    with pytest.raises(RecipeError, match="exclude each other"):
        cache(recipe(tmp_path, data=augmented), tmp_path / "latents")
    assert not (tmp_path / "latents").exists()


# ---- killed processes ------------------------------------------------------------------------------------------------


def started(run: Callable[[], object]) -> Any:
    """A process of its own that runs this."""

    def quiet() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        torch.set_num_threads(1)
        latent_folder._ROWS = dict.fromkeys(latent_folder._ROWS, 256)
        run()

    process = multiprocessing.get_context("fork").Process(target=quiet)
    process.start()
    return process


def killed_when(process: Any, ready: Callable[[], bool]) -> None:
    """SIGKILL at the moment when `ready` says so, or nothing if the process is faster."""
    while process.is_alive() and not ready():
        time.sleep(0.001)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()


def big(folder: Path) -> Path:
    """Some 3,000 pictures and texts in two dozen files."""
    return recipe(folder, data={"class_path": "EmbeddingData", "init_args": {"train": [emoji("train")]}})


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("unbroken")
    config = big(folder)
    started(lambda: cache(config, folder / "latents")).join()
    return config, files_in(folder / "latents")


def kill_and_go_on(unbroken: tuple[Path, dict[str, bytes]], folder: Path, ready: Callable[[], bool]) -> None:
    config, expected = unbroken
    assert len(expected) >= 16
    killed_when(started(lambda: cache(config, folder)), ready)
    left = files_in(folder)
    assert all(expected[name] == content for name, content in left.items()), "a file that is there is whole"
    started(lambda: cache(config, folder)).join()
    assert files_in(folder) == expected
    assert len(lists_in(folder)) == 2


@pytest.mark.parametrize("files", [0, 5, 15])
def test_killed_between_files_it_goes_on_with_the_same_bits(files: int, unbroken: Any, tmp_path: Path) -> None:
    kill_and_go_on(unbroken, tmp_path / "latents", lambda: len(files_in(tmp_path)) >= files)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_killed_at_any_time_it_goes_on_with_the_same_bits(seed: int, unbroken: Any, tmp_path: Path) -> None:
    rng, begin = random.Random(seed), time.monotonic()
    files, delay = rng.randrange(len(unbroken[1])), rng.uniform(0, 0.5)
    moments: list[float] = []

    def ready() -> bool:
        if not moments and len(list(tmp_path.rglob("*.safetensors"))) >= files:
            moments.append(time.monotonic())
        return bool(moments) and time.monotonic() - moments[0] >= delay and time.monotonic() > begin

    kill_and_go_on(unbroken, tmp_path / "latents", ready)


def fit(folder: Path, latents: Path, *options: object) -> dict[str, torch.Tensor]:
    """Train in a process of its own; the weights at the end."""
    process = started(lambda: zoo("fit", *arguments(folder, latents), *options))
    process.join()
    assert process.exitcode == 0
    return state(folder)


def arguments(folder: Path, latents: Path) -> list[object]:
    config = recipe(
        folder,
        trainer={
            "max_steps": 30,
            "max_epochs": -1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "logger": False,
        },
        cache={"enabled": True, "folder": str(latents)},
        checkpoint={"every_n_train_steps": 5},
    )
    return ["--config", config, "--run_dir", folder / "run"]


def state(folder: Path) -> dict[str, torch.Tensor]:
    found = torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert found["global_step"] == 30
    return dict(found["state_dict"])


@pytest.mark.parametrize(
    "wait",
    [0.0, *(pytest.param(0.05 * n, marks=pytest.mark.slow) for n in range(1, 10))],
    ids=lambda wait: f"{wait:.2f}",
)
def test_a_fit_on_latents_that_is_killed_ends_with_the_same_weights(wait: float, tmp_path: Path) -> None:
    for name in ("unbroken", "broken"):
        (tmp_path / name).mkdir()
    expected = fit(tmp_path / "unbroken", tmp_path / "latents")
    checkpoint = tmp_path / "broken" / "run" / "checkpoints" / "last.ckpt"
    process = started(lambda: zoo("fit", *arguments(tmp_path / "broken", tmp_path / "latents")))
    seen: list[float] = []

    def ready() -> bool:
        if checkpoint.exists() and not seen:
            seen.append(time.monotonic())
        return bool(seen) and time.monotonic() - seen[0] >= wait

    killed_when(process, ready)
    found = fit(tmp_path / "broken", tmp_path / "latents", "--ckpt_path", "last")
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
