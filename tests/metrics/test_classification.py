"""Class vectors of prompt ensembles, and the task that is ranked."""

from __future__ import annotations

import math

import pytest
import torch

from zoo.errors import SampleError
from zoo.metrics.classification import by_class, class_vectors
from zoo.metrics.retrieval import chance, retrieval_metrics, summary
from zoo.types import Item, RetrievalTask


def test_the_mean_is_of_normalised_vectors_and_normalised() -> None:
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randn(11, 5, generator=generator) * torch.rand(11, 1, generator=generator)
    groups = [2, 0, 1, 0, 2, 2, 0, 1, 0, 3, 2]
    found = class_vectors(prompts, groups)
    for k in range(4):
        units = []
        for row, group in zip(prompts.double().tolist(), groups, strict=True):
            if group == k:
                norm = math.sqrt(sum(x * x for x in row))
                units.append([x / norm for x in row])
        mean = [sum(column) / len(units) for column in zip(*units, strict=True)]
        norm = math.sqrt(sum(x * x for x in mean))
        assert found[k].tolist() == pytest.approx([x / norm for x in mean], abs=1e-6)
    plain = torch.stack(
        [torch.nn.functional.normalize(prompts[torch.tensor(groups) == k].mean(0), dim=0) for k in range(4)]
    )
    assert not torch.allclose(found[:3], plain[:3], atol=1e-3)  # norms of prompts must not weigh
    assert torch.allclose(found[3], plain[3], atol=1e-6)


@pytest.mark.parametrize("width", [3, 64, 257])
def test_constant_embeddings_score_chance_for_classes_of_any_size(width: int) -> None:
    """Rounded sums of 2, 3 and 5 equal vectors must still be one vector."""
    groups = [0] * 2 + [1] * 3 + [2] * 5 + [3]
    item = Item(text="x")
    task = RetrievalTask(
        "t", [item] * 6, [item] * 11, [[i % 4] for i in range(6)], metrics=("recall@1",), groups=groups
    )
    for seed in range(5):
        vector = torch.nn.functional.normalize(
            torch.randn(1, width, generator=torch.Generator().manual_seed(seed)), dim=1
        )
        classes = class_vectors(vector.expand(11, -1), groups)
        found = summary(retrieval_metrics(vector.expand(6, -1), classes, task.relevant, metrics=task.metrics))
        assert found == chance(task) == {"recall@1": 0.25}


def test_the_ranked_task_has_a_candidate_per_class() -> None:
    texts = [Item(text=text) for text in ("a cat", "a dog", "one cat", "one dog")]
    task = RetrievalTask("pets", [Item(text="q")], texts, [[1]], groups=[0, 1, 0, 1])
    assert [item.text for item in by_class(task).candidates] == ["a cat", "a dog"]
    assert by_class(task).groups is None and by_class(by_class(task)) == by_class(task)


@pytest.mark.parametrize(
    ("groups", "message"), [([0, 1], "3 candidates, but 2 groups"), ([0, 2, 2], "without gaps"), ([1, 1, 1], "without")]
)
def test_groups_that_do_not_fit(groups: list[int], message: str) -> None:
    with pytest.raises(SampleError, match=f"pets: .*{message}"):
        class_vectors(torch.eye(3), groups, "pets")


def test_opposite_prompts_cancel_out() -> None:
    assert class_vectors(torch.tensor([[1.0, 0], [-1, 0], [0, 1]]), [0, 0, 1]).tolist() == [[0, 0], [0, 1]]
