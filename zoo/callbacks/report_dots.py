"""Dot charts as inline SVG: one line per name, a dot per value and a bar at their mean."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from zoo.callbacks.report_charts import SERIES, number, ticks

_WIDTH, _ROW, _TOP, _BOTTOM = 380, 30, 8, 34
_LEFT, _RIGHT = 130, 14
_LETTERS = 18  # of a name; more do not fit beside the chart
_HALF = 8  # height of the mean's bar above and below its line


@dataclass(frozen=True, slots=True)
class Dots:
    """One line of the chart. notes: what each value is, for the reader's pointer."""

    name: str
    values: Sequence[float]
    notes: Sequence[str]


def dot_chart(title: str, lines: Sequence[Dots], x_label: str, chance: float | None = None) -> str:
    """A figure; the x axis begins at 0. Values that are not finite are left out; "" where nothing is left.

    Args:
        title: above the chart.
        lines: from top to bottom, each in the next colour of the page.
        x_label: unit or name of what is drawn.
        chance: the level that chance would reach, as a dashed line.
    """
    values = [value for line in lines for value in line.values if math.isfinite(value)]
    if not values:
        return ""
    levels = [0.0, *values, *([] if chance is None else [chance])]
    x_ticks = ticks(min(levels), max(levels), 5)
    low, high = x_ticks[0], x_ticks[-1]
    height = _TOP + _ROW * len(lines) + _BOTTOM

    def x(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    floor = height - _BOTTOM
    parts = [_axis(x(tick), number(tick), floor) for tick in x_ticks]
    if chance is not None:
        tip = f"<title>chance: {number(chance)}</title>"
        level = f'x1="{x(chance):.1f}" x2="{x(chance):.1f}" y1="{_TOP}" y2="{floor}"'
        parts.append(f'<line class="chance" stroke="currentColor" {level}>{tip}</line>')
    for place, line in enumerate(lines):
        drawn = [(x(v), v, note) for v, note in zip(line.values, line.notes, strict=True) if math.isfinite(v)]
        parts.append(_line(place, line.name, drawn))
    centre = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{centre}" y="{height - 4}" text-anchor="middle">{html.escape(x_label)}</text>')
    label = html.escape(f"{title}: values of single runs and their means", quote=True)
    drawing = f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    legend = '<span class="legend"><span>dots: seeds, bar: mean</span>'
    legend += "<span>dashed: chance</span></span>" if chance is not None else "</span>"
    return f'<figure class="card"><figcaption>{html.escape(title)}{legend}</figcaption>{drawing}</figure>'


def _axis(x: float, label: str, floor: float) -> str:
    line = f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{floor}"/>'
    return f'{line}<text x="{x:.1f}" y="{floor + 15}" text-anchor="middle">{label}</text>'


def _line(place: int, name: str, drawn: Sequence[tuple[float, float, str]]) -> str:
    """The name, the dots, and the bar at their mean."""
    colour = f"s{place % SERIES}"
    y = _TOP + _ROW * (place + 0.5)
    cut = name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"
    label = f"{html.escape(cut)}<title>{html.escape(name)}</title>"
    parts = [f'<text x="{_LEFT - 8}" y="{y}" dy="4" text-anchor="end">{label}</text>']
    for at, value, note in drawn:
        tip = f"<title>{html.escape(f'{name}, {note}: {number(value)}')}</title>"
        parts.append(f'<circle class="{colour}" cx="{at:.1f}" cy="{y}" r="3.5" opacity=".7">{tip}</circle>')
    if drawn:
        middle = sum(at for at, _, _ in drawn) / len(drawn)
        mean = sum(value for _, value, _ in drawn) / len(drawn)
        tip = f"<title>{html.escape(f'{name}, mean: {number(mean)}')}</title>"
        span = f'x1="{middle:.1f}" x2="{middle:.1f}" y1="{y - _HALF}" y2="{y + _HALF}"'
        parts.append(f'<line class="line {colour}" {span}>{tip}</line>')
    return "".join(parts)
