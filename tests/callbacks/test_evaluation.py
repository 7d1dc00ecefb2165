"""What the callback logs is what the metrics give on the joined vectors, on one process and on two."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.towers import METRICS, Pairs, Towers, batch_of, task, trainer_of, vectors_of
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from zoo.callbacks.evaluation import RetrievalEvaluation
from zoo.errors import NonFiniteError, RecipeError, SampleError
from zoo.metrics.retrieval import chance, retrieval_metrics, summary
from zoo.types import Embedding

TASKS = [task(), task("pooled", 30, 19, pools=True)]


def logged(trainer: Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def expected(module: Towers, data: Pairs, stage: str) -> dict[str, float]:
    values = {}
    for number, one in enumerate(data.tasks(stage)):
        found = retrieval_metrics(*vectors_of(module, data, number), one.relevant, one.pools, one.metrics)
        values |= {f"{stage}/{one.name}/{metric}": value for metric, value in summary(found).items()}
    firsts = [values[f"{stage}/{one.name}/recall@10"] for one in data.tasks(stage)]
    return values | {f"{stage}/primary": sum(firsts) / len(firsts)}


@pytest.mark.parametrize("stage", ["val", "test"])
def test_logs_every_metric_of_every_task(stage: str, tmp_path: Path) -> None:
    module, data = Towers(), Pairs(TASKS)
    evaluation = RetrievalEvaluation()
    trainer = trainer_of(tmp_path, evaluation)
    (trainer.validate if stage == "val" else trainer.test)(module, data, verbose=False)
    assert logged(trainer) == pytest.approx(expected(module, data, stage), abs=1e-6)
    result = evaluation.results[stage][1]
    assert result.task.name == "pooled" and result.primary == "recall@10"
    assert result.chance == chance(TASKS[1])
    assert all(0 < result.errors[metric] < 0.2 for metric in ("recall@1", "mrr"))


def test_constant_embeddings_score_chance_however_they_come(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, RetrievalEvaluation())
    trainer.validate(Towers("constant"), Pairs(TASKS), verbose=False)
    for one in TASKS:
        for metric, value in chance(one).items():
            assert logged(trainer)[f"val/{one.name}/{metric}"] == pytest.approx(value, rel=1e-6)


def test_ties_can_count_as_wrong(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, RetrievalEvaluation(ties="wrong"))
    trainer.validate(Towers("constant"), Pairs(TASKS), verbose=False)
    assert logged(trainer)["val/pooled/recall@1"] == 0


def test_a_checkpoint_can_follow_the_primary_metric(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, "best", "val/primary", mode="max")
    trainer = trainer_of(tmp_path, RetrievalEvaluation(), best, max_epochs=3, enable_checkpointing=True)
    trainer.fit(Towers(), Pairs(TASKS))
    assert Path(best.best_model_path).is_file()
    assert float(best.best_model_score) > sum(chance(one)["recall@10"] for one in TASKS) / 2


def test_the_sanity_check_is_passed_over(tmp_path: Path) -> None:
    evaluation = RetrievalEvaluation()
    seen: list[Any] = []

    class Watch(Callback):
        def on_sanity_check_end(self, *_: Any) -> None:
            seen.append((dict(evaluation.results), dict(evaluation._parts)))

    trainer = trainer_of(tmp_path, evaluation, Watch(), max_epochs=1, num_sanity_val_steps=1)
    trainer.fit(Towers(), Pairs(TASKS))
    assert seen == [({}, {})]
    assert evaluation.results["val"][0].step == 10


def test_fast_dev_run_measures_nothing(tmp_path: Path) -> None:
    evaluation = RetrievalEvaluation()
    trainer_of(tmp_path, evaluation, fast_dev_run=True).fit(Towers(), Pairs(TASKS))
    assert evaluation.results == {}


def test_items_that_come_twice_count_once(tmp_path: Path) -> None:
    module, data = Towers(), Pairs(TASKS, edit=lambda batches: [*batches, batches[0], batches[-1]])
    trainer = trainer_of(tmp_path, RetrievalEvaluation())
    trainer.validate(module, data, verbose=False)
    assert logged(trainer) == pytest.approx(expected(module, data, "val"), abs=1e-6)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda b: b[1:],
            r"task 'text_to_image\[en\]': 7 of 23 queries were not embedded, first q:\d+; .*limit_val_batches",
        ),
        (lambda b: b[:-2], r"of 41 candidates were not embedded"),
        (lambda b: b[:4], r"41 of 41 candidates were not embedded, first c:0"),
        (
            lambda b: [*b, batch_of(torch.zeros(1, 12), ["q:23"], "query")],
            r"q:23 was embedded, but there are 23 queries",
        ),
        (lambda b: [batch_of(torch.zeros(1, 12), ["cat"], "query")], r"evaluation id 'cat' is neither 'q:<index>' nor"),
        (lambda b: [batch_of(torch.zeros(1, 12), ["q:-1"], "query")], r"evaluation id 'q:-1' is neither"),
        (
            lambda b: [batch_of(torch.zeros(2, 12), ["q:1"], "query")],
            r"a batch of 1 items \(q:1...\) gave 2 embeddings",
        ),
    ],
    ids=["queries", "candidates", "no candidates", "too many", "no id", "negative", "rows"],
)
def test_items_that_do_not_fit_the_task(edit: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=message):
        trainer_of(tmp_path, RetrievalEvaluation()).validate(Towers(), Pairs(TASKS, edit), verbose=False)


def test_a_batch_of_two_views(tmp_path: Path) -> None:
    one = batch_of(torch.zeros(1, 12), ["q:1"], "query")
    with pytest.raises(SampleError, match=r"one view, this one \(q:1...\) has \['query', 'target'\]"):
        RetrievalEvaluation()._keep(dict.fromkeys(("query", "target"), Embedding(torch.ones(1, 2))), one, 0)


def test_vectors_that_are_not_finite(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"task 'text_to_image\[en\]': the vector of query 0 \(and of 22 more\)"):
        trainer_of(tmp_path, RetrievalEvaluation()).validate(Towers("nan"), Pairs(TASKS), verbose=False)


def test_no_datamodule(tmp_path: Path) -> None:
    data = Pairs(TASKS)
    trainer = trainer_of(tmp_path, RetrievalEvaluation())
    data.trainer = trainer
    with pytest.raises(RecipeError, match="needs a datamodule with tasks"):
        trainer.validate(Towers(), data.val_dataloader(), verbose=False)


def test_examples_go_from_the_best_ranked_query_to_the_worst(tmp_path: Path) -> None:
    module, data = Towers(), Pairs(TASKS)
    evaluation = RetrievalEvaluation(examples=4)
    trainer_of(tmp_path, evaluation).validate(module, data, verbose=False)
    for number, result in enumerate(evaluation.results["val"]):
        queries, candidates = vectors_of(module, data, number)
        ranks = [example.rank for example in result.examples]
        assert len(ranks) == len({e.query for e in result.examples}) == 4 and ranks == sorted(ranks)
        found = retrieval_metrics(queries, candidates, result.task.relevant, result.task.pools, ("mean_rank",))[
            "mean_rank"
        ]
        assert (ranks[0], ranks[-1]) == (found.min(), found.max())
        for example in result.examples:
            scores = candidates @ queries[example.query]
            pool = range(len(candidates)) if result.task.pools is None else result.task.pools[example.query]
            best = sorted(set(pool), key=lambda i: -scores[i])[:5]
            assert [i for i, _ in example.found] == best
            assert example.right == result.task.relevant[example.query][0]


def test_the_table_tells_value_and_chance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = trainer_of(tmp_path, RetrievalEvaluation())
    trainer.validate(Towers("constant"), Pairs(TASKS), verbose=False)
    printed = capsys.readouterr().out
    rows = [line.strip("│ ").split() for line in printed.splitlines() if "recall@10" in line]
    assert "text_to_image[en]" in printed and "41 candidates" in printed and "9 candidates each" in printed
    assert len(rows) == 2
    assert "24.4" in rows[0] and "24.39" in rows[0] and rows[0][-2:] == ["1.0", "x"]  # 10 / 41
    assert all(metric in printed for metric in METRICS)


def on_two_processes(folder: Path) -> dict[str, float]:
    module, data = Towers(), Pairs(TASKS)
    trainer = trainer_of(folder, RetrievalEvaluation(), devices=2, strategy="ddp_spawn")
    trainer.validate(module, data, verbose=False)
    assert trainer.world_size == 2
    return logged(trainer)


def test_two_processes_equal_one_exactly(tmp_path: Path) -> None:
    """23 and 41 items in batches of 7 do not split evenly; without gathering, items would be missing."""
    two = on_two_processes(tmp_path)
    trainer = trainer_of(tmp_path, RetrievalEvaluation())
    trainer.validate(Towers(), Pairs(TASKS), verbose=False)
    assert two == logged(trainer) and len(two) == 9
    assert not any(math.isnan(value) for value in two.values())
