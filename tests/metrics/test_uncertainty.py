"""Uncertainty bins, calibration, the bootstrap interval: by hand, in expectation over ties, and on known distributions."""

from __future__ import annotations

import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import NonFiniteError, SampleError
from zoo.metrics.calibration import Calibration
from zoo.metrics.correlation import spearman, spearman_interval
from zoo.metrics.probabilistic import match_calibration, similarity_ranks, total_variance, uncertainty_report
from zoo.metrics.retrieval import measure, retrieval_metrics, summary
from zoo.metrics.uncertainty import by_uncertainty
from zoo.similarity.cosine import Cosine
from zoo.similarity.distances import CSD
from zoo.similarity.match_probability import MatchProbability
from zoo.types import Embedding


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gaussians(count: int, seed: int = 0) -> Embedding:
    return Embedding(F.normalize(draw(count, 8, seed=seed), dim=1), draw(count, 8, seed=seed + 1) - 3)


# ---- bins ------------------------------------------------------------------------------------------------------------


def test_bins_by_hand() -> None:
    found = by_uncertainty(torch.tensor([0.3, 0.1, 0.2, 0.9, 0.5]), torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]), 2)
    torch.testing.assert_close(found.uncertainty, torch.tensor([0.2, 0.7], dtype=torch.float64))
    torch.testing.assert_close(found.value, torch.tensor([2 / 3, 0.0], dtype=torch.float64))
    torch.testing.assert_close(found.error, torch.tensor([1 / 3, 0.0], dtype=torch.float64))
    assert found.count.tolist() == [3, 2]
    assert [found.trend(), found.linear_trend()] == pytest.approx([-1, -1])


def test_equal_uncertainty_counts_in_expectation() -> None:
    dice = random.Random(0)
    uncertainty = [dice.choice([1, 1, 2, 3]) for _ in range(11)]
    values = [float(dice.random() < 0.5) for _ in range(11)]
    total = torch.zeros(3, dtype=torch.float64)
    for _ in range(4000):
        order = sorted(range(11), key=lambda i: (uncertainty[i], dice.random()))
        total += torch.tensor([sum(values[i] for i in part) / len(part) for part in (order[:4], order[4:8], order[8:])])
    found = by_uncertainty(torch.tensor(uncertainty), torch.tensor(values), 3)
    torch.testing.assert_close(found.value, total / 4000, rtol=0, atol=0.02)
    constant = by_uncertainty(torch.ones(11), torch.tensor(values), 3)
    assert len(set(constant.value.tolist())) == 1 and constant.trend() == 0


def test_bins_that_can_not_be() -> None:
    with pytest.raises(SampleError, match="one value per query"):
        by_uncertainty(torch.ones(3), torch.ones(2))
    with pytest.raises(NonFiniteError, match="query 1"):
        by_uncertainty(torch.tensor([1.0, math.nan]), torch.ones(2))
    alone = by_uncertainty(torch.arange(3.0), torch.ones(3), 10)
    assert len(alone.value) == 3 and bool(alone.error.isnan().all())


