"""The parts of a report as HTML: tiles, facts, results, curves, examples. All that comes from data is escaped."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from zoo.callbacks.evaluation import Example, Result
from zoo.callbacks.history import LEARNING_RATE, SECONDS, Curve
from zoo.callbacks.measures import Measures
from zoo.callbacks.report_charts import SERIES, STYLE, Series, line_chart
from zoo.callbacks.terminal import cells, sizes, title_of
from zoo.data.images import data_address
from zoo.errors import SampleError
from zoo.metrics.retrieval import better_is_lower
from zoo.types import ImageSource, Item

_TEMPLATE = Path(__file__).with_name("report.html")
_THUMBNAIL = 144  # pixels: twice what is shown, for dense screens
_MOST_TASKS = 8  # with examples; a page with all 28 languages of a task would take minutes to scroll (ours)
_MOST_TEXT = 300  # letters of a long text that are shown (ours)
_TRAINING = {
    "train/loss": ("loss", "loss, mean over batches"),
    "train/accuracy": ("in-batch accuracy", "share of queries"),
    "train/temperature": ("temperature", "temperature"),
    LEARNING_RATE: ("learning rate", "learning rate"),
    "train/grad_norm": ("gradient norm", "norm"),
}


def document(title: str, tiles: str, facts: str, results: str, curves: str = "", examples: str = "") -> str:
    """The whole page, self-contained. `title` is text, the parts are HTML."""
    return Template(_TEMPLATE.read_text("utf-8")).substitute(
        title=_text(title), series=STYLE, tiles=tiles, facts=facts, results=results, curves=curves, examples=examples
    )


def tiles(entries: Sequence[tuple[str, str]]) -> str:
    """Large figures, each with its caption."""
    parts = "".join(
        f'<div class="tile"><b>{_text(value)}</b><span>{_text(name)}</span></div>' for value, name in entries
    )
    return f'<div class="tiles">{parts}</div>' if parts else ""


def facts(entries: Mapping[str, str]) -> str:
    """Name and value, one line each."""
    return "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in entries.items())


# ---- results ---------------------------------------------------------------------------------------------------------


def results(by_stage: Mapping[str, Sequence[Result]], ties: str) -> str:
    """One table per stage."""
    parts = [_table(stage, found) for stage, found in by_stage.items() if found]
    if not parts:
        return ""
    how = {
        "expected": "as their expectation over all orders",
        "wrong": "against the model",
        "right": "in favour of the model, as MMEB's official script does",
    }[ties]
    note = (
        f"± is the standard error over queries. Chance is what one and the same vector for everything scores. "
        f"Candidates with equal scores count {how}."
    )
    return "".join(parts) + f"<p>{note}</p>"


def _table(stage: str, found: Sequence[Result]) -> str:
    columns = {"value": "n", "±": "n spread", "chance": "n", "times chance": "n"}
    head = "".join(f'<th class="{kind}">{name}</th>' for name, kind in columns.items())
    body = "".join(f"<tbody>{_task_rows(result)}</tbody>" for result in found)
    title = f"<h2>{_text(title_of(stage, found[0])).capitalize()}</h2>"
    table = f"<table><thead><tr><th>task</th><th>metric</th>{head}</tr></thead>{body}</table>"
    return f'{title}<div class="card wide">{table}</div>'


def _task_rows(result: Result) -> str:
    rows = []
    for i, metric in enumerate(result.values):
        value, error, chance, times = map(_text, cells(result, metric))
        about = f"<small>{'<br>'.join(map(_text, sizes(result)))}</small>"
        name = f'<th rowspan="{len(result.values)}">{_text(result.task.name)}{about}</th>' if i == 0 else ""
        classes = " ".join(["first"] * (i == 0) + ["primary"] * (metric == result.primary))
        numbers = f'<td class="n">{value}</td><td class="n quiet spread">{error}</td><td class="n quiet">{chance}</td>'
        rows.append(f'<tr class="{classes}">{name}<td>{_text(metric)}</td>{numbers}<td class="n">{times}</td></tr>')
    return "".join(rows)


def measures(tables: Sequence[Measures]) -> str:
    """What was measured beside ranking: one table each, with its charts and sheets."""
    parts = []
    for table in tables:
        body = "".join(f"<tr>{_row('td', row)}</tr>" for row in table.rows)
        head = f"<thead><tr>{_row('th', table.columns)}</tr></thead>"
        card = f'<div class="card wide"><table>{head}<tbody>{body}</tbody></table></div>'
        note = f"<p>{_text(table.note)}</p>" if table.note else ""
        charts = f'<div class="charts">{"".join(table.figures)}</div>' if table.figures else ""
        parts.append(f"<h2>{_text(table.title)}</h2>{card}{note}{charts}{''.join(table.sheets)}")
    return "".join(parts)


def sheet(title: str, entries: Sequence[tuple[Item, str]]) -> str:
    """Items side by side, each under a short remark."""
    shown = "".join(
        f'<li><span class="mark"><span>{_text(remark)}</span></span>{_item(item)}</li>' for item, remark in entries
    )
    return f'<h3>{_text(title)}</h3><ol class="card sheet found">{shown}</ol>'


def _row(tag: str, cells: Sequence[str]) -> str:
    """The first cell is a name, the others are numbers."""
    return "".join(f"<{tag}{' class=n' if number else ''}>{_text(cell)}</{tag}>" for number, cell in enumerate(cells))


# ---- curves ----------------------------------------------------------------------------------------------------------


def curves(history: Mapping[str, Curve], found: Sequence[Result]) -> str:
    """Training curves, then every metric with one line per task (or their mean where tasks are many)."""
    known = [name for name in _TRAINING if name in history]
    others = [n for n in history if n.startswith("train/") and n not in _TRAINING and n != SECONDS]
    charts = []
    for name in [*known, *others]:
        title, label = _TRAINING.get(name, (name.removeprefix("train/"),) * 2)
        if len({y for _, y in history[name]}) > 1 or name == "train/loss":  # a constant needs no chart
            charts.append(line_chart(title, [Series(title, history[name])], label))
    metrics = dict.fromkeys(metric for result in found for metric in result.values)
    charts += [_metric_chart(metric, history, found) for metric in metrics]
    drawn = "".join(charts)
    return f'<h2>Curves</h2><div class="charts">{drawn}</div>' if drawn else ""


def _metric_chart(metric: str, history: Mapping[str, Curve], found: Sequence[Result]) -> str:
    scale = 1.0 if better_is_lower(metric) else 100.0
    lines = [
        Series(
            result.task.name,
            [(step, scale * value) for step, value in history.get(f"val/{result.task.name}/{metric}", [])],
            None if better_is_lower(metric) else scale * result.chance[metric],
        )
        for result in found
        if metric in result.values
    ]
    if len(lines) > SERIES:
        lines = [_mean(lines)]
    return line_chart(f"{metric} on validation", lines, "position" if scale == 1.0 else "%", zero=scale != 1.0)


def _mean(lines: Sequence[Series]) -> Series:
    steps = sorted(set.intersection(*({x for x, _ in line.points} for line in lines)))
    values = [dict(line.points) for line in lines]
    levels = [line.chance for line in lines if line.chance is not None]
    points = [(step, sum(v[step] for v in values) / len(values)) for step in steps]
    return Series(f"mean of {len(lines)} tasks", points, sum(levels) / len(levels) if levels else None)


# ---- examples --------------------------------------------------------------------------------------------------------


def examples(found: Sequence[Result]) -> str:
    """Queries from the best ranked to the worst, each with its best candidates; right ones are marked."""
    shown = [result for result in found if result.examples][:_MOST_TASKS]
    if not shown:
        return ""
    note = (
        "Queries evenly spread from the best ranked one to the worst, with the candidates that scored highest. "
        "A tick marks a right one; where none is among them, the best ranked right one follows."
    )
    more = f" Shown are {len(shown)} of {len(found)} tasks." if len(found) > len(shown) else ""
    parts = [f"<h2>Examples</h2><p>{note}{more}</p>"]
    for result in shown:
        parts.append(f"<h3>{_text(result.task.name)} <small>{', '.join(sizes(result))}</small></h3>")
        parts += [_example(result, example) for example in result.examples]
    return "".join(parts)


def _example(result: Result, example: Example) -> str:
    task = result.task
    right = set(task.relevant[example.query])
    entries = [
        _candidate(task.candidates[i], f"{place}", f"{score:.3f}", i in right)
        for place, (i, score) in enumerate(example.found, 1)
    ]
    hit = any(i in right for i, _ in example.found)
    if not hit:
        entries.append(_candidate(task.candidates[example.right], f"{example.rank:,.0f}", "", True, "missed"))
    place = f"{example.rank:,.0f}" if example.rank == int(example.rank) else f"{example.rank:,.1f}"
    size = len(task.candidates) if task.pools is None else len(task.pools[example.query])
    state = "hit" if hit else ""
    rank = f'<span class="rank {state}">right one at {place} of {size:,}</span>'
    query = f'<div class="query">{rank}{_item(task.queries[example.query])}</div>'
    return f'<div class="card example">{query}<ol class="found">{"".join(entries)}</ol></div>'


def _candidate(item: Item, place: str, score: str, right: bool, extra: str = "") -> str:
    tick = " <b>✓ right</b>" if right else ""
    head = f'<span class="mark"><span>{place}{tick}</span>{score}</span>'
    classes = " ".join(filter(None, ["right" if right else "", extra]))
    return f'<li class="{classes}">{head}{_item(item)}</li>'


def _item(item: Item) -> str:
    pictures = "".join(thumbnail(image) for image in item.images)
    instruction = f'<em dir="auto">{_text(item.instruction)}</em>' if item.instruction else ""
    text = f'<span dir="auto">{_text(_cut(item.text))}</span>' if item.text else ""
    place = f"<span>{item.place[0]:.2f}°, {item.place[1]:.2f}°</span>" if item.place else ""
    return f'<div class="item">{instruction}{pictures}{text}{place}</div>'


def thumbnail(source: ImageSource) -> str:
    """A picture as an <img> with its data inside; one that can't be opened becomes the reason why."""
    try:
        return f'<img alt="" src="{data_address(source, "picture not shown", _THUMBNAIL)}">'
    except SampleError as error:
        return f'<span class="unreadable">{_text(_cut(str(error)))}</span>'


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_TEXT else text[: _MOST_TEXT - 1] + "…"


def _text(text: str) -> str:
    return html.escape(text, quote=True)
