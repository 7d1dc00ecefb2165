"""Means, spreads and marks of a comparison, and how they are shown."""

from __future__ import annotations

import csv
import io
import json
import statistics
from typing import Any

import pytest
from rich.console import Console

from zoo.comparison.page import page
from zoo.comparison.summary import Comparison, Entry, Spread, measures_of, within_spread
from zoo.comparison.tables import as_csv, as_json, terminal


def results(recall: float | None, rank: float = 3.0, seconds: float | None = 60.0) -> dict[str, Any]:
    task = {
        "task": "text_to_image[en]",
        "primary": "recall@10",
        "queries": 5,
        "candidates": 9,
        "values": {"recall@10": recall, "mean_rank": rank},
        "errors": {"recall@10": 0.1, "mean_rank": None},
        "chance": {"recall@10": 0.05, "mean_rank": 5.0},
    }
    training = None if seconds is None else {"steps": 3, "samples": 9, "seconds": seconds}
    return {"stage": "test", "parameters": 1000, "trained_parameters": 10, "training": training, "tasks": [task]}


def comparison(**recalls: list[float | None]) -> Comparison:
    entries = [
        Entry(name, f"{name}.yaml", {seed: results(value, 3.0 + len(name)) for seed, value in enumerate(values)})
        for name, values in recalls.items()
    ]
    return Comparison(entries, measures_of(entries), "a", 3, None)


def test_mean_sd_and_order() -> None:
    found = comparison(low=[0.1, 0.2, 0.3], high=[0.5, 0.7, 0.9])
    recall, rank = found.measures
    assert list(recall.by_recipe) == ["high", "low"] and recall.primary and not rank.primary
    assert recall.by_recipe["high"].mean == pytest.approx(0.7)
    assert recall.by_recipe["high"].sd == pytest.approx(statistics.stdev([0.5, 0.7, 0.9]))
    assert list(rank.by_recipe) == ["low", "high"] and rank.lower  # 6 is a better mean rank than 7


@pytest.mark.parametrize(
    ("other", "inside"),
    [
        ([0.30, 0.40, 0.50], True),  # means 0.1 apart, sd 0.1: on the edge
        ([0.29, 0.39, 0.49], False),
        ([0.00, 0.40, 0.80], True),  # its own sd is the larger one
    ],
)
def test_the_rule(other: list[float], inside: bool) -> None:
    best = Spread((0.4, 0.5, 0.6))
    assert within_spread(best, Spread(tuple(value + 1e-12 for value in other))) is inside
    marks = comparison(best=[0.4, 0.5, 0.6], other=[value + 1e-12 for value in other]).measures[0].marks
    assert marks == {"best": "best", "other": "≈ best" if inside else ""}


def test_one_seed_has_no_spread_and_no_mark() -> None:
    (recall, _) = comparison(a=[0.5], b=[0.5]).measures
    assert recall.by_recipe["a"].sd is None and list(recall.marks.values()) == ["", ""]


def test_values_that_are_missing_are_left_out() -> None:
    (recall, _) = comparison(a=[0.5, None, 0.7], b=[None, None, None]).measures
    assert recall.by_recipe == {"a": Spread((0.5, 0.7))}


def test_the_terminal_shows_chance_marks_and_failures() -> None:
    found = comparison(a=[0.4, 0.5, 0.6], b=[0.35, 0.45, 0.55])
    found.entries[1].failed[2] = "the loss is nan"
    out = io.StringIO()
    Console(file=out, width=120).print(terminal(found))
    text = out.getvalue()
    assert "50.0 %" in text and "10.0 %" in text and "5.00 %" in text and "≈ best" in text
    assert "1 min 00 s" in text and "1,000" in text and "3 of 3, 1 failed" in text
    assert "b seed 2: the loss is nan" in text and "larger of the two standard deviations" in text


def test_csv_and_json_hold_every_value() -> None:
    found = comparison(a=[0.4, 0.5, 0.6], b=[0.3, 0.2, 0.1])
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert len(rows) == 4 and rows[0]["values"] == "0.4;0.5;0.6" and float(rows[0]["mean"]) == pytest.approx(0.5)
    plain = json.loads(as_json(found))
    assert plain["measures"][0]["recipes"]["b"]["values"] == [0.3, 0.2, 0.1]
    assert plain["recipes"][0]["training_seconds"]["mean"] == 60.0


def test_the_page_draws_a_dot_per_run_and_escapes_names() -> None:
    found = comparison(**{"a<b": [0.4, 0.5, 0.6], "other": [0.3, 0.2]})
    text = page(found)
    assert text.count("<circle") == 5 and "a&lt;b" in text and "a<b" not in text
    assert "seed 2: 60" in text and "chance: 5" in text


def test_nothing_finished_is_said() -> None:
    entry = Entry("a", "a.yaml", failed={0: "no data"})
    found = Comparison([entry], measures_of([entry]), "a", 1, None)
    assert "nothing to compare" in page(found) and "a seed 0: no data" in page(found)