def test_the_standard_error_is_that_of_repeated_samples() -> None:
    """How far means of five queries scatter: the mean of the squared errors says it without bias."""
    values = torch.rand(4000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = [float(by_uncertainty(torch.arange(5.0), some, 1).error[0]) for some in values]
    assert sum(e**2 for e in errors) / 4000 == pytest.approx(float(values.mean(1).var()), rel=0.05)


# ---- calibration -----------------------------------------------------------------------------------------------------


def test_calibration_by_hand_and_in_blocks() -> None:
    given, right = torch.tensor([0.1, 0.15, 0.9, 1.0]), torch.tensor([0, 1, 1, 1])
    whole = Calibration(4)
    whole.add(given, right)
    expected = (2 * abs(0.5 - 0.125) + 2 * abs(1 - 0.95)) / 4
    assert whole.result().error() == pytest.approx(expected, abs=1e-7)
    blocks = Calibration(4)
    for part in (slice(0, 1), slice(1, 4)):
        blocks.add(given[part], right[part])
    assert blocks.result().error() == pytest.approx(expected, abs=1e-7)
    assert whole.result().count.tolist() == [2, 2]


def test_honest_probabilities_have_no_error_and_bold_ones_have() -> None:
    probability = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    right = torch.rand(200_000, generator=torch.Generator().manual_seed(1)) < probability
    for factor, expected in ((1.0, 0.0), (0.5, 0.25)):  # halved: the error is the mean of p / 2
        found = Calibration()
        found.add(probability * factor, right)
        assert found.result().error() == pytest.approx(expected, abs=0.01)


def test_calibration_refuses() -> None:
    with pytest.raises(SampleError, match=r"entry 1 is -2.* no probability"):
        Calibration().add(torch.tensor([0.5, -2.0]), torch.tensor([1, 0]))
    with pytest.raises(SampleError, match="no answers"):
        Calibration().result()
    with pytest.raises(SampleError, match="2 probabilities, but 1"):
        Calibration().add(torch.ones(2), torch.ones(1))


# ---- the interval ----------------------------------------------------------------------------------------------------


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Pairs of correlated normal numbers, whose rho is 6 / pi arcsin(r / 2)."""
    truth, covered, trials = 6 / math.pi * math.asin(0.5 / 2), 0, 60
    for trial in range(trials):
        x, noise = draw(2, 60, seed=trial)
        found = spearman_interval(x, 0.5 * x + 0.75**0.5 * noise, 0.9, 100, seed=trial)
        assert found.low <= found.value <= found.high
        covered += found.low <= truth <= found.high
    assert 45 <= covered <= 59  # 54 with a standard deviation of 2.3


def test_interval_is_reproducible_and_checked() -> None:
    x, y = draw(2, 40)
    before = torch.random.get_rng_state()
    assert spearman_interval(x, y) == spearman_interval(x, y) != spearman_interval(x, y, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert spearman_interval(x, y).value == spearman(x, y)
    with pytest.raises(SampleError, match="level"):
        spearman_interval(x, y, level=95)


# ---- of distributions ------------------------------------------------------------------------------------------------


def test_ranks_by_cosine_are_those_of_vectors_and_ranks_by_distance_count_variances() -> None:
    queries, candidates = gaussians(30), gaussians(40, 5)
    relevant = [[i % 40, (3 * i) % 40] for i in range(30)]
    metrics = ("recall@5", "map@r", "mean_rank")
    by_cosine = measure(similarity_ranks(Cosine(), queries, candidates, relevant), metrics)
    expected = retrieval_metrics(queries.vector, candidates.vector, relevant, metrics=metrics)
    assert summary(by_cosine) == pytest.approx(summary(expected))
    found = measure(similarity_ranks(CSD(), queries, candidates, relevant), ("mean_rank",))["mean_rank"]
    for i in range(30):
        squares = (queries.vector[i] - candidates.vector).square().sum(1) + candidates.log_var.exp().sum(1)
        place = {int(candidate): place for place, candidate in enumerate(squares.argsort(), 1)}
        assert found[i] == min(place[j] for j in relevant[i])


def test_uncertainty_that_knows_and_uncertainty_that_does_not() -> None:
    """Queries next to their first candidate; the wider ones are placed further away, and have more right answers."""
    candidates = gaussians(400, 3)
    spread = torch.linspace(0, 1, 200)[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    vectors = F.normalize(candidates.vector[:200] + spread[:, None] * draw(200, 8, seed=9), dim=1)
    relevant = [[i, *(range(200, 200 + int(5 * s)))] for i, s in enumerate(spread)]
    knows = Embedding(vectors, spread[:, None].expand(-1, 8) * 4 - 4)
    report = uncertainty_report(Cosine(), knows, candidates, relevant, ("recall@1",), 5)
    assert report.values["recall@1"].trend() < -0.8
    assert report.ambiguity.low > 0.9
    blind = Embedding(vectors, draw(200, 8, seed=11))
    report = uncertainty_report(Cosine(), blind, candidates, relevant, ("recall@1",), 5)
    assert report.ambiguity.low < 0 < report.ambiguity.high


def test_total_variance_is_the_trace() -> None:
    torch.testing.assert_close(
        total_variance(Embedding(torch.ones(1, 3), torch.tensor([[0.0, 1.0, -1.0]]))),
        torch.tensor([1 + math.e + 1 / math.e]),
    )


def test_calibration_of_match_probability() -> None:
    queries, candidates = gaussians(20), gaussians(25, 5)
    relevant = [[i] for i in range(20)]
    similarity = MatchProbability(2.0, 1.0)
    found = match_calibration(similarity, queries, candidates, relevant)
    expected = Calibration()
    expected.add(similarity(queries, candidates).exp(), torch.eye(20, 25))
    assert found.error() == pytest.approx(expected.result().error())
    assert int(found.count.sum()) == 500
