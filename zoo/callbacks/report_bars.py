"""Bar charts as inline SVG: one bar per name, with its standard error where there is one."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from zoo.callbacks.report_charts import SERIES, number, ticks

_WIDTH, _HEIGHT = 380, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 14, 12, 40
_GAP = 0.18  # share of a bar's place that stays empty
_NAMES = 6  # bars that have their name below them; more do not fit
_FAINT = 0.55  # opacity of bars of several groups, which may overlap


@dataclass(frozen=True, slots=True)
class Bars:
    """One group of bars: a value for every name of the chart, and its standard error or nothing."""

    name: str
    values: Sequence[float]
    errors: Sequence[float] = ()


def bar_chart(title: str, names: Sequence[str], groups: Sequence[Bars], x_label: str, y_label: str) -> str:
    """A figure whose y axis begins at 0. Groups are drawn over one another, half transparent.

    Args:
        title: above the chart.
        names: of the bars, from left to right.
        groups: at most `SERIES`, each in the next colour of the page.
        x_label: what the names are.
        y_label: unit or name of the values.
    """
    groups = groups[:SERIES]
    tops = [v + e for one in groups for v, e in zip(one.values, _errors(one), strict=True) if math.isfinite(v + e)]
    if not tops:
        return ""
    y_ticks = ticks(0.0, max(tops), 5)
    body = _axes(names, y_ticks, x_label, y_label)
    for place, one in enumerate(groups):
        for i, (value, error) in enumerate(zip(one.values, _errors(one), strict=True)):
            if math.isfinite(value):
                tip = f"{one.name}, {names[i]}: {number(value)}" + (f" ± {number(error)}" if error else "")
                body += _bar(place, i, len(names), value, error, y_ticks[-1], tip, 1.0 if len(groups) == 1 else _FAINT)
    label = html.escape(f"{title} by {x_label}", quote=True)
    drawing = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{body}</svg>'
    return f'<figure class="card"><figcaption>{html.escape(title)}{_legend(groups)}</figcaption>{drawing}</figure>'


def _errors(bars: Bars) -> list[float]:
    return [e if math.isfinite(e) else 0.0 for e in bars.errors] or [0.0] * len(bars.values)


def _axes(names: Sequence[str], y_ticks: Sequence[float], x_label: str, y_label: str) -> str:
    parts = []
    for value in y_ticks:
        y = _y(value, y_ticks[-1])
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y:.1f}" dy="4" text-anchor="end">{number(value)}</text>')
    step = math.ceil(len(names) / _NAMES)
    for i in range(0, len(names), step):
        x = _x(i + 0.5, len(names))
        name = html.escape(names[i])
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 22}" text-anchor="middle">{name}</text>')
    centre = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{centre}" y="{_HEIGHT - 5}" text-anchor="middle">{html.escape(x_label)}</text>')
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    turned = f'transform="translate(10 {middle}) rotate(-90)"'
    parts.append(f'<text {turned} text-anchor="middle">{html.escape(y_label)}</text>')
    return "".join(parts)


def _bar(group: int, place: int, count: int, value: float, error: float, top: float, tip: str, opacity: float) -> str:
    left, right = (_x(place + share, count) for share in (_GAP / 2, 1 - _GAP / 2))
    y, floor = _y(value, top), _y(0.0, top)
    box = f'x="{left:.1f}" y="{y:.1f}" width="{right - left:.1f}" height="{floor - y:.1f}"'
    shade = f'style="fill:var(--s{group});fill-opacity:{opacity}"'
    parts = [f"<rect {box} {shade}><title>{html.escape(tip)}</title></rect>"]
    if error:
        x = (left + right) / 2
        ends = f'y1="{_y(value + error, top):.1f}" y2="{_y(max(0.0, value - error), top):.1f}"'
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" {ends} style="stroke:var(--ink)"/>')
    return "".join(parts)


def _x(place: float, count: int) -> float:
    return _LEFT + place / count * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float, top: float) -> float:
    return _HEIGHT - _BOTTOM - value / top * (_HEIGHT - _TOP - _BOTTOM)


def _legend(groups: Sequence[Bars]) -> str:
    if len(groups) == 1:
        return ""
    names = "".join(f'<span><i class="s{i}"></i>{html.escape(one.name)}</span>' for i, one in enumerate(groups))
    return f'<span class="legend">{names}</span>'
