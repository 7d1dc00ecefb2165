"""What a run measured, as JSON for programs: the report beside it is for people."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from zoo.callbacks.evaluation import Result, RetrievalEvaluation
from zoo.callbacks.history import History
from zoo.callbacks.terminal import show
from zoo.errors import ZooError
from zoo.files import replacing

NAME = "results-{stage}.json"  # stage: val or test


class ResultsFile(Callback):
    """Writes `results-val.json` after every validation and `results-test.json` after every test.

    Each holds the values of all tasks with their standard errors and what chance scores, the number of parameters, and,
    where something was trained in the same process, the steps, samples and seconds of it. Shares are fractions of 1; what
    is not finite is null. A file that can't be written does not stop the run.

    Args:
        dirpath: the folder.
    """

    def __init__(self, dirpath: str | Path = "runs") -> None:
        self.dirpath = dirpath

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the values of this validation."""
        if not trainer.sanity_checking:
            self._write(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the values of this test."""
        self._write(trainer, pl_module, "test")

    def _write(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        evaluation = next((c for c in callbacks if isinstance(c, RetrievalEvaluation)), None)
        measured = [] if evaluation is None else evaluation.results.get(stage, [])
        if not measured or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        history = next((c for c in callbacks if isinstance(c, History) and c.samples), None)
        parameters = list(module.parameters())
        content = {
            "stage": stage,
            "parameters": sum(p.numel() for p in parameters),
            "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "training": None if history is None else _effort(trainer, history),
            "tasks": [_plain(result) for result in measured],
        }
        try:
            with replacing(Path(self.dirpath) / NAME.format(stage=stage)) as partial:
                partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
        except (OSError, ZooError) as error:
            show(trainer, f"warning: the results can't be written: {error}")


def _effort(trainer: Trainer, history: History) -> dict[str, Any]:
    return {"steps": trainer.global_step, "samples": history.samples, "seconds": round(history.seconds, 3)}


def _plain(result: Result) -> dict[str, Any]:
    return {
        "task": result.task.name,
        "primary": result.primary,
        "queries": len(result.task.queries),
        "candidates": len(result.task.candidates),
        **{name: _finite(getattr(result, name)) for name in ("values", "errors", "chance")},
    }


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
