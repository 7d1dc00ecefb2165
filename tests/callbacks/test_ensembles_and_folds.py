"""Prompt ensembles, folds on vectors that are there already, and RSUM, through the callback."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from callbacks.pictures import colour_folder, data_of, encoder, split_file
from callbacks.towers import Pairs, Towers, task, trainer_of, vectors_of
from lightning.pytorch import Trainer
from torch.nn.functional import normalize

from zoo.callbacks.evaluation import RetrievalEvaluation
from zoo.callbacks.report import Report
from zoo.data.sources.coco import CaptionRetrieval
from zoo.data.sources.folder import ImageFolderTasks
from zoo.data.sources.zero_shot import ZeroShot
from zoo.errors import RecipeError, SampleError
from zoo.types import RetrievalTask

CAPTIONS = [[f"red cat {i}", f"a dog {i}", "the red dog", f"green {i}", f"find {i}"] for i in range(6)]


def logged(trainer: Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def grouped(one: RetrievalTask) -> RetrievalTask:
    """Candidate i is a prompt of class i % 5."""
    groups = [i % 5 for i in range(len(one.candidates))]
    return replace(one, groups=groups, relevant=[[i % 5] for i in range(len(one.queries))], metrics=("recall@1",))


def measured(folder: Path, *tasks: RetrievalTask, kind: str = "linear", devices: int = 1) -> dict[str, float]:
    settings = {"devices": devices, "strategy": "ddp_spawn"} if devices > 1 else {}
    trainer = trainer_of(folder, RetrievalEvaluation(), **settings)
    trainer.validate(Towers(kind), Pairs(list(tasks)), verbose=False)
    return logged(trainer)


def test_classes_are_ranked_by_their_mean_prompt(tmp_path: Path) -> None:
    one = grouped(task())
    module, data = Towers(), Pairs([one])
    queries, candidates = vectors_of(module, data)
    right = 0
    for i, query in enumerate(queries.double()):
        scores = []
        for k in range(5):
            units = [normalize(row.double(), dim=0) for row in candidates[k::5]]
            scores.append(float(query @ normalize(sum(units) / len(units), dim=0)))  # type: ignore[arg-type]
        right += scores.index(max(scores)) == i % 5
    evaluation = RetrievalEvaluation()
    trainer = trainer_of(tmp_path, evaluation)
    trainer.validate(module, data, verbose=False)
    assert logged(trainer)["val/text_to_image[en]/recall@1"] == pytest.approx(right / 23)
    result = evaluation.results["val"][0]
    assert len(result.task.candidates) == 5 and result.chance["recall@1"] == pytest.approx(1 / 5)
    assert all(candidate < 5 for example in result.examples for candidate, _ in example.found)


def test_two_processes_equal_one_for_ensembles_and_further_tasks(tmp_path: Path) -> None:
    one = task()
    folds = replace(one, name="folds", pools=[[i % 41, (i + 7) % 41] for i in range(23)])
    tasks = [replace(one, also=(folds, grouped(replace(one, name="classes")))), grouped(task("other", 9, 30))]
    found = measured(tmp_path, *tasks)
    assert found == measured(tmp_path, *tasks, devices=2) and len(found) == 4 + 4 + 1 + 1 + 1
    chance = measured(tmp_path, *tasks, kind="constant")
    assert chance["val/folds/recall@1"] == 0.5 and chance["val/classes/recall@1"] == pytest.approx(0.2)


def test_further_tasks_equal_tasks_of_their_own(tmp_path: Path) -> None:
    one = task()
    folds = replace(one, name="folds", pools=[[i % 41, (i + 7) % 41] for i in range(23)])
    found = measured(tmp_path, replace(one, also=(folds,)))
    alone = measured(tmp_path, folds)
    assert {k: v for k, v in found.items() if "folds" in k} == {k: v for k, v in alone.items() if "folds" in k}
    other = replace(task(), name="other")
    with pytest.raises(SampleError, match="task 'other' is in `also` of 'text_to_image"):
        measured(tmp_path, replace(one, also=(other,)))


def test_a_captioned_set_is_reported_as_coco_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each value by hand: ranks over all pictures, ranks in folds of three, and their sums."""
    source = CaptionRetrieval(str(split_file(tmp_path, CAPTIONS)), str(tmp_path), fold=3)
    evaluation, report = RetrievalEvaluation(ties="wrong"), Report(tmp_path / "run")
    trainer = trainer_of(tmp_path, evaluation, report)
    trainer.validate(encoder(tmp_path), data_of(source), verbose=False)
    found = logged(trainer)
    assert set(found) == {
        *(
            f"val/{d}[{n}]/recall@{k}"
            for d in ("image_to_text", "text_to_image")
            for n in ("coco", "coco-3")
            for k in (1, 5, 10)
        ),
        "val/coco/rsum",
        "val/coco-3/rsum",
        "val/primary",
    }
    for name in ("coco", "coco-3"):
        recalls = [v for key, v in found.items() if f"[{name}]" in key]
        assert found[f"val/{name}/rsum"] == pytest.approx(100 * sum(recalls), rel=1e-5) and len(recalls) == 6
    sizes = {r.task.name: r.task.pools and {len(pool) for pool in r.task.pools} for r in evaluation.results["val"]}
    assert sizes["image_to_text[coco-3]"] == {15} and sizes["text_to_image[coco-3]"] == {3}
    printed = capsys.readouterr().out
    assert "RSUM (recall @1, @5, @10)" in printed and "coco-3" in printed and "600" in printed
    assert "<h2>RSUM (recall @1, @5, @10)</h2>" in (tmp_path / "run/report-validate.html").read_text("utf-8")


def test_rsum_needs_its_recalls(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"part of the RSUM 'x' but does not measure recall@5"):
        measured(tmp_path, replace(task(), rsum="x"))


def test_zero_shot_classification_of_a_folder(tmp_path: Path) -> None:
    folder = ImageFolderTasks(str(colour_folder(tmp_path / "colours")), captions="folder", which=("image_to_text",))
    source = ZeroShot(folder, ["a {} cat", "{}"], name="two")
    trainer = trainer_of(tmp_path, RetrievalEvaluation())
    trainer.validate(encoder(tmp_path), data_of(source), verbose=False)
    assert set(logged(trainer)) == {
        "val/image_to_text[colours][two]/recall@1",
        "val/image_to_text[colours][two]/recall@5",
        "val/primary",
    }
    assert logged(trainer)["val/image_to_text[colours][two]/recall@5"] == 1  # there are three classes
