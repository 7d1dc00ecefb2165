"""Dot charts and heat maps are valid drawings that say what they should and escape what comes from data."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest

from zoo.callbacks.report_dots import Dots, dot_chart
from zoo.callbacks.report_heat_map import heat_map


def drawing(figure: str) -> ElementTree.Element:
    return ElementTree.fromstring(figure)


def test_a_dot_per_value_and_a_bar_at_the_mean() -> None:
    lines = [Dots("first <one>", [10.0, 30.0], ["seed 0", "seed 1"]), Dots("second", [math.nan, 20.0], ["a", "b"])]
    figure = drawing(dot_chart("recall & co", lines, "%", chance=5.0))
    circles = figure.findall(".//circle")
    places = [float(circle.attrib["cx"]) for circle in circles]
    bars = [float(line.attrib["x1"]) for line in figure.iter("line") if "line " in line.attrib["class"]]
    assert len(places) == 3 and len(bars) == 2
    assert bars[0] == pytest.approx((places[0] + places[1]) / 2, abs=0.1)  # drawn with one digit
    assert bars[1] == places[2] == bars[0]
    titles = [title.text for title in figure.iter("title")]
    assert "first <one>, seed 0: 10" in titles and "first <one>, mean: 20" in titles and "chance: 5" in titles
    assert circles[0].attrib["class"] == "s0" and circles[2].attrib["class"] == "s1"


def test_nothing_to_draw_is_no_figure() -> None:
    assert dot_chart("recall", [Dots("none", [], []), Dots("nan", [math.nan], ["seed 0"])], "%") == ""


def test_long_names_are_cut_and_kept_for_the_pointer() -> None:
    name = "a-very-long-name-of-a-recipe"
    figure = drawing(dot_chart("recall", [Dots(name, [1.0], ["seed 0"])], "%"))
    (label,) = [text for text in figure.iter("text") if text.attrib.get("text-anchor") == "end"]
    assert label.text.endswith("…") and label[0].text == name


def test_heat_map_is_darkest_at_its_largest_value() -> None:
    figure = drawing(heat_map("CKA", ["x", "y<z"], ["a", "b"], [[0.1, 0.5], [math.nan, 0.3]]))
    cells = {rect[0].text: rect.attrib["style"] for rect in figure.iter("rect") if len(rect)}
    assert list(cells) == ["x, a: 0.1000", "x, b: 0.5000", "y<z, b: 0.3000"]
    shades = [float(style.rpartition(":")[2]) for style in cells.values()]
    assert shades[0] < shades[2] < shades[1] == 1.0
    assert len(list(figure.iter("rect"))) == 4 and "nan" not in ElementTree.tostring(figure, "unicode").split("svg")[1]


def test_heat_map_of_one_value() -> None:
    figure = drawing(heat_map("CKA", ["x"], ["a"], [[0.5]]))
    assert [text.text for text in figure.iter("text")][-1] == "0.500"
