"""What is trained for a comparison: every recipe, on one data section, with every seed."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from zoo.bundle import bundle_around
from zoo.catalog import find_path
from zoo.errors import RecipeError
from zoo.files import replacing
from zoo.recipe import Recipe, read_recipe

RESULTS = "results-test.json"  # as zoo.callbacks.results_file names it
LOG = "log.txt"


@dataclass(frozen=True, slots=True)
class Run:
    """One fit: a recipe with a seed. config: the file that is trained; folder: its run_dir."""

    recipe: str
    seed: int
    config: Path
    folder: Path
    seeds_data: bool

    @property
    def finished(self) -> bool:
        """Whether it has trained, been measured and been bundled before."""
        return (self.folder / RESULTS).is_file() and (self.folder / "bundle").is_dir()

    @property
    def checkpoint(self) -> Path | None:
        """Where an interrupted run goes on."""
        last = self.folder / "checkpoints" / "last.ckpt"
        return last if last.is_file() else None

    def command(self) -> list[str]:
        """Arguments of `zoo` that train it."""
        arguments = ["fit", "--config", str(self.config), "--run_dir", str(self.folder)]
        arguments += ["--seed_everything", str(self.seed), "--trainer.enable_progress_bar", "false"]
        if self.seeds_data:  # or order and augmentation would be the same under every seed
            arguments += ["--data.seed", str(self.seed)]
        return arguments + (["--ckpt_path", str(self.checkpoint)] if self.checkpoint else [])


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is compared. files: name -> the recipe's own file; data: name of the recipe whose data all are trained on."""

    files: dict[str, Path]
    data: str
    seeds: int
    steps: int | None
    out: Path
    configs: dict[str, dict[str, Any]]

    def runs(self) -> Iterator[Run]:
        """Seed by seed, so that a comparison that is stopped early has seen all recipes alike."""
        for seed in range(self.seeds):
            for name in self.files:
                folder = self.out / name
                # the file's stem is the name that the run and its bundle go by
                yield Run(name, seed, folder / f"{name}.yaml", folder / f"seed-{seed}", self._seeds_data)

    @property
    def _seeds_data(self) -> bool:
        config = next(iter(self.configs.values()))
        return str(config["data"].get("class_path", "")).rpartition(".")[2] == "EmbeddingData"

    def write(self) -> None:
        """Put the files that are trained in place.

        Raises:
            RecipeError: a recipe was trained into this folder with other settings; names it.
        """
        for name, config in self.configs.items():
            path = self.out / name / f"{name}.yaml"
            text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
            if path.is_file() and path.read_text("utf-8") != text and any(path.parent.glob("seed-*")):
                raise RecipeError(
                    f"recipe '{name}' was trained into {path.parent} with other settings (data, steps, or the recipe "
                    f"itself have changed): choose another --out, or delete {path.parent}"
                )
            with replacing(path) as partial:
                partial.write_text(text, "utf-8")


def plan(names: Sequence[str], out: Path, *, data: str = "", seeds: int = 3, steps: int | None = None) -> Plan:
    """Read and check what is to be compared.

    Args:
        names: recipe files, or names of entries.
        out: where everything is written.
        data: the recipe whose data section (and section `best`, whose metric belongs to that data) all are trained on;
            "" = the first of `names`.
        seeds: how many: 0, 1, ...
        steps: of the optimizer, instead of what each recipe says; its learning-rate schedule is compressed to them.

    Raises:
        RecipeError: a recipe that does not fit, twice the same name, no data or test tasks; names it.
        UnknownNameError: no such recipe.
    """
    if seeds < 1 or (steps is not None and steps < 1):
        raise RecipeError(f"--seeds {seeds}, --steps {steps}: give numbers of at least 1")
    recipes = [_own_recipe(name) for name in names]
    twice = [name for name, count in Counter(recipe.name for recipe in recipes).items() if count > 1]
    if twice:
        raise RecipeError(f"two recipes are called '{twice[0]}': rename one file, the stem is the name in the table")
    source = _own_recipe(data) if data else recipes[0]
    if not isinstance(source.raw.get("data"), dict):
        raise RecipeError(f"recipe '{source.name}' has no `data:` section: name one that has, with --data")
    ours = str(source.raw["data"].get("class_path", "")).rpartition(".")[2] == "EmbeddingData"
    if ours and not (source.raw["data"].get("init_args") or {}).get("test"):
        raise RecipeError(
            f"recipe '{source.name}' has no test tasks, so no run could be measured: add `test:` to its data, or name a "
            "recipe that has some, with --data"
        )
    return Plan(
        files={recipe.name: Path(str(recipe.path)) for recipe in recipes},
        data=source.name,
        seeds=seeds,
        steps=steps,
        out=out,
        configs={recipe.name: _merged(recipe, source, steps) for recipe in recipes},
    )


def _own_recipe(name: str) -> Recipe:
    """A recipe file or an entry. What is written for a run is trained as the user's own recipe, which a bundle's is not."""
    path = find_path(name)
    if bundle_around(path) is not None:
        raise RecipeError(
            f"{path} is the recipe of a bundle, which is not compared, since it may come from anywhere: name an entry, or "
            "the recipe.yaml of the run that wrote the bundle"
        )
    return read_recipe(path)


def _merged(recipe: Recipe, source: Recipe, steps: int | None) -> dict[str, Any]:
    """The recipe with the data of another one."""
    config = copy.deepcopy({key: value for key, value in recipe.raw.items() if key not in ("run_dir", "best")})
    config |= {key: copy.deepcopy(source.raw[key]) for key in ("data", "best") if source.raw.get(key)}
    if steps is not None:
        trainer = config.setdefault("trainer", {})
        trainer |= {"max_steps": steps, "max_epochs": -1}
        interval = trainer.get("val_check_interval")
        if isinstance(interval, int) and interval > steps:
            trainer["val_check_interval"] = steps
        _compress(config["model"].get("init_args", {}).get("scheduler"), steps)
    return config


def _compress(scheduler: Any, steps: int) -> None:
    """A schedule over `total_steps` becomes one over `steps`, its warm-up keeping its share."""
    settings = scheduler.get("init_args", {}) if isinstance(scheduler, dict) else {}
    total, warmup = settings.get("total_steps"), settings.get("warmup_steps")
    if isinstance(total, int) and total > 0:
        settings["total_steps"] = steps
        if isinstance(warmup, int):
            settings["warmup_steps"] = round(warmup * steps / total)
