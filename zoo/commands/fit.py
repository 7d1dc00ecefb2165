"""Train, validate, test or predict from one recipe: `zoo fit --config recipes/NAME.yaml`."""

from __future__ import annotations

import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from traceback import walk_tb
from typing import Any

import yaml
from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException

from zoo import trust
from zoo.bundle import bundle_around, check_place, clear_leftovers, write_bundle
from zoo.callbacks.checkpoint_files import CheckpointFiles
from zoo.callbacks.checkpointing import BestCheckpoint, ResumableCheckpoint
from zoo.callbacks.evaluation import RetrievalEvaluation
from zoo.callbacks.history import History
from zoo.callbacks.latent_caching import LatentCaching
from zoo.callbacks.predictions import Predictions
from zoo.callbacks.progress import FitProgress, ProgressLines
from zoo.callbacks.report import Report
from zoo.callbacks.results_file import ResultsFile
from zoo.callbacks.run_record import RunRecord
from zoo.card import card_of_run, example_of_use
from zoo.command_line import CommandLine, read_command_line
from zoo.data.datamodule import EmbeddingData
from zoo.errors import RecipeError, WeightsError, ZooError
from zoo.locks import remove_partials, writing
from zoo.module import EmbeddingModule
from zoo.nn.start import reads_its_own, recipe_without_pretrained, start_from, without_pretrained
from zoo.parsing import explain, explain_built
from zoo.recipe import Card, read_recipe
from zoo.registry import import_parts

EXIT_SOME_BAD = 3  # as of `zoo embed`: items that `zoo predict` could not use
EXIT_TERMINATED = 143  # 128 + SIGTERM, as shells have it


