"""The results of a run as JSON: the values that were measured, and nothing that is not JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from callbacks.towers import Pairs, Towers, task, trainer_of

from zoo.callbacks.evaluation import RetrievalEvaluation
from zoo.callbacks.history import History
from zoo.callbacks.results_file import ResultsFile


def read(folder: Path, stage: str) -> dict[str, object]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((folder / f"results-{stage}.json").read_text("utf-8"), parse_constant=refuse)


def test_a_fit_and_its_test(tmp_path: Path) -> None:
    tasks = [replace(task(), metrics=("recall@10", "median_rank"))]
    evaluation, history = RetrievalEvaluation(), History(every_n_steps=2)
    trainer = trainer_of(tmp_path, evaluation, history, ResultsFile(tmp_path / "run"), max_epochs=2)
    module, data = Towers(), Pairs(tasks)
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    for stage in ("val", "test"):
        found = read(tmp_path / "run", stage)
        (measured,) = evaluation.results[stage]
        (entry,) = found["tasks"]  # type: ignore[misc]
        assert found["stage"] == stage and entry["task"] == "text_to_image[en]" and entry["primary"] == "recall@10"
        assert entry["values"] == measured.values and entry["chance"] == measured.chance
        assert entry["errors"]["median_rank"] is None and entry["errors"]["recall@10"] == measured.errors["recall@10"]
        assert (entry["queries"], entry["candidates"]) == (23, 41)
        assert found["parameters"] == found["trained_parameters"] == sum(p.numel() for p in module.parameters())
    training = read(tmp_path / "run", "test")["training"]
    assert training == {"steps": 20, "samples": history.samples, "seconds": round(history.seconds, 3)}


def test_weights_that_were_not_trained_here_have_no_training(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, RetrievalEvaluation(), History(), ResultsFile(tmp_path / "run"))
    trainer.test(Towers(), Pairs([task()]), verbose=False)
    assert read(tmp_path / "run", "test")["training"] is None


def test_a_place_that_can_not_be_written_does_not_stop_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").write_text("in the way")
    trainer = trainer_of(tmp_path, RetrievalEvaluation(), ResultsFile(tmp_path / "run"))
    trainer.test(Towers(), Pairs([task()]), verbose=False)
    assert "the results can't be written" in capsys.readouterr().out
