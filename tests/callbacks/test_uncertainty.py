"""What is said about variances follows from them: variances made to tell the truth, to lie, or to tell nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from callbacks.towers import Pairs, Towers, batch_of, task, trainer_of
from PIL import Image

from zoo.callbacks.evaluation import RetrievalEvaluation
from zoo.callbacks.report import Report
from zoo.callbacks.uncertainty import UncertaintyEvaluation
from zoo.data.damage import damaged_pairs
from zoo.data.images import open_image
from zoo.errors import RecipeError
from zoo.objectives.pcmepp import PCMEPP
from zoo.types import Embedding, Item, Sample

# query i has 1 + i % 5 right answers
AMBIGUOUS = replace(task(), relevant=[[(i + 7 * n) % 41 for n in range(1 + i % 5)] for i in range(23)])


def rows(samples: list[Sample]) -> Any:
    """A processor that looks at how much of an item there is: words, or dark columns of the picture."""
    values = torch.zeros(len(samples), 12)
    for row, sample in enumerate(samples):
        (item,) = sample.views.values()
        assert isinstance(item, Item)
        values[row, 0] = len(item.text.split()) if item.text else _columns(item)
        values[row, 1] = 1.0
    return batch_of(values, [sample.id for sample in samples], "query")


def _columns(item: Item) -> float:
    picture = np.asarray(open_image(item.images[0], "p").convert("L"))
    return float((picture < 250).any(0).sum())


class Sure(Towers):
    """The variance of an item is a function of its vector's inputs: `told` of the first value."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.objective = PCMEPP()
        self.processor = rows

    def encode(self, view: str, x: torch.Tensor) -> Embedding:
        vector = super().encode(view, x).vector
        if self.kind == "none":
            return Embedding(vector)
        level = x[:, :1] * (-1 if self.kind == "honest" else 0)
        return Embedding(vector, log_var=level.expand_as(vector) * 0.1 - 3)


def run(kind: str, folder: Path, *more: Any) -> tuple[Any, UncertaintyEvaluation]:
    callback = UncertaintyEvaluation(bins=4, shown=3)
    trainer = trainer_of(folder, RetrievalEvaluation(), callback, *more)
    trainer.test(Sure(kind), Pairs([AMBIGUOUS]), verbose=False)
    return trainer, callback


def test_less_of_an_item_is_less_certain_or_not(tmp_path: Path) -> None:
    for kind, share in (("honest", 1.0), ("blind", 0.0)):
        trainer, callback = run(kind, tmp_path / kind)
        for what in ("pictures", "texts"):
            assert trainer.callback_metrics[f"test/uncertainty/damaged_{what}"].item() == share
        cells = [row for row in callback.measures["test"].rows if row[0].endswith("half taken away")]
        assert [row[2] for row in cells] == [f"{100 * share:.1f} %"] * 2


def test_a_variance_that_tells_nothing_has_no_rho(tmp_path: Path) -> None:
    trainer, callback = run("blind", tmp_path)
    name = f"test/{AMBIGUOUS.name}/uncertainty"
    assert trainer.callback_metrics[f"{name}/ambiguity"].item() == 0
    assert trainer.callback_metrics[f"{name}/trend"].item() == 0
    assert 0 <= trainer.callback_metrics[f"{name}/calibration_error"].item() <= 1
    assert callback.measures["test"].rows[0][2] == "+0.000"


def test_the_report_draws_it(tmp_path: Path) -> None:
    run("honest", tmp_path, Report(tmp_path))
    page = (tmp_path / "report-test.html").read_text("utf-8")
    assert "Uncertainty (test)" in page
    assert "the least certain queries" in page and "by uncertainty" in page
    assert page.count("<rect") > 4 + 10 and page.count("<img") >= 1


def test_it_needs_variances(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="this entry gives no variances"):
        run("none", tmp_path)


def test_what_is_damaged() -> None:
    dark = Image.new("RGB", (9, 4), "black")
    items = [Item("one two three"), Item("one"), Item(images=(dark,)), Item("both", (dark,))]
    ((whole, less),) = damaged_pairs(items, "texts", 10)
    assert whole == items[0] and less.text == "one two"
    ((whole, less),) = damaged_pairs(items, "pictures", 10)
    assert whole.images[0] is dark and dark.getpixel((8, 3)) == (0, 0, 0)
    halves = [less.images[0].getpixel((x, 2)) for x in (3, 4, 8)]  # type: ignore[union-attr]
    assert halves == [(0, 0, 0), (255, 255, 255), (255, 255, 255)]
    assert [w.text for w, _ in damaged_pairs([Item(f"{i} x") for i in range(10)], "texts", 3)] == ["0 x", "3 x", "6 x"]
