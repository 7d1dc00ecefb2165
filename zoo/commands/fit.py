"""Train, validate, test or predict from one recipe: `zoo fit --config recipes/NAME.yaml`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from zoo.bundle import write_bundle
from zoo.callbacks.checkpointing import ResumableCheckpoint
from zoo.callbacks.evaluation import RetrievalEvaluation
from zoo.callbacks.history import History
from zoo.callbacks.report import Report
from zoo.errors import RecipeError
from zoo.module import EmbeddingModule
from zoo.registry import import_parts


class ZooCLI(LightningCLI):
    """LightningCLI in subclass mode, with what every run of the zoo has: exact resume, evaluation, history, report."""

    recipe: Path

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """`card:` rides in the same file; `zoo.catalog` checks it."""
        parser.add_argument("--card", type=dict, default={}, help="what `zoo show` prints")
        parser.add_argument("--run_dir", type=str, default="", help="where this run writes; default runs/<recipe>")
        parser.add_argument("--save_every", type=int, default=50, help="steps between two saves of last.ckpt")
        parser.add_argument("--monitor", type=str, default="val/primary", help="metric that decides the best checkpoint")

    def before_instantiate_classes(self) -> None:
        """Fill in what follows from the recipe's name: where the run writes, its loggers."""
        settings = self.config[self.subcommand]
        self.recipe = Path(str(settings.config[0])) if settings.config else Path("run.yaml")
        run_dir = Path(settings.run_dir or Path("runs") / self.recipe.stem)
        settings.run_dir = str(run_dir)
        settings.trainer.default_root_dir = str(run_dir)
        if settings.trainer.logger is None:
            settings.trainer.logger = False
            self.default_loggers = True

    default_loggers = False

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Lightning's Trainer plus the callbacks and loggers of every run."""
        settings = self.config_init[self.subcommand]
        run_dir = Path(settings.run_dir)
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks = _in_order([*trainer.callbacks, *self._callbacks(run_dir)])
        if self.default_loggers:
            trainer.loggers = [CSVLogger(run_dir, name="logs"), TensorBoardLogger(run_dir, name="tensorboard")]
        return trainer

    def _callbacks(self, run_dir: Path) -> list[Callback]:
        settings = self.config_init[self.subcommand]
        callbacks: list[Callback] = [RetrievalEvaluation(), History(), Report(run_dir, name=self.recipe.stem)]
        if self.subcommand == "fit":
            checkpoints = run_dir / "checkpoints"
            seed = settings.seed_everything if isinstance(settings.seed_everything, int) else 0
            callbacks.append(ResumableCheckpoint(checkpoints, settings.save_every, seed))
            if settings.data.init_args.val:
                best = ModelCheckpoint(checkpoints, "best", settings.monitor, mode="max", enable_version_counter=False)
                callbacks.append(best)
        return callbacks

    def before_validate(self) -> None:
        """Without --ckpt_path: measure the released weights of the recipe."""
        self._released_weights("validate")

    def before_test(self) -> None:
        """Without --ckpt_path: measure the released weights of the recipe."""
        self._released_weights("test")

    def _released_weights(self, stage: str) -> None:
        if self.config[stage].ckpt_path is not None:
            return
        from zoo.loading import load_weights

        print(f"no --ckpt_path given: measuring the released weights of '{self.recipe.stem}'")
        load_weights(self.model, self.recipe.stem)

    def after_fit(self) -> None:
        """Write the bundle of the best (or, without validation, the last) weights, and measure them on the test tasks."""
        best = next((c for c in self.trainer.checkpoint_callbacks if getattr(c, "monitor", None)), None)
        path = getattr(best, "best_model_path", "")
        if path:
            state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
            self.model.load_state_dict(state)
        run_dir = Path(self.config["fit"].run_dir)
        if self.datamodule is not None and self.datamodule.tasks("test"):
            self.trainer.test(self.model, datamodule=self.datamodule)
        if self.trainer.is_global_zero:
            folder = write_bundle(self.model, self.recipe, run_dir / "bundle")
            print(f"\nuse it:    zoo search path:{folder} \"a person swimming\" --in emoji")


def run_lightning(subcommand: str, argv: list[str]) -> int:
    """`zoo fit|validate|test|predict` with the rest of the command line. Returns the exit code."""
    import_parts()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _describe_unknown(argv)
    ZooCLI(
        EmbeddingModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_callback=None,
        seed_everything_default=0,
        trainer_defaults={
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 10,
            "enable_checkpointing": False,
        },
        parser_kwargs={"parser_mode": "omegaconf" if False else "yaml"},
        args=[subcommand, *argv],
    )
    return 0


def _in_order(callbacks: list[Any]) -> list[Callback]:
    """Evaluation first (it logs what checkpoints monitor), checkpoints last, as Lightning does it."""
    saving = [c for c in callbacks if isinstance(c, ModelCheckpoint)]
    return [c for c in callbacks if not isinstance(c, ModelCheckpoint)] + saving
