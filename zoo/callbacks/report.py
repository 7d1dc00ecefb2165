"""One HTML file about a run: facts, results beside chance, curves, and retrieval examples with their pictures."""

from __future__ import annotations

import base64
import html
import io
import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from zoo.callbacks.evaluation import Example, Result, RetrievalEvaluation
from zoo.callbacks.history import History
from zoo.types import ImageSource, Item

_PAGE = Template((Path(__file__).parent / "report.html").read_text("utf-8"))
_THUMBNAIL = 72  # pixels


class Report(Callback):
    """Writes `report.html` into `dirpath` after every validation and at the end; needs no network to be read.

    Args:
        dirpath: where. name: the recipe's name, for the title.
    """

    def __init__(self, dirpath: str = "", name: str = "run") -> None:
        self.dirpath, self.name = dirpath, name

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.dirpath) / "report.html"

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what there is so far."""
        if not trainer.sanity_checking:
            self._write(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the test results too, and say where."""
        self._write(trainer, pl_module)
        if trainer.is_global_zero:
            print(f"report: {self.path}")

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        evaluation = next((c for c in callbacks if isinstance(c, RetrievalEvaluation)), None)
        history = next((c for c in callbacks if isinstance(c, History)), None)
        results = evaluation.results if evaluation else {}
        page = _PAGE.substitute(
            title=html.escape(self.name),
            facts=_facts(trainer, pl_module, history),
            results="".join(_table(stage, found) for stage, found in reversed(results.items()) if found),
            curves=_curves(history) if history else "",
            examples="".join(_examples(r) for r in next(reversed(results.values()), []) if r.examples),
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(page, "utf-8")
        partial.replace(self.path)


def _facts(trainer: Trainer, module: LightningModule, history: History | None) -> str:
    facts: dict[str, Any] = {
        "date": date.today().isoformat(),
        "architecture": type(module).__name__,
        "parameters": f"{sum(p.numel() for p in module.parameters()):,}",
        "step": f"{trainer.global_step:,}",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {type(trainer.accelerator).__name__}",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "transformers")),
    }
    if history is not None and history.seconds:
        facts["training time"] = f"{history.seconds / 60:.1f} min in steps"
        facts["speed"] = f"{history.samples / history.seconds:.0f} samples/s"
    return "".join(f"<dt>{k}</dt><dd>{html.escape(str(v))}</dd>" for k, v in facts.items())


def _table(stage: str, results: list[Result]) -> str:
    rows = []
    for result in results:
        size = f"{len(result.task.queries)} &rarr; {len(result.task.candidates)}"
        for metric, value in result.values.items():
            base = result.chance[metric]
            cells = f"<td class=n>{100 * value:.1f}</td><td class=n>{100 * base:.2f}</td><td class=n>{value / base:.1f}</td>"
            rows.append(f"<tr><td>{html.escape(result.task.name)}</td><td>{size}</td><td>{metric}</td>{cells}</tr>")
    columns = ("task", "queries &rarr; candidates", "metric", "value %", "chance %", "&times; chance")
    head = "".join(f"<th>{column}</th>" for column in columns)
    return f"<h2>{stage}</h2><div class=wide><table><tr>{head}</tr>{''.join(rows)}</table></div>"


def _curves(history: History) -> str:
    """Small multiples as inline SVG: loss, learning rate, temperature, gradient norm, then every validation metric."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name, curve in history.curves.items() if len(curve) > 1 and not name.endswith("primary")]
    if not names:
        return ""
    columns = 3
    rows = -(-len(names) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(11, 2.6 * rows), squeeze=False, layout="constrained")
    for axis, name in zip(axes.flat, names, strict=False):
        steps, values = zip(*history.curves[name], strict=True)
        axis.plot(steps, values, color="#2a78c2", linewidth=1.4, marker="o" if len(steps) < 20 else None, markersize=3)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in list(axes.flat)[len(names) :]:
        axis.remove()
    out = io.StringIO()
    figure.savefig(out, format="svg")
    pyplot.close(figure)
    drawing = out.getvalue()
    return f"<h2>curves</h2><div class=plot>{drawing[drawing.index('<svg') :]}</div>"


def _examples(result: Result) -> str:
    rows = "".join(_example(result, example) for example in result.examples)
    return f"<h2>{html.escape(result.task.name)}: examples</h2>{rows}"


def _example(result: Result, example: Example) -> str:
    right = set(result.task.relevant[example.query])
    found = "".join(
        f"<li class={'right' if index in right else 'wrong'}>{_shown(result.task.candidates[index])}</li>"
        for index in example.found
    )
    query = _shown(result.task.queries[example.query])
    return f"<div class=example><div class=query>{query}<small>rank {example.rank}</small></div><ol>{found}</ol></div>"


def _shown(item: Item) -> str:
    pictures = "".join(_thumbnail(image) for image in item.images)
    instruction = f"<em>{html.escape(item.instruction)}</em>" if item.instruction else ""
    return pictures + instruction + (f"<span>{html.escape(item.text)}</span>" if item.text else "")


def _thumbnail(source: ImageSource) -> str:
    from PIL import Image

    try:
        if isinstance(source, Image.Image):
            picture: Image.Image = source
        else:
            picture = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        small = picture.convert("RGBA")
        small.thumbnail((_THUMBNAIL, _THUMBNAIL))
        out = io.BytesIO()
        small.save(out, "PNG")
    except (OSError, ValueError, SyntaxError) as error:  # the run measured it; only its picture can't be shown
        return f"<span class=unreadable>{html.escape(f'picture not shown: {error}')}</span>"
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}">'
