"""From the results of single runs to means, spreads, and which differences are larger than the spread."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from zoo.comparison.plan import RESULTS, Plan, Run
from zoo.comparison.runner import Outcome
from zoo.errors import ZooError
from zoo.metrics.retrieval import better_is_lower

Mark = Literal["best", "≈ best", ""]
RULE = (
    "≈ best: the mean differs from the best one by no more than the larger of the two standard deviations over seeds. "
    "This is our rule of thumb, not a significance test."
)
NO_SPREAD = "Where a recipe has finished one seed alone there is no spread, and nothing is marked."


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation (of the sample: n - 1) over seeds; `sd` is None for a single value."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds that finished."""
        return mean(self.values)

    @property
    def sd(self) -> float | None:
        """None where there is one value alone."""
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True, slots=True)
class Measure:
    """One metric of one task: by_recipe: what each recipe reached, best first; marks: the same keys."""

    task: str
    metric: str
    primary: bool
    chance: float | None
    by_recipe: dict[str, Spread]
    marks: dict[str, Mark]

    @property
    def lower(self) -> bool:
        """Whether smaller values are better."""
        return better_is_lower(self.metric)


@dataclass(slots=True)
class Entry:
    """One recipe. finished: seed -> results as `zoo.callbacks.results_file` writes them; failed: seed -> why."""

    name: str
    file: str
    finished: dict[int, dict[str, Any]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    @property
    def seconds(self) -> Spread | None:
        """Training time, without validation and start-up."""
        known = [one["training"]["seconds"] for one in self.finished.values() if one["training"]]
        return Spread(tuple(known)) if known else None

    def count(self, what: Literal["parameters", "trained_parameters"]) -> int | None:
        """None where no run finished."""
        return next((int(one[what]) for one in self.finished.values()), None)


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that the table shows. data: name of the recipe whose data section all were trained on."""

    entries: list[Entry]
    measures: list[Measure]
    data: str
    seeds: int
    steps: int | None


def compared(plan: Plan, outcomes: Sequence[Outcome]) -> Comparison:
    """Read the results of all runs.

    Raises:
        ZooError: results that can't be read; names the recipe and the file.
    """
    entries = {name: Entry(name, str(path)) for name, path in plan.files.items()}
    for outcome in outcomes:
        entry = entries[outcome.run.recipe]
        if outcome.problem:
            entry.failed[outcome.run.seed] = outcome.problem
        else:
            entry.finished[outcome.run.seed] = _results(outcome.run)
    chosen = list(entries.values())
    return Comparison(chosen, measures_of(chosen), plan.data, plan.seeds, plan.steps)


def measures_of(entries: Sequence[Entry]) -> list[Measure]:
    """Every metric of every task that some run measured, in the order of the tasks."""
    names: dict[tuple[str, str], tuple[bool, float | None]] = {}
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for entry in entries:
        for results in entry.finished.values():
            for task in results["tasks"]:
                for metric, value in task["values"].items():
                    key = task["task"], metric
                    names.setdefault(key, (metric == task["primary"], task["chance"].get(metric)))
                    if value is not None:
                        values.setdefault(key, {}).setdefault(entry.name, []).append(value)
    found = []
    for (task_name, metric), (primary, chance) in names.items():
        spreads = {name: Spread(tuple(some)) for name, some in values.get((task_name, metric), {}).items()}
        order = sorted(spreads, key=lambda name: spreads[name].mean, reverse=not better_is_lower(metric))
        ordered = {name: spreads[name] for name in order}
        found.append(Measure(task_name, metric, primary, chance, ordered, _marks(ordered)))
    return found


def _marks(spreads: dict[str, Spread]) -> dict[str, Mark]:
    """By `RULE`; the first is the best. Nothing is marked where it has no spread."""
    names = list(spreads)
    marks: dict[str, Mark] = dict.fromkeys(names, "")
    if len(names) > 1 and spreads[names[0]].sd is not None:
        marks[names[0]] = "best"
        for name in names[1:]:
            if within_spread(spreads[names[0]], spreads[name]):
                marks[name] = "≈ best"
    return marks


def within_spread(one: Spread, other: Spread) -> bool:
    """|difference of means| <= the larger standard deviation; False where one of them has no spread."""
    if one.sd is None or other.sd is None:
        return False
    return abs(one.mean - other.mean) <= max(one.sd, other.sd)


def _results(run: Run) -> dict[str, Any]:
    path: Path = run.folder / RESULTS
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        _ = found["tasks"], found["training"], found["parameters"], found["trained_parameters"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ZooError(
            f"recipe '{run.recipe}', seed {run.seed}: the results in {path} can't be read; delete the file, and the "
            "same command measures them again"
        ) from error
    return found
