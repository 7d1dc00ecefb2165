"""Line charts as inline SVG: no library, no network, colours that follow the reader's light or dark page."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

SERIES = 6  # colours of the page
STYLE = "\n".join(
    f"svg .s{i} {{ stroke: var(--s{i}); }} svg circle.s{i} {{ fill: var(--s{i}); stroke: none; }} "
    f".legend .s{i} {{ background: var(--s{i}); }}"
    for i in range(SERIES)
)
_WIDTH, _HEIGHT = 380, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 14, 12, 40
_MARKED = 40  # up to so many points each is a dot that tells its value


@dataclass(frozen=True, slots=True)
class Series:
    """One line: points (x, y) in the order of x, and optionally the level that chance would reach."""

    name: str
    points: Sequence[tuple[float, float]]
    chance: float | None = None


def line_chart(title: str, series: Sequence[Series], y_label: str, zero: bool = False) -> str:
    """A figure with axes, ticks and a legend; x is the training step. Points that are not finite are left out.

    Args:
        title: above the chart.
        series: at most `SERIES` lines, at least one point among them.
        y_label: unit or name of what is drawn.
        zero: whether the y axis begins at 0.
    """
    series = [Series(s.name, [p for p in s.points if math.isfinite(p[1])], s.chance) for s in series[:SERIES]]
    points = [point for one in series for point in one.points]
    if not points:
        return ""
    x_ticks = ticks(0, max(x for x, _ in points), 5, whole=True)
    levels = [y for _, y in points] + [one.chance for one in series if one.chance is not None] + ([0.0] if zero else [])
    y_ticks = ticks(min(levels), max(levels), 5)
    frame = _Frame((x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1]))
    body = _axes(frame, x_ticks, y_ticks, y_label) + "".join(_line(frame, i, one) for i, one in enumerate(series))
    label = html.escape(f"{title} by training step", quote=True)
    drawing = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{body}</svg>'
    return f'<figure class="card"><figcaption>{html.escape(title)}{_legend(series)}</figcaption>{drawing}</figure>'


def ticks(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about `most` of them."""
    if high - low < 1e-12 * max(1.0, abs(high)):  # a flat line
        room = 1.0 if whole else max(abs(high) * 0.1, 1e-9)
        low, high = (low, high + room) if low >= 0 and low - room < 0 else (low - room, high + room)
    raw = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    if whole:
        step = float(max(1, math.ceil(step)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: float) -> str:
    """Short and plain: 0.05, 12.5, 1,200, 2.5e-4."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


@dataclass(frozen=True, slots=True)
class _Frame:
    xs: tuple[float, float]
    ys: tuple[float, float]

    def x(self, value: float) -> str:
        share = (value - self.xs[0]) / (self.xs[1] - self.xs[0])
        return f"{_LEFT + share * (_WIDTH - _LEFT - _RIGHT):.1f}"

    def y(self, value: float) -> str:
        share = (value - self.ys[0]) / (self.ys[1] - self.ys[0])
        return f"{_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM):.1f}"


def _axes(frame: _Frame, x_ticks: Sequence[float], y_ticks: Sequence[float], y_label: str) -> str:
    parts = []
    for value in y_ticks:
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y}" dy="4" text-anchor="end">{number(value)}</text>')
    for step in x_ticks:
        anchor = "end" if step == x_ticks[-1] else "middle"
        parts.append(f'<text x="{frame.x(step)}" y="{_HEIGHT - 22}" text-anchor="{anchor}">{number(step)}</text>')
    parts.append(f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 5}" text-anchor="middle">step</text>')
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    label = html.escape(y_label)
    parts.append(f'<text transform="translate(10 {middle}) rotate(-90)" text-anchor="middle">{label}</text>')
    return "".join(parts)


def _line(frame: _Frame, index: int, series: Series) -> str:
    parts = []
    if series.chance is not None:
        level = frame.y(series.chance)
        tip = f"<title>chance: {number(series.chance)}</title>"
        parts.append(
            f'<line class="chance s{index}" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{level}" y2="{level}">{tip}</line>'
        )
    path = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in series.points)
    parts.append(f'<polyline class="line s{index}" points="{path}"/>')
    for x, y in series.points if len(series.points) <= _MARKED else ():
        tip = html.escape(f"{series.name}, step {x:,.0f}: {number(y)}")
        parts.append(
            f'<circle class="s{index}" cx="{frame.x(x)}" cy="{frame.y(y)}" r="3"><title>{tip}</title></circle>'
        )
    return "".join(parts)


def _legend(series: Sequence[Series]) -> str:
    if len(series) == 1 and series[0].chance is None:
        return ""
    names = [f'<span><i class="s{i}"></i>{html.escape(one.name)}</span>' for i, one in enumerate(series)]
    if any(one.chance is not None for one in series):
        names.append("<span>dashed: chance</span>")
    return f'<span class="legend">{"".join(names)}</span>'
