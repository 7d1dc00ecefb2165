"""What a run folder says was trained, and that a run which goes on is the same one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from zoo.callbacks.terminal import show
from zoo.errors import RecipeError
from zoo.files import replacing
from zoo.recipe import read_mapping

RECIPE = "recipe.yaml"  # in a run folder; `zoo.loading` reads it beside checkpoints
PREVIOUS = "previous"
_LEFT_BY_A_RUN = ("bundle", "checkpoints", RECIPE, "report.html", "results-val.json", "results-test.json")
_STORED = "recipe"  # in a checkpoint, as JSON

# what may change while a run goes on: it decides how fast or how often something happens, and no weight
_FREE = {
    "model": ("chunk_size",),
    "data": ("val", "test", "predict", "eval_batch_size", "num_workers", "on_bad_sample", "bad_sample_limit"),
}
# what a step is; all else of the trainer may change: limits, intervals, devices, loggers
_FIXED_TRAINER = (
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "limit_train_batches",
    "overfit_batches",
)


class RunRecord(Callback):
    """Keeps the recipe that is trained: in every checkpoint, and as `recipe.yaml` in the run folder.

    A checkpoint restores the optimizer, the schedule, the learned parameters and the place in the data, so a command that
    goes on from it and says otherwise would have no effect, or another one than it says: it is refused.

    A run that begins anew in the folder of an earlier one puts what that one left into `previous/`, when its first step
    comes: from then on all that is in the folder is of one run.

    Args:
        folder: of the run.
        recipe: what is trained, all options merged.
    """

    def __init__(self, folder: str | Path, recipe: Mapping[str, Any]) -> None:
        self.folder, self.recipe = Path(folder), recipe
        self._begun = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """The recipe travels along."""
        checkpoint[_STORED] = _json(self.recipe)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """RecipeError if the run that wrote the checkpoint was another one; names the settings that differ."""
        path = Path(str(trainer.ckpt_path))
        before = checkpoint[_STORED] if _STORED in checkpoint else _beside(path)
        if before is None:
            return
        changes = list(differences(json.loads(before), json.loads(_json(self.recipe))))
        if changes:
            key, was, now = changes[0]
            others = f" (as are {', '.join(name for name, *_ in changes[1:5])})" if changes[1:] else ""
            raise RecipeError(
                f"{key} is {_told(now)}, but {path} was trained with {_told(was)}{others}, and a run goes on as it began: "
                f"repeat its options, or begin a new run from these weights: --start path:{path} in place of --ckpt_path"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first step comes: from now on the folder is this run's."""
        self._begin(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Also where no step was left to do."""
        self._begin(trainer)

    def _begin(self, trainer: Trainer) -> None:
        if self._begun or not trainer.is_global_zero:
            return
        self._begun = True
        path = trainer.ckpt_path
        goes_on = path is not None and Path(path).resolve().is_relative_to(self.folder.resolve())
        if not goes_on and set_aside(self.folder):
            show(trainer, f"what an earlier run left in {self.folder} is now in {self.folder / PREVIOUS}")
        with replacing(self.folder / RECIPE) as partial:
            partial.write_text(yaml.safe_dump(dict(self.recipe), sort_keys=False, allow_unicode=True), "utf-8")


def set_aside(folder: Path) -> bool:
    """Move what an earlier run left into `previous/`, whose content is replaced; whether there was anything."""
    if not any((folder / name).exists() for name in ("bundle", "checkpoints")):
        return False
    shutil.rmtree(folder / PREVIOUS, ignore_errors=True)
    (folder / PREVIOUS).mkdir()
    for name in _LEFT_BY_A_RUN:
        if (folder / name).exists():
            (folder / name).rename(folder / PREVIOUS / name)
    return True


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value before, value now) of all settings that a checkpoint fixes and that differ."""
    for section, free in _FREE.items():
        for key, was, new in _changed(before.get(section), now.get(section), section):
            if not any(f"{key}.".startswith(f"{section}.init_args.{name}.") for name in free):
                yield key, was, new
    if None not in (seeds := (before.get("seed_everything"), now.get("seed_everything"))):
        yield from _changed(*seeds, "seed_everything")
    trainers = before.get("trainer") or {}, now.get("trainer") or {}
    for name in _FIXED_TRAINER:
        if all(name in trainer for trainer in trainers):
            yield from _changed(trainers[0][name], trainers[1][name], f"trainer.{name}")


def _changed(was: Any, now: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(was, dict) and isinstance(now, dict):
        if was.get("class_path") != now.get("class_path"):
            yield f"{key}.class_path", was.get("class_path"), now.get("class_path")
            return
        # all arguments of a class are written out: one that only one side has was added to the class meanwhile
        names = was.keys() & now.keys() if key.endswith(".init_args") else was.keys() | now.keys()
        for name in sorted(names):
            yield from _changed(was.get(name), now.get(name), f"{key}.{name}")
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for number, (first, second) in enumerate(zip(was, now, strict=True)):
            yield from _changed(first, second, f"{key}[{number}]")
    elif was != now and not _same_file(was, now):
        yield key, was, now


def _same_file(was: Any, now: Any) -> bool:
    """Whether two values may name one file that has moved, as on another machine."""
    both = isinstance(was, str) and isinstance(now, str) and ("/" in was or "/" in now)
    return both and Path(was).name == Path(now).name


def _told(value: Any) -> str:
    if isinstance(value, dict) and "class_path" in value:
        value = value["class_path"]
    return "nothing" if value is None else str(value)[:80]


def _beside(checkpoint: Path) -> str | None:
    """The recipe of the run folder: checkpoints of earlier versions do not hold it."""
    for folder in list(checkpoint.absolute().parents)[:2]:
        if (folder / RECIPE).is_file():
            return _json(read_mapping(folder / RECIPE))
    return None


def _json(recipe: Mapping[str, Any]) -> str:
    return json.dumps(recipe, default=str)
