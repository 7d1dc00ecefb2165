"""A comparison on the terminal, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zoo.comparison.summary import NO_SPREAD, RULE, Comparison, Entry, Measure, Spread
from zoo.progress import duration

MEASURE_COLUMNS = ("task", "metric", "recipe", "mean", "sd", "seeds", "chance", "")
RECIPE_COLUMNS = ("recipe", "parameters", "trained", "training time", "sd", "runs")


def terminal(comparison: Comparison) -> RenderableType:
    """Two tables, what failed, and how to read them."""
    recipes = _table("recipes", RECIPE_COLUMNS, left=1)
    for entry in comparison.entries:
        recipes.add_row(*map(Text, recipe_cells(entry, comparison.seeds)))
    parts: list[RenderableType] = [recipes, ""]
    if comparison.measures:
        measures = _table("test results", MEASURE_COLUMNS, left=3)
        for measure in comparison.measures:
            for row in measure_cells(measure):
                measures.add_row(*map(Text, row))
            measures.add_section()
        parts += [measures, Text("\n".join(["", *notes(comparison)]))]
    problems = failures(comparison)
    return Group(*parts, *([Text("\n".join(["", "failed:", *problems]))] if problems else []))


def _table(title: str, columns: tuple[str, ...], left: int) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left or not column else "right", overflow="fold")
    return table


def recipe_cells(entry: Entry, seeds: int) -> tuple[str, ...]:
    """One row of the table of recipes, in the order of `RECIPE_COLUMNS`."""
    total, trained = entry.count("parameters"), entry.count("trained_parameters")
    seconds = entry.seconds
    return (
        entry.name,
        "-" if total is None else f"{total:,}",
        "-" if trained is None else f"{trained:,}",
        "-" if seconds is None else duration(seconds.mean),
        "" if seconds is None or seconds.sd is None else f"{seconds.sd:,.1f} s",
        f"{len(entry.finished)} of {seeds}" + (f", {len(entry.failed)} failed" if entry.failed else ""),
    )


def measure_cells(measure: Measure) -> list[tuple[str, ...]]:
    """One row per recipe, best first, in the order of `MEASURE_COLUMNS`; shares in percent."""
    rows: list[tuple[str, ...]] = []
    for number, (name, spread) in enumerate(measure.by_recipe.items()):
        first = number == 0
        rows.append(
            (
                measure.task if first else "",
                measure.metric if first else "",
                name,
                shown(spread.mean, measure.lower),
                "" if spread.sd is None else shown(spread.sd, measure.lower),
                str(len(spread.values)),
                "-" if measure.chance is None else shown(measure.chance, measure.lower, digits=2),
                measure.marks[name],
            )
        )
    return rows


def shown(value: float, lower: bool, digits: int = 1) -> str:
    """0.1234 -> "12.3 %"; ranks stay numbers."""
    return f"{value:,.{digits}f}" if lower else f"{100 * value:.{digits}f} %"


def notes(comparison: Comparison) -> list[str]:
    """What was held equal, and how to read the marks."""
    steps = "" if comparison.steps is None else f", {comparison.steps:,} steps each"
    held = f"All were trained on the data section of '{comparison.data}'{steps}."
    spread = f"sd: over seeds. {RULE} {NO_SPREAD}"
    return [held, spread]


def failures(comparison: Comparison) -> list[str]:
    """One line per failed run."""
    return [f"{e.name} seed {seed}: {why}" for e in comparison.entries for seed, why in sorted(e.failed.items())]


# ---- files -----------------------------------------------------------------------------------------------------------


def as_csv(comparison: Comparison) -> str:
    """One line per task, metric and recipe; shares are fractions of 1, `values` are those of the seeds."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["task", "metric", "primary", "recipe", "mean", "sd", "seeds", "chance", "mark", "values"])
    for measure in comparison.measures:
        for name, spread in measure.by_recipe.items():
            about = [measure.task, measure.metric, "yes" if measure.primary else "", name]
            numbers = [spread.mean, spread.sd, len(spread.values), measure.chance]
            values = ";".join(f"{value:.6g}" for value in spread.values)
            writer.writerow([*about, *numbers, measure.marks[name], values])
    return out.getvalue()


def as_json(comparison: Comparison) -> str:
    """Everything, for programs."""
    content = {
        "data": comparison.data,
        "seeds": comparison.seeds,
        "steps": comparison.steps,
        "rule": RULE,
        "recipes": [_plain_entry(entry) for entry in comparison.entries],
        "measures": [_plain_measure(measure) for measure in comparison.measures],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _plain_entry(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "file": entry.file,
        "parameters": entry.count("parameters"),
        "trained_parameters": entry.count("trained_parameters"),
        "training_seconds": _plain_spread(entry.seconds),
        "finished": sorted(entry.finished),
        "failed": {str(seed): why for seed, why in sorted(entry.failed.items())},
    }


def _plain_measure(measure: Measure) -> dict[str, Any]:
    recipes = {
        name: {**(_plain_spread(spread) or {}), "mark": measure.marks[name]}
        for name, spread in measure.by_recipe.items()
    }
    about = {"task": measure.task, "metric": measure.metric, "primary": measure.primary, "chance": measure.chance}
    return {**about, "recipes": recipes}


def _plain_spread(spread: Spread | None) -> dict[str, Any] | None:
    return None if spread is None else {"mean": spread.mean, "sd": spread.sd, "values": list(spread.values)}
