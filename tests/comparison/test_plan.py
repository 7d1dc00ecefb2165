"""What a comparison trains: one data section, seeds, steps; and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from zoo.comparison.plan import plan
from zoo.errors import RecipeError, UnknownNameError

CARD = {"title": "A toy", "family": "toys", "license": "Apache-2.0"}


def write(folder: Path, name: str, **sections: Any) -> str:
    folder.mkdir(exist_ok=True)
    raw = {"card": CARD, "model": {"class_path": "Toy", "init_args": {}}} | sections
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw), "utf-8")
    return str(path)


def data(batch: int, kind: str = "EmbeddingData") -> dict[str, Any]:
    return {"class_path": kind, "init_args": {"batch_size": batch, "test": ["tasks"]}}


def test_data_and_what_picks_the_weights_come_from_one_recipe(tmp_path: Path) -> None:
    first = write(tmp_path, "a", data=data(8), best={"monitor": "val/x"})
    second = write(
        tmp_path, "b", data=data(16), best={"monitor": "val/y"}, run_dir="elsewhere", trainer={"max_steps": 9}
    )
    third = write(tmp_path, "c", data=data(32))
    found = plan([first, second], tmp_path / "out")
    assert found.data == "a"
    assert found.configs["b"]["data"] == data(8) and found.configs["b"]["best"] == {"monitor": "val/x"}
    assert found.configs["b"]["trainer"] == {"max_steps": 9} and "run_dir" not in found.configs["b"]
    found = plan([first, second], tmp_path / "out", data=third)
    assert found.data == "c" and all(config["data"] == data(32) for config in found.configs.values())
    assert all("best" not in config for config in found.configs.values())


def test_steps_compress_the_schedule(tmp_path: Path) -> None:
    schedule = {"class_path": "WarmupCosine", "init_args": {"warmup_steps": 50, "total_steps": 400}}
    model = {"class_path": "Toy", "init_args": {"scheduler": schedule}}
    trainer = {"max_steps": 400, "val_check_interval": 200}
    found = plan([write(tmp_path, "a", data=data(8), model=model, trainer=trainer)], tmp_path / "out", steps=40)
    config = found.configs["a"]
    assert config["trainer"] == {"max_steps": 40, "max_epochs": -1, "val_check_interval": 40}
    assert config["model"]["init_args"]["scheduler"]["init_args"] == {"warmup_steps": 5, "total_steps": 40}


@pytest.mark.parametrize(
    ("kind", "seeded"), [("EmbeddingData", True), ("zoo.data.datamodule.EmbeddingData", True), ("Mine", False)]
)
def test_seeds_reach_model_and_data(tmp_path: Path, kind: str, seeded: bool) -> None:
    recipes = [write(tmp_path, "a", data=data(8, kind)), write(tmp_path, "b")]
    runs = list(plan(recipes, tmp_path / "out", seeds=2).runs())
    assert [(run.recipe, run.seed) for run in runs] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    command = runs[2].command()
    assert command[command.index("--seed_everything") + 1] == "1"
    assert command[command.index("--run_dir") + 1] == str(tmp_path / "out" / "a" / "seed-1")
    assert ("--data.seed" in command) is seeded and "--ckpt_path" not in command


def test_a_checkpoint_is_gone_on_from(tmp_path: Path) -> None:
    (run,) = plan([write(tmp_path, "a", data=data(8))], tmp_path / "out", seeds=1).runs()
    last = run.folder / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.touch()
    assert run.command()[-2:] == ["--ckpt_path", str(last)] and not run.finished


def test_refusals_name_the_recipe(tmp_path: Path) -> None:
    bare = write(tmp_path, "bare")
    with pytest.raises(RecipeError, match="'bare' has no `data:`"):
        plan([bare], tmp_path / "out")
    unmeasured = data(8)
    unmeasured["init_args"].pop("test")
    with pytest.raises(RecipeError, match="'blind' has no test tasks"):
        plan([write(tmp_path, "blind", data=unmeasured)], tmp_path / "out")
    both = [write(tmp_path / "x", "a", data=data(8)), write(tmp_path / "y", "a", data=data(8))]
    with pytest.raises(RecipeError, match="two recipes are called 'a'"):
        plan(both, tmp_path / "out")
    with pytest.raises(RecipeError, match="at least 1"):
        plan([both[0]], tmp_path / "out", seeds=0)
    with pytest.raises(UnknownNameError, match="nowhere"):
        plan([str(tmp_path / "nowhere.yaml")], tmp_path / "out")


def test_a_changed_recipe_is_refused_where_it_has_trained(tmp_path: Path) -> None:
    recipe = write(tmp_path, "a", data=data(8))
    plan([recipe], tmp_path / "out").write()
    plan([recipe], tmp_path / "out", steps=3).write()  # nothing was trained yet
    (tmp_path / "out" / "a" / "seed-0").mkdir()
    plan([recipe], tmp_path / "out", steps=3).write()
    with pytest.raises(RecipeError, match=r"'a' was trained into .*other settings"):
        plan([recipe], tmp_path / "out").write()
