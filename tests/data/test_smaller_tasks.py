"""Where a trainer limits the batches of a validation or test, tasks are smaller, and still whole."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lightning
import pytest
import toy

from zoo.callbacks.collected import CollectedEmbeddings
from zoo.callbacks.evaluation import RetrievalEvaluation
from zoo.data.datamodule import EmbeddingData
from zoo.data.smaller_tasks import smaller
from zoo.data.source import Source, TaskSource
from zoo.errors import ZooWarning
from zoo.objectives.infonce import InfoNCE
from zoo.types import Item, RetrievalTask, Sample

QUERIES = [Item(text=f"q{n}") for n in range(40)]
CANDIDATES = [Item(text=f"c{n}") for n in range(120)]


def task(**parts: Any) -> RetrievalTask:
    """Query n asks for the candidates 3n, 3n + 1 and 3n + 2."""
    relevant = parts.pop("relevant", [[3 * n, 3 * n + 1, 3 * n + 2] for n in range(40)])
    return RetrievalTask("t", QUERIES, CANDIDATES, relevant, **parts)


def texts(items: Any) -> list[int]:
    return [int(item.text[1:]) for item in items]


def test_plain_tasks_keep_right_and_wrong_candidates() -> None:
    found = smaller(task(), 40)
    queries, candidates = texts(found.queries), texts(found.candidates)
    assert len(queries) == 10 and len(candidates) == 30
    assert queries == [0, 4, 8, 12, 16, 20, 24, 28, 32, 36], "spread over the whole task"
    for query, relevant in zip(queries, found.relevant, strict=True):
        right = {3 * query, 3 * query + 1, 3 * query + 2}
        assert relevant and {candidates[i] for i in relevant} == right & set(candidates)
    assert len({candidate // 30 for candidate in candidates}) == 4, "others come from everywhere"
    whole = task()
    assert smaller(whole, 160) is whole


def test_the_smallest_one_has_a_query_and_its_candidate() -> None:
    found = smaller(task(), 0)
    assert len(found.queries) == 1 and texts(found.candidates) == [0] and found.relevant == [[0]]


def test_pools_are_filled_one_query_after_the_other() -> None:
    pools = [[3 * n, *(c for c in range(120) if c % 40 == n)] for n in range(40)]
    found = smaller(task(pools=pools, relevant=[[3 * n] for n in range(40)]), 40)
    candidates = texts(found.candidates)
    assert len(candidates) == 30
    for query, pool, relevant in zip(texts(found.queries), found.pools, found.relevant, strict=True):
        assert {candidates[i] for i in pool} == set(pools[query]) & set(candidates)
        assert set(relevant) < set(pool), "each has something to be taken for"


def test_classes_keep_all_their_prompts() -> None:
    groups = [n // 4 for n in range(120)]  # 30 classes of 4 prompts
    found = smaller(task(groups=groups, relevant=[[n % 30] for n in range(40)]), 40)
    candidates = texts(found.candidates)
    kept = sorted({candidate // 4 for candidate in candidates})
    assert candidates == [4 * one + n for one in kept for n in range(4)]
    assert [kept[group] for group in found.groups] == [candidate // 4 for candidate in candidates]
    assert [[kept[i] for i in one] for one in found.relevant] == [[query % 30] for query in texts(found.queries)]


def test_further_tasks_on_the_same_vectors_stay_on_the_same_items() -> None:
    further = task(relevant=[[119 - n] for n in range(40)])
    found = smaller(task(also=(further,)), 40)
    (other,) = found.also
    assert other.queries is found.queries and other.candidates is found.candidates
    candidates = texts(found.candidates)
    assert [[candidates[i] for i in one] for one in other.relevant] == [[119 - q] for q in texts(found.queries)]


# ---- through the trainer -----------------------------------------------------------------------------------------------


class Words(Source):
    name = "words"

    def __len__(self) -> int:
        return 64

    def draw(self, index: int, rng: random.Random) -> Sample:
        return Sample(str(index), {"query": Item(text=f"cat {index}"), "target": Item(text=f"dog {index}")})


class Tasks(TaskSource):
    def tasks(self) -> list[RetrievalTask]:
        return [task()]


class Counted(CollectedEmbeddings):
    """How many items reach a measure that looks at whole embeddings."""

    def measure_task(self, trainer: Any, module: Any, task: RetrievalTask, queries: Any, candidates: Any) -> None:
        self.seen = len(queries.vector), len(candidates.vector)


def fitted(folder: Path, *callbacks: lightning.Callback, **limits: Any) -> tuple[lightning.Trainer, EmbeddingData]:
    trainer = lightning.Trainer(
        default_root_dir=folder,
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        **limits,
    )
    data = EmbeddingData([Words()], [Tasks()], [Tasks()], batch_size=16, eval_batch_size=8)
    trainer.fit(toy.build(folder, objective=InfoNCE()), datamodule=data)
    return trainer, data


@pytest.mark.parametrize(
    ("limits", "items"),
    [({"overfit_batches": 1}, 8), ({"limit_val_batches": 2}, 16), ({"limit_val_batches": 0.25}, 40)],
)
def test_limits_of_validation(limits: dict[str, Any], items: int, tmp_path: Path) -> None:
    evaluation = RetrievalEvaluation()
    with pytest.warns(ZooWarning, match=f"{next(iter(limits))}: task 't' is measured on {items // 4} of 40 queries"):
        _, data = fitted(tmp_path, evaluation, **limits)
    (result,) = evaluation.results["val"]
    assert len(result.task.queries) + len(result.task.candidates) == items
    assert result.chance["recall@10"] > 10 / 120
    assert data.tasks("val") == [result.task]
    data.trainer = None
    assert len(data.tasks("val")[0].queries) == 40, "the limit was that of the trainer"


def test_limits_of_the_test(tmp_path: Path) -> None:
    evaluation, counted = RetrievalEvaluation(), Counted()
    trainer, data = fitted(tmp_path, evaluation, counted, limit_val_batches=0, limit_test_batches=3)
    assert "val" not in evaluation.results
    with pytest.warns(ZooWarning, match="limit_test_batches: task 't'"):
        trainer.test(trainer.lightning_module, datamodule=data, verbose=False)
    assert counted.seen == (6, 18) and len(evaluation.results["test"][0].task.queries) == 6


def test_a_dry_run_of_the_test_measures_nothing(tmp_path: Path) -> None:
    counted = Counted()
    trainer, data = fitted(tmp_path, RetrievalEvaluation(), counted, fast_dev_run=True)
    trainer.test(trainer.lightning_module, datamodule=data, verbose=False)
    assert not hasattr(counted, "seen")
