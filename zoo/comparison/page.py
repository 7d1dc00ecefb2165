"""A comparison as one HTML file that needs no network: recipes, a dot per run, every metric."""

from __future__ import annotations

import html
from collections.abc import Sequence
from datetime import datetime

import zoo
from zoo.callbacks.report_dots import Dots, dot_chart
from zoo.callbacks.report_page import document, facts
from zoo.comparison.summary import Comparison, Entry, Measure
from zoo.comparison.tables import MEASURE_COLUMNS, RECIPE_COLUMNS, failures, measure_cells, notes, recipe_cells


def page(comparison: Comparison) -> str:
    """The report."""
    about = {
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "recipes": ", ".join(f"{entry.name} ({entry.file})" for entry in comparison.entries),
        "data": f"the data section of '{comparison.data}'",
        "seeds": ", ".join(map(str, range(comparison.seeds))),
        "steps": "as each recipe says" if comparison.steps is None else f"{comparison.steps:,} each",
        "version": f"embedding-zoo {zoo.__version__}",
    }
    return document(
        title="Comparison of " + ", ".join(entry.name for entry in comparison.entries),
        tiles="",
        facts=facts(about),
        results=_charts(comparison) + _recipes(comparison) + _measures(comparison) + _failed(comparison),
    )


def _charts(comparison: Comparison) -> str:
    """The primary metric of every task, recipes in the order they were named, so that each keeps its colour."""
    charts = [_chart(m, comparison.entries) for m in comparison.measures if m.primary]
    drawn = "".join(charts)
    return f'<h2>Test results</h2><div class="charts">{drawn}</div>' if drawn else ""


def _chart(measure: Measure, entries: Sequence[Entry]) -> str:
    scale = 1.0 if measure.lower else 100.0
    lines = []
    for entry in entries:
        spread = measure.by_recipe.get(entry.name)
        values = [] if spread is None else [scale * value for value in spread.values]
        lines.append(Dots(entry.name, values, [f"seed {seed}" for seed in _seeds(entry, measure)]))
    chance = None if measure.chance is None or measure.lower else scale * measure.chance
    title = f"{measure.metric}, {measure.task}"
    return dot_chart(title, lines, "position" if measure.lower else "%", chance)


def _seeds(entry: Entry, measure: Measure) -> list[int]:
    """The seeds whose values the measure holds, in their order."""
    tasks = {seed: {t["task"]: t["values"] for t in found["tasks"]} for seed, found in entry.finished.items()}
    return [seed for seed, by_task in tasks.items() if by_task.get(measure.task, {}).get(measure.metric) is not None]


def _recipes(comparison: Comparison) -> str:
    rows = [_row(recipe_cells(entry, comparison.seeds), left=1) for entry in comparison.entries]
    return f"<h2>Recipes</h2>{_table(RECIPE_COLUMNS, rows, left=1)}"


def _measures(comparison: Comparison) -> str:
    if not comparison.measures:
        return "<p>No run has finished, so there is nothing to compare.</p>"
    rows = []
    for measure in comparison.measures:
        for number, cells in enumerate(measure_cells(measure)):
            classes = ["first"] * (number == 0) + ["primary"] * measure.primary
            rows.append(_row(cells, left=3, classes=" ".join(classes)))
    said = "".join(f"<p>{html.escape(note)}</p>" for note in notes(comparison))
    return f"<h2>All metrics</h2>{_table(MEASURE_COLUMNS, rows, left=3)}{said}"


def _failed(comparison: Comparison) -> str:
    problems = failures(comparison)
    listed = "".join(f"<p>{html.escape(problem)}</p>" for problem in problems)
    return f"<h2>Failed runs</h2>{listed}" if problems else ""


def _table(columns: Sequence[str], rows: Sequence[str], left: int) -> str:
    head = "".join(f"<th{_numeric(i, left, c)}>{html.escape(c)}</th>" for i, c in enumerate(columns))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="card wide">{table}</div>'


def _row(cells: Sequence[str], left: int, classes: str = "") -> str:
    parts = [f"<td{_numeric(i, left, 'n')}>{html.escape(cell)}</td>" for i, cell in enumerate(cells)]
    return f'<tr class="{classes}">{"".join(parts)}</tr>'


def _numeric(place: int, left: int, name: str) -> str:
    return ' class="n"' if place >= left and name else ""
