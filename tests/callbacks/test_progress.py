"""The bar counts steps of the run, not of the epoch, and knows where the run will end."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from callbacks.towers import Pairs, Towers, task, trainer_of
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Timer

from zoo.callbacks.progress import FitProgress, ProgressLines, total_steps


class Bars(Callback):
    """What the bar shows after every batch."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int | None, str]] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        bar = trainer.progress_bar_callback.train_progress_bar
        self.seen.append((bar.n, bar.total, bar.postfix))


@pytest.mark.parametrize(
    ("limits", "end"),
    [({"max_epochs": 2}, 20), ({"max_steps": 13, "max_epochs": -1}, 13), ({"max_epochs": 3, "max_steps": 12}, 12)],
)
def test_steps_of_the_whole_run(limits: dict[str, Any], end: int, tmp_path: Path) -> None:
    bars = Bars()
    trainer_of(tmp_path, FitProgress(), bars, enable_progress_bar=True, **limits).fit(Towers(), Pairs([task()]))
    assert [n for n, _, _ in bars.seen] == list(range(1, end + 1))
    assert {total for _, total, _ in bars.seen} == {end}
    assert all(postfix.startswith("loss=") for _, _, postfix in bars.seen)


def test_a_time_limit_is_turned_into_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Timer, "time_elapsed", lambda self, stage="train": 3.0)
    trainer = trainer_of(tmp_path, max_epochs=-1, max_time={"seconds": 12})
    assert total_steps(trainer) is None  # nothing is known before the first step
    monkeypatch.setattr(type(trainer), "global_step", property(lambda self: 50))
    assert total_steps(trainer) == 200


def test_refresh_rate(tmp_path: Path) -> None:
    bars = Bars()
    trainer_of(tmp_path, FitProgress(refresh_rate=4), bars, enable_progress_bar=True, max_epochs=1).fit(
        Towers(), Pairs([task()])
    )
    assert [n for n, _, _ in bars.seen] == [0, 0, 0, 4, 4, 4, 4, 8, 8, 8]


def test_lines_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer_of(tmp_path, ProgressLines(seconds=0.0), max_epochs=1).fit(Towers(), Pairs([task()]))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("training: ")]
    assert len(lines) == 10
    for step, line in enumerate(lines, 1):
        left = r", about \d+ s left" if step < 10 else ""
        assert re.fullmatch(rf"training: step {step} of 10, loss [\d.e-]+, [\d.e+]+ steps/s{left}", line), line
    trainer_of(tmp_path, ProgressLines(), max_epochs=1).fit(Towers(), Pairs([task()]))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("training: ")]
    assert len(lines) == 1 and lines[0].startswith("training: step 10 of 10, ")