class ZooCLI(LightningCLI):
    """LightningCLI in subclass mode, with what every run of the zoo has: exact resume, evaluation, history, report."""

    def __init__(self, line: CommandLine, **settings: Any) -> None:
        self.line = line
        super().__init__(**settings)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The sections of a recipe beside model, data and trainer. `card:` is checked by `zoo.catalog`."""
        parser.add_argument("--card", type=dict, default={}, help="what `zoo show` prints")
        parser.add_argument("--run_dir", type=str, default="", help="where this run writes (default: runs/RECIPE)")
        parser.add_argument("--start", type=str, default="", help="what fitting starts from, as zoo.load takes it")
        parser.add_argument(
            "--start_fresh", type=list[str], default=[], help="parts that `start` lacks and that are new"
        )
        parser.add_lightning_class_args(RetrievalEvaluation, "evaluation")
        parser.add_lightning_class_args(History, "history")
        parser.add_lightning_class_args(Report, "report")
        parser.add_lightning_class_args(ResultsFile, "results")
        parser.add_lightning_class_args(ResumableCheckpoint, "checkpoint")
        parser.add_lightning_class_args(BestCheckpoint, "best")
        parser.add_lightning_class_args(LatentCaching, "cache")
        parser.add_lightning_class_args(Predictions, "predictions")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Say the first cause of what does not fit, with the nearest right name.

        With a bundle's recipe, nothing is imported that a bundle may not name, in any of its sections (see `zoo.trust`).
        """
        try:
            with trust.parsing(self.line.bundle):
                super().parse_arguments(parser, args)
        except ArgumentError as error:
            options = [option for action in self._parser(args[0])._actions for option in action.option_strings]
            raise explain(error, self.line.name, options) from error

    def _parse_ckpt_path(self) -> None:
        """A checkpoint says nothing about the recipe; Lightning would build whatever class it names."""

    def before_instantiate_classes(self) -> None:
        """Fill in what follows from the recipe's name: where the run writes, and its loggers."""
        settings = self.config[self.subcommand]
        if self.subcommand == "fit":
            Card.of(settings.card, self.line.recipe.name)  # now, not when the bundle is written
            self._given = settings.clone()  # before machine paths come in
        run_dir = Path(settings.run_dir or Path("runs") / self.line.name).expanduser()
        if self.subcommand == "fit":
            check_place(run_dir / "bundle")  # now, not when there is something to lose
        settings.ckpt_path = _checkpoint(settings.ckpt_path, run_dir / "checkpoints", str(self.subcommand))
        if self.subcommand in ("validate", "test"):
            settings.verbose = False  # Lightning's own table of results beside ours
        settings.run_dir = settings.trainer.default_root_dir = settings.report.dirpath = str(run_dir)
        settings.report.name = self.line.name
        settings.results.dirpath = str(run_dir)
        settings.checkpoint.dirpath = settings.best.dirpath = str(run_dir / "checkpoints")
        settings.predictions.dirpath = str(run_dir / "predictions")
        if isinstance(settings.seed_everything, int):
            settings.checkpoint.seed = settings.seed_everything
        if settings.trainer.logger is None:
            settings.trainer.logger = [
                {"class_path": "CSVLogger", "init_args": {"save_dir": str(run_dir), "name": "logs"}},
                {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(run_dir), "name": "tensorboard"}},
            ]

    def instantiate_classes(self) -> None:
        """What a part says of its settings, without the parser's list of all that it tried."""
        try:
            with trust.making(self.line.bundle):
                super().instantiate_classes()
        except Exception as error:  # of any library; ZOO_TRACEBACK=1 shows where it came from
            raise explain_built(error, self.line.name) from error

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Trainer:
        """With one progress bar for the whole fit, unless bars are switched off; in a log file, with lines instead."""
        for name in ("accumulate_grad_batches", "val_check_interval", "check_val_every_n_epoch"):
            if config.get(name) == 0:
                raise RecipeError(f"trainer.{name} is 0; set it above 0, and limit_val_batches: 0 for no validation")
        bar = config.get("enable_progress_bar")
        if bar is None:
            bar = config["enable_progress_bar"] = sys.stdout.isatty()
            callbacks = callbacks if bar else [*callbacks, ProgressLines()]
        try:
            return super()._instantiate_trainer(config, [*callbacks, FitProgress()] if bar else callbacks)
        except (MisconfigurationException, ValueError, RuntimeError, TypeError, ImportError) as error:
            asked = {name: config.get(name) for name in ("accelerator", "devices", "strategy", "precision", "plugins")}
            given = ", ".join(f"{name} {value}" for name, value in asked.items() if value not in (None, "auto"))
            told = (
                f"the trainer can't be built ({given or 'all settings are automatic'}): {' '.join(str(error).split())}"
            )
            if asked["accelerator"] not in (None, "auto", "cpu"):
                told += " (`--trainer.accelerator auto` takes what this machine has)"
            raise RecipeError(f"recipe '{self.line.name}': {told}") from error

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """As Lightning has them, without the option to have checkpoints unpickled."""
        return {name: skipped | {"weights_only"} for name, skipped in LightningCLI.subcommands().items()}

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it; what a checkpoint does to Lightning or torch becomes one line."""
        try:
            with self._run_folder() if subcommand == "fit" else nullcontext():
                super()._run_subcommand(subcommand)
        except Exception as error:
            if (isinstance(error, ZooError) and not isinstance(error, WeightsError)) or not _restoring(error):
                raise
            told = " ".join(str(error).split()) or type(error).__name__
            path = self.config[subcommand].ckpt_path
            raise WeightsError(told if path in told else f"{path} can't be restored: {told[:400]}") from error

    @contextmanager
    def _run_folder(self) -> Iterator[None]:
        """Hold the folder, rid of what killed runs have left in it. ZooError if another fit writes there."""
        if not self.trainer.is_global_zero:
            yield
            return
        folder = Path(self.config["fit"].run_dir)

        def refuse() -> None:
            raise ZooError(f"another fit writes to {folder}: let it end, or choose another folder, --run_dir FOLDER")

        with writing(folder, waiting=refuse):
            if (folder / "checkpoints").is_dir():
                remove_partials(folder / "checkpoints")
            clear_leftovers(folder / "bundle")
            yield

    def before_fit(self) -> None:
        """Try what could fail later, have written down what is trained, and take the weights of `start`, adapters merged.

        A checkpoint holds those already.
        """
        settings = self.config["fit"]
        if isinstance(self.datamodule, EmbeddingData):
            self.datamodule.try_out(self.model.processor)
        if settings.start and settings.ckpt_path is None:
            from zoo.loading import load

            start_from(self.model, load(settings.start, device="cpu").module, settings.start, settings.start_fresh)
        # first, so that the folder is this run's before others write
        self.trainer.callbacks.insert(0, RunRecord(settings.run_dir, self._merged()))  # type: ignore[attr-defined]
        if settings.start:
            without_pretrained(self.model, settings.start_fresh)

    def before_validate(self) -> None:
        """Without --ckpt_path: measure the released weights of the recipe."""
        self._released_weights("validate")

    def before_test(self) -> None:
        """Without --ckpt_path: measure the released weights of the recipe."""
        self._released_weights("test")

    def before_predict(self) -> None:
        """Without --ckpt_path: embed with the released weights of the recipe."""
        self._released_weights("predict")

    def _released_weights(self, stage: str) -> None:
        if self.config[stage].ckpt_path is not None:
            return
        from zoo.loading import load_weights

        name, recipe = self.line.name, self.line.recipe
        if (bundle := bundle_around(recipe)) is not None:
            print(f"no --ckpt_path given: these are the weights of the bundle {bundle}")
            load_weights(self.model, recipe, bundle)
            return
        weights = self.config[stage].card.get("weights")
        if not weights:
            raise WeightsError(
                f"'{name}' has no released weights to {stage} with: name those of a run, "
                f"--ckpt_path runs/{name}/checkpoints/best.ckpt, or train it, zoo fit --config {recipe}"
            )
        print(f"no --ckpt_path given: these are the released weights of '{name}'")
        if notes := next(iter(Card.of(self.config[stage].card, name).weights.values())).notes:
            print(f"note: {notes}")
        load_weights(self.model, recipe)

    def _merged(self) -> dict[str, Any]:
        """The recipe that was trained: all `--config` files and options together, defaults written out.

        With `start` the parts that it brought have read nothing of their own.
        """
        merged: dict[str, Any] = yaml.safe_load(self._parser("fit").dump(self._given, skip_none=False))
        if merged["start"]:
            kept = reads_its_own(self.model, merged["start_fresh"])
            merged["model"] = recipe_without_pretrained(merged["model"], kept)
        merged["card"] = card_of_run(merged, self.line.stale)
        start = (key for key in ("start", "start_fresh") if merged[key])
        return {key: merged[key] for key in ("card", *start, "seed_everything", "model", "data", "trainer", "best")}

    def after_fit(self) -> None:
        """Write the bundle of the best (or, without validation, the last) weights, and measure them on the test tasks."""
        best = next(c for c in self.trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint))
        step = self.trainer.global_step
        if best.best_model_path:
            checkpoint = CheckpointFiles().load_checkpoint(best.best_model_path)
            step = checkpoint["global_step"]
            self.model.on_load_checkpoint(checkpoint)
            self.model.load_state_dict(checkpoint["state_dict"])
        run_dir = Path(self.config["fit"].run_dir)
        if self.datamodule is not None and self.datamodule.tasks("test"):
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
        if self.trainer.is_global_zero:
            recipe = read_recipe(run_dir / "recipe.yaml").raw
            metrics = self._measured(step)
            folder = write_bundle(self.model, recipe, run_dir / "bundle", name=self.line.name, metrics=metrics)
            why = f", the best by {best.monitor}" if best.best_model_path else ", the last"
            print(f"\nbundle:    {folder} (step {step}{why})")
            print(f"use it:    {example_of_use(folder, recipe, self._caption())}")

    def _caption(self) -> str:
        """A text of the training data, to search for."""
        if not isinstance(self.datamodule, EmbeddingData) or not self.datamodule.train:
            return ""
        views = self.datamodule.train[0].draw(0, random.Random(0)).views.values()
        items = [item for view in views for item in (view if isinstance(view, tuple) else (view,))]
        return next((item.text for item in items if item.text), "")

    def _measured(self, step: int) -> dict[str, float]:
        """What this run measured with the weights that it releases, those of `step`, for the card."""
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        history = next(c for c in callbacks if isinstance(c, History))
        evaluation = next(c for c in callbacks if isinstance(c, RetrievalEvaluation))
        validated = {
            f"validation at step {step}, {', '.join(name.split('/')[1:])}": value
            for name, curve in history.curves.items()
            for at, value in curve
            if name.startswith("val/") and name != "val/primary" and at == step
        }
        return validated | {
            f"test, {result.task.name}, {metric}": value
            for result in evaluation.results.get("test", [])
            for metric, value in result.values.items()
        }


def run_lightning(subcommand: str, argv: list[str]) -> int:
    """`zoo fit|validate|test|predict` with the rest of the command line. Returns the exit code."""
    import_parts()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # our loaders resume by themselves (HomogeneousBatches); Lightning knows only of loaders with a state
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")  # that is how it is called here
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"lightning\.")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message="Couldn't infer the batch indices")  # ids travel in the batch
    warnings.filterwarnings("ignore", message=".*module.*in eval mode at the start of training.*")  # frozen parts are
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda line: "litlogger" not in line.getMessage()
    )
    try:
        done = _run(subcommand, read_command_line(subcommand, argv))
    except (MisconfigurationException, ValueError) as error:
        if isinstance(error, ZooError) or not _told_by_lightning(error):
            raise
        raise RecipeError(f"trainer: {' '.join(str(error).split())}") from error
    except SIGTERMException:  # without a code of its own the process would seem to have come to its end
        return EXIT_TERMINATED
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning has closed everything, and ends with code 1
            raise KeyboardInterrupt from end
        raise
    callbacks = done.trainer.callbacks  # type: ignore[attr-defined]
    some_bad = any(one.bad for one in callbacks if isinstance(one, Predictions))
    return EXIT_SOME_BAD if some_bad else 0


def _run(subcommand: str, line: CommandLine) -> ZooCLI:
    quiet = {"exit_on_error": False}  # a wrong key becomes one sentence (zoo.parsing) instead of a page of usage
    return ZooCLI(
        line,
        model_class=EmbeddingModule,
        datamodule_class=LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_callback=None,
        seed_everything_default=0,
        trainer_defaults={"use_distributed_sampler": False, "num_sanity_val_steps": 0, "log_every_n_steps": 10},
        parser_kwargs=quiet | {name: quiet for name in ("fit", "validate", "test", "predict")},
        args=[subcommand, *line.arguments],
    )


def _checkpoint(given: str | None, folder: Path, subcommand: str) -> str | None:
    """The file that `--ckpt_path` means: `last` and `best` are those of the run. ZooError if it is not there."""
    if given is None or given.startswith("registry") or "://" in given:
        return given
    path = folder / f"{given}.ckpt" if given in ("last", "best") else Path(given).expanduser()
    if path.exists():
        return str(path)
    if given == "last" and subcommand == "fit":  # so that one command starts a run and goes on with it
        print(f"there is no {path} yet: training begins at step 0")
        return None
    there = sorted(str(path) for path in folder.glob("*.ckpt"))
    known = f"; there are {', '.join(there)}" if there else f", and none in {folder}"
    early = " (best.ckpt is written by the first validation)" if path.name == "best.ckpt" else ""
    raise ZooError(f"--ckpt_path: there is no {path}{known}{early}")


def _told_by_lightning(error: Exception) -> bool:
    """Whether Lightning raised it itself: it checks some of the trainer's settings when they are used."""
    *_, (frame, _) = walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith("lightning.")


def _restoring(error: Exception) -> bool:
    """Whether it was raised while Lightning restored a checkpoint."""
    restoring = ("_restore_modules_and_callbacks", "restore_training_state")
    return any(frame.f_code.co_name in restoring for frame, _ in walk_tb(error.__traceback__))
