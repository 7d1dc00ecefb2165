"""Space metrics equal slow loops in double precision, and say what they should of clear cases."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from zoo.errors import NonFiniteError, SampleError
from zoo.metrics.space import NAMES, space_metrics


def sides(
    queries: int, candidates: int, duplicates: bool = False
) -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
    generator = torch.Generator().manual_seed(0)
    x = normalize(torch.randn(queries + candidates, 6, generator=generator), dim=1)
    if duplicates:
        x = x[torch.arange(len(x)) // 3]
    relevant = [sorted({i % candidates, (5 * i + 2) % candidates}) for i in range(queries)]
    return x[:queries], x[queries:], relevant


def slow(queries: torch.Tensor, candidates: torch.Tensor, relevant: list[list[int]]) -> dict[str, float]:
    x, y = queries.double().tolist(), candidates.double().tolist()

    def square(a: list[float], b: list[float]) -> float:
        return sum((p - q) ** 2 for p, q in zip(a, b, strict=True))

    def spread(pairs: list[tuple[list[float], list[float]]]) -> float:
        return math.log(sum(math.exp(-2 * square(a, b)) for a, b in pairs) / len(pairs))

    pairs = [(x[i], y[j]) for i, entry in enumerate(relevant) for j in entry]
    mean = [[sum(column) / len(side) for column in zip(*side, strict=True)] for side in (x, y)]
    return {
        "modality_gap": math.sqrt(square(*mean)),
        "alignment": sum(square(a, b) for a, b in pairs) / len(pairs),
        "positive_cosine": sum(
            sum(p * q for p, q in zip(a, b, strict=True)) / math.sqrt(square(a, [0] * 6) * square(b, [0] * 6))
            for a, b in pairs
        )
        / len(pairs),
        "uniformity_queries": spread([(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j]),
        "uniformity_candidates": spread([(y[i], y[j]) for i in range(len(y)) for j in range(len(y)) if i != j]),
        "cross_uniformity": spread(
            [(x[i], y[j]) for i in range(len(x)) for j in range(len(y)) if j not in relevant[i]]
        ),
    }


@pytest.mark.parametrize("duplicates", [False, True], ids=["distinct", "duplicates"])
@pytest.mark.parametrize("block_scores", [1, 100, 1 << 24])
@pytest.mark.parametrize(("queries", "candidates"), [(23, 41), (40, 9), (2, 5)])
def test_equals_slow_loops(queries: int, candidates: int, block_scores: int, duplicates: bool) -> None:
    data = sides(queries, candidates, duplicates)
    found = space_metrics(*data, block_scores=block_scores)
    assert tuple(found) == NAMES
    separability = found.pop("separability")
    assert found == pytest.approx(slow(*data), abs=2e-6)
    assert 0 <= separability <= 1


def test_one_point_is_neither_spread_nor_separable() -> None:
    x = normalize(torch.ones(30, 6), dim=1)
    found = space_metrics(x, x[:20], [[i % 20] for i in range(30)])
    wanted = dict.fromkeys(NAMES, 0.0) | {"positive_cosine": 1.0, "separability": 0.5}
    assert found == pytest.approx(wanted, abs=1e-6)


def test_two_clouds_are_told_apart_and_one_is_not() -> None:
    generator = torch.Generator().manual_seed(1)
    x, shift = torch.randn(400, 8, generator=generator), torch.eye(8)[0]
    pairs = [[i] for i in range(200)]
    apart = space_metrics(normalize(x[:200] + 4 * shift, dim=1), normalize(x[200:] - 4 * shift, dim=1), pairs)
    mixed = space_metrics(normalize(x[:200], dim=1), normalize(x[200:], dim=1), pairs)
    assert apart["separability"] > 0.99 and apart["modality_gap"] > 1.5
    assert abs(mixed["separability"] - 0.5) < 0.1 and mixed["modality_gap"] < 0.2


def test_sides_of_unlike_size_weigh_the_same() -> None:
    """Overlapping clouds: a classifier that counts rows would always name the larger side and see no gap (0.5)."""
    x = torch.randn(2100, 8, generator=torch.Generator().manual_seed(2))
    x[:100, 0] += 1.5
    found = space_metrics(normalize(x[:100], dim=1), normalize(x[100:], dim=1), [[i] for i in range(100)])
    assert 0.65 < found["separability"] < 0.9


def test_large_sides_are_sampled_once_and_for_all_but_means_are_not() -> None:
    queries, candidates, relevant = sides(60, 90)
    whole, some = (space_metrics(queries, candidates, relevant, rows=rows) for rows in (90, 30))
    assert some == space_metrics(queries, candidates, relevant, rows=30)
    for name in ("modality_gap", "alignment", "positive_cosine"):
        assert some[name] == whole[name]
    assert some["cross_uniformity"] != whole["cross_uniformity"]
    assert some["cross_uniformity"] == pytest.approx(whole["cross_uniformity"], abs=0.2)


def test_sampled_positives_are_left_out() -> None:
    """Queries equal to their candidates: one positive pair left in would raise the mean of far pairs."""
    x = torch.eye(50)
    assert space_metrics(x, x, [[i] for i in range(50)], rows=10)["cross_uniformity"] == pytest.approx(-4)


def test_too_few_vectors() -> None:
    found = space_metrics(torch.eye(1, 3), torch.eye(1, 3), [[0]])
    assert [name for name, value in found.items() if math.isnan(value)] == list(NAMES[3:])


def test_what_can_not_be_measured() -> None:
    queries, candidates, relevant = sides(4, 5)
    with pytest.raises(SampleError, match="rows is 0"):
        space_metrics(queries, candidates, relevant, rows=0)
    queries[2, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="emoji: the vector of query 2"):
        space_metrics(queries, candidates, relevant, name="emoji")
