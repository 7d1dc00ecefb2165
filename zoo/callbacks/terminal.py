"""What callbacks print: above the progress bar, not into it."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zoo.metrics.retrieval import better_is_lower

if TYPE_CHECKING:
    from zoo.callbacks.evaluation import Result

_TITLES = {"val": "validation", "test": "test"}


def results_table(results: Sequence[Result], stage: str, brief: bool = False) -> Table:
    """Values beside chance: every metric of every task, or (`brief`) one line per task."""
    table = Table(title=title_of(stage, results[0]), title_justify="left", title_style="bold")
    for heading in ("task", "metric"):
        table.add_column(heading, overflow="fold")
    for heading in ("value", "±", "chance", "times chance"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        metrics = [result.primary] if brief else list(result.values)
        about = [result.task.name] if brief else [result.task.name, *sizes(result)]
        for label, metric in zip_longest(about, metrics, fillvalue=""):
            table.add_row(Text(label), metric, *(cells(result, metric) if metric else ()))
        if not brief:
            table.add_section()
    return table


def title_of(stage: str, result: Result) -> str:
    """What was measured, and of a fit that goes on: when."""
    when = f" at step {result.step:,}" if result.step is not None else ""
    return f"{_TITLES.get(stage, stage)} results{when}"


def sizes(result: Result) -> tuple[str, str]:
    """How many queries are ranked, and against how many candidates (on average, where each has its own pool)."""
    task = result.task
    count = f"{len(task.candidates):,} candidates"
    if task.pools is not None:
        count = f"{sum(map(len, task.pools)) / len(task.pools):,.0f} candidates each"
    return f"{len(task.queries):,} queries", count


def cells(result: Result, metric: str) -> tuple[str, str, str, str]:
    """Value, standard error, chance (in percent, but for ranks), and how many times chance the value is."""
    value, error, base = result.values[metric], result.errors[metric], result.chance[metric]
    lower = better_is_lower(metric)
    scale, unit = (1.0, "") if lower else (100.0, " %")
    times = base / value if lower else value / base
    spread = "" if error != error else f"{scale * error:.1f}"
    return f"{scale * value:.1f}{unit}", spread, f"{scale * base:.{1 if lower else 2}f}{unit}", f"{times:.1f} x"


def show(trainer: Trainer, content: Table | str) -> None:
    """Print on the main process, above a progress bar that may be running."""
    if not trainer.is_global_zero:
        return
    colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    text = io.StringIO()
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 100
    Console(file=text, width=width, force_terminal=colours, highlight=False).print(content, markup=False)
    line = text.getvalue().rstrip("\n")
    progress = getattr(trainer.progress_bar_callback, "progress", None)
    if progress is not None:  # RichProgressBar; as Text, because it reads [en] as markup
        progress.console.print(Text.from_ansi(line))
    else:  # its own `print` is silent once a bar is closed
        Tqdm.write(line)
