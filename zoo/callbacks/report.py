"""One HTML file about a run, readable from disk without network: facts, results beside chance, curves, examples."""

from __future__ import annotations

import platform
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

import zoo
from zoo.callbacks import report_page as page
from zoo.callbacks.checkpointing import BestCheckpoint
from zoo.callbacks.evaluation import Result, RetrievalEvaluation
from zoo.callbacks.history import History
from zoo.callbacks.measures import Measured
from zoo.callbacks.terminal import cells, show
from zoo.errors import ZooError
from zoo.files import replacing
from zoo.machine import cpu_model, usable_cores
from zoo.progress import duration

Kind = TypeVar("Kind", bound=Callback)
_LIBRARIES = ("torch", "lightning", "transformers")


class Report(Callback):
    """Writes the report after every validation and at the end of a fit or test, and then says where it is.

    What is shown comes from the callbacks `RetrievalEvaluation` and `History` of the same trainer. The file is
    `report.html`; where nothing was trained, `report-validate.html` or `report-test.html`, so that measuring weights
    later does not replace the report of their training. A report that can't be written does not stop the run.

    Args:
        dirpath: the folder.
        name: what was run, for the title.
    """

    def __init__(self, dirpath: str | Path = "runs", name: str = "run") -> None:
        self.dirpath, self.name = dirpath, name
        self._problem = ""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what there is so far."""
        if not trainer.sanity_checking:
            self._write(trainer, pl_module, final=trainer.state.fn != "fit")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the whole run, and say where."""
        self._write(trainer, pl_module, final=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the test results, and say where."""
        self._write(trainer, pl_module, final=True)

    def _write(self, trainer: Trainer, module: LightningModule, final: bool) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        history = _first(trainer, History)
        trained = history is not None and history.samples > 0
        stage = trainer.state.fn.value if trainer.state.fn else "run"
        path = Path(self.dirpath) / ("report.html" if trained else f"report-{stage}.html")
        try:
            with replacing(path) as partial:
                partial.write_text(self._page(trainer, module, history if trained else None), "utf-8")
        except (OSError, ZooError) as error:
            if str(error) != self._problem:  # once, not after every validation
                show(trainer, f"warning: the report can't be written: {error}")
            self._problem = str(error)
        else:
            if final:
                show(trainer, f"report: {path.resolve()}")

    def _page(self, trainer: Trainer, module: LightningModule, history: History | None) -> str:
        evaluation = _first(trainer, RetrievalEvaluation)
        results = {} if evaluation is None else evaluation.results
        # test results first: they are what counts
        ordered = {stage: results[stage] for stage in sorted(results, key=("test", "val").index) if results[stage]}
        latest = next(iter(ordered.values()), [])
        return page.document(
            title=self.name,
            tiles=page.tiles(_headline(latest) + _effort(history)),
            facts=page.facts(_facts(trainer, module, history)),
            results=page.results(ordered, "expected" if evaluation is None else evaluation.ties) + _measures(trainer),
            curves="" if history is None else page.curves(history.curves, results.get("val") or latest),
            examples=page.examples(latest),
        )


def _measures(trainer: Trainer) -> str:
    """The tables of all callbacks that have some, those of the test first."""
    found = [c.measures for c in trainer.callbacks if isinstance(c, Measured)]  # type: ignore[attr-defined]
    return page.measures([tables[stage] for stage in ("test", "val") for tables in found if stage in tables])


def _headline(results: list[Result]) -> list[tuple[str, str]]:
    entries = []
    for result in results[:3]:
        value, _, chance, times = cells(result, result.primary)
        entries.append((value, f"{result.primary}, {result.task.name}: {times} chance ({chance})"))
    return entries


def _effort(history: History | None) -> list[tuple[str, str]]:
    if history is None:
        return []
    return [
        (duration(history.seconds), "training time, validation not counted"),
        (f"{history.samples_per_second:,.0f}/s", f"training samples, {history.samples:,} in all"),
    ]


def _facts(trainer: Trainer, module: LightningModule, history: History | None) -> dict[str, str]:
    parameters = list(module.parameters())
    total, trained = sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
    facts = {
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "architecture": type(module).__name__,
        "parameters": f"{total:,}" + ("" if trained == total else f", of which {trained:,} are trained"),
        "machine": _machine(trainer, module),
        "versions": ", ".join(
            [f"embedding-zoo {zoo.__version__}", f"Python {platform.python_version()}", *_versions()]
        ),
    }
    if history is not None:
        facts["steps"] = f"{trainer.global_step:,}, precision {trainer.precision}"
        if best := _best(trainer, history):
            facts["best validation"] = best
    return facts


def _best(trainer: Trainer, history: History) -> str:
    """The step whose weights are kept as the best, by the value that decides so."""
    keeper = _first(trainer, BestCheckpoint)
    name = "val/primary" if keeper is None else keeper.counted(history.curves)
    curve = history.curves.get(name or "", [])
    if not curve:
        return ""
    step, value = max(curve, key=lambda point: point[1])
    shown = f"{100 * value:.1f} %" if 0 <= value <= 1 else f"{value:.4g}"
    return f"{shown} ({name}) at step {step:,}"


def _machine(trainer: Trainer, module: LightningModule) -> str:
    parts = [f"{usable_cores()} cores ({cpu_model()}), {torch.get_num_threads()} threads", platform.system()]
    if torch.cuda.is_available():
        parts.insert(0, torch.cuda.get_device_name())
    if trainer.world_size > 1:
        parts.append(f"{trainer.world_size} processes")
    return ", ".join(parts)


def _versions() -> list[str]:
    found = []
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return found


def _first(trainer: Trainer, kind: type[Kind]) -> Kind | None:
    return next((c for c in trainer.callbacks if isinstance(c, kind)), None)  # type: ignore[attr-defined]
