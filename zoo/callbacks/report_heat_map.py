"""A table of numbers as inline SVG whose cells are the darker the larger they are."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

_CELL_WIDTH, _CELL_HEIGHT = 84, 30
_LEFT, _HEAD, _RIGHT = 190, 110, 70  # room for the names of rows, and for those of columns, which are slanted
_LETTERS = 26  # of a name
_FAINTEST = 0.06  # opacity of the smallest cell, so that it is seen as a cell


def heat_map(title: str, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]]) -> str:
    """A figure.

    Args:
        title: above it.
        rows: names, from top to bottom.
        columns: names, from left to right.
        values: one list per row; what is not finite is drawn as an empty cell.
    """
    finite = [value for row in values for value in row if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    width = _LEFT + _CELL_WIDTH * len(columns) + _RIGHT
    height = _HEAD + _CELL_HEIGHT * len(rows) + 6
    parts = [_column_name(name, place) for place, name in enumerate(columns)]
    for line, (name, row) in enumerate(zip(rows, values, strict=True)):
        y = _HEAD + _CELL_HEIGHT * line
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 19}" text-anchor="end">{_cut(name)}</text>')
        for place, value in enumerate(row):
            tip = f"{name}, {columns[place]}: {value:.4f}"
            parts.append(_cell(_LEFT + _CELL_WIDTH * place, y, value, _share(value, low, high), tip))
    label = html.escape(title, quote=True)
    style = f"max-width:{width}px"
    svg = f'<svg viewBox="0 0 {width} {height}" style="{style}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return f'<figure class="card"><figcaption>{html.escape(title)}</figcaption>{svg}</figure>'


def _share(value: float, low: float, high: float) -> float:
    return 1.0 if high == low else (value - low) / (high - low)


def _column_name(name: str, place: int) -> str:
    x = _LEFT + _CELL_WIDTH * (place + 0.5)
    return f'<text transform="translate({x} {_HEAD - 8}) rotate(-30)">{_cut(name)}</text>'


def _cell(x: float, y: float, value: float, share: float, tip: str) -> str:
    box = f'x="{x}" y="{y}" width="{_CELL_WIDTH - 2}" height="{_CELL_HEIGHT - 2}" rx="3"'
    if not math.isfinite(value):
        return f'<rect {box} fill="none" class="grid"/>'
    opacity = _FAINTEST + (1 - _FAINTEST) * share
    # letters in the page's own colour up to the middle of the scale, in that of the card where the cell is dark
    ink = "var(--ink)" if opacity < 0.6 else "var(--card)"
    middle = f'x="{x + _CELL_WIDTH / 2 - 1}" y="{y + 19}" text-anchor="middle" style="fill:{ink}"'
    shade = f'style="fill:var(--s0);fill-opacity:{opacity:.3f}"'
    return f"<rect {box} {shade}><title>{html.escape(tip)}</title></rect><text {middle}>{value:.3f}</text>"


def _cut(name: str) -> str:
    cut = name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"
    return f"{html.escape(cut)}<title>{html.escape(name)}</title>"
