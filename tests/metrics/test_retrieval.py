"""Closed forms against every order of the ties, against analytic values and against torchmetrics."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from torch import Tensor
from torchmetrics.functional import retrieval as reference

from zoo.errors import UnknownNameError
from zoo.metrics.ranking import rank, rank_scores
from zoo.metrics.retrieval import chance, measure, retrieval_metrics, standard_errors, summary
from zoo.types import Item, RetrievalTask

METRICS = (
    *("recall@1", "recall@3", "recall@50", "precision@1", "precision@3", "mrr", "mrr@2"),
    *("ndcg", "ndcg@1", "ndcg@3", "ndcg@50", "mean_rank", "median_rank"),
)
EYE = torch.ones(1, 1)


def scored(*scores: float) -> tuple[Tensor, Tensor]:
    """One query and candidates with exactly these scores."""
    return EYE, torch.tensor(scores)[:, None]


def of_order(order: list[int], relevant: set[int], metric: str) -> float:
    """A metric of one ranking, from its textbook definition."""
    kind, _, k = metric.partition("@")
    top = order[: int(k) if k else len(order)]
    hits = [position for position, candidate in enumerate(top, 1) if candidate in relevant]
    if kind == "recall":
        return float(bool(hits))
    if kind == "precision":
        return len(hits) / int(k)
    if kind == "mrr":
        return 1 / hits[0] if hits else 0.0
    if kind == "ndcg":
        ideal = (
            range(1, min(len(top), len(relevant)) + 1)
            if len(top) == len(order)
            else range(1, min(int(k), len(relevant)) + 1)
        )
        return sum(1 / math.log2(p + 1) for p in hits) / sum(1 / math.log2(p + 1) for p in ideal)
    return float(hits[0])


def orders(scores: list[float]) -> list[list[int]]:
    """Every ranking in which no candidate stands above one that scores higher."""
    return [
        list(order)
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]


@pytest.mark.parametrize("seed", range(12))
def test_expectation_and_bounds_over_all_orders_of_the_ties(seed: int) -> None:
    draw = random.Random(seed)
    scores = [float(draw.choice([0, 1, 1, 2])) for _ in range(6)]
    relevant = set(draw.sample(range(6), draw.randint(1, 4)))
    query, candidates = scored(*scores)
    found = {
        ties: retrieval_metrics(query, candidates, [sorted(relevant)], metrics=METRICS, ties=ties)
        for ties in ("expected", "wrong", "right")
    }
    for metric in METRICS:
        values = [of_order(order, relevant, metric) for order in orders(scores)]
        least, most = (max, min) if metric.endswith("rank") else (min, max)
        assert found["expected"][metric].item() == pytest.approx(sum(values) / len(values), abs=1e-12), metric
        assert found["wrong"][metric].item() == pytest.approx(least(values), abs=1e-12), metric
        assert found["right"][metric].item() == pytest.approx(most(values), abs=1e-12), metric


def test_random_tie_breaks_converge_to_the_closed_form() -> None:
    draw = random.Random(0)
    scores = [float(draw.randint(0, 4)) for _ in range(40)]
    relevant = set(draw.sample(range(40), 7))
    sums = dict.fromkeys(METRICS, 0.0)
    for _ in range(4000):
        order = sorted(range(40), key=lambda i: (-scores[i], draw.random()))
        for metric in METRICS:
            sums[metric] += of_order(order, relevant, metric)
    exact = retrieval_metrics(*scored(*scores), [sorted(relevant)], metrics=METRICS)
    for metric in METRICS:
        assert exact[metric].item() == pytest.approx(sums[metric] / 4000, rel=0.05, abs=0.02), metric


def test_analytic_values() -> None:
    # positions of the relevant ones: 2 and 4
    found = retrieval_metrics(*scored(0.9, 0.8, 0.7, 0.6, 0.5), [[1, 3]], metrics=METRICS)
    dcg, ideal = 1 / math.log2(3) + 1 / math.log2(5), 1 + 1 / math.log2(3)
    expected = {
        **{
            "recall@1": 0,
            "recall@3": 1,
            "recall@50": 1,
            "precision@1": 0,
            "precision@3": 1 / 3,
            "mrr": 0.5,
            "mrr@2": 0.5,
        },
        **{"ndcg": dcg / ideal, "ndcg@1": 0, "ndcg@3": 1 / math.log2(3) / ideal, "ndcg@50": dcg / ideal},
        **{"mean_rank": 2, "median_rank": 2},
    }
    assert {metric: value.item() for metric, value in found.items()} == pytest.approx(expected)


def test_official_mmeb_argmax_is_the_optimistic_way_to_count_ties() -> None:
    torch.manual_seed(0)
    queries, candidates = torch.randint(-1, 2, (50, 4)).float(), torch.randint(-1, 2, (30, 4)).float()
    pools = [[i % 30, *random.Random(i).sample([j for j in range(30) if j != i % 30], 9)] for i in range(50)]
    official = [float((q @ candidates[pool].T).argmax() == 0) for q, pool in zip(queries, pools, strict=True)]
    arguments = (queries, candidates, [[pool[0]] for pool in pools], pools, ("precision@1",))
    right, expected, wrong = (
        retrieval_metrics(*arguments, ties=ties)["precision@1"] for ties in ("right", "expected", "wrong")
    )
    assert right.tolist() == official
    assert wrong.mean() < expected.mean() < right.mean()


def task_of(queries: int, candidates: int, relevant: list[list[int]], pools: list[list[int]] | None) -> RetrievalTask:
    return RetrievalTask("t", [Item("q")] * queries, [Item("c")] * candidates, relevant, pools, METRICS)


@pytest.mark.parametrize("width", [1, 7, 64, 129])
@pytest.mark.parametrize("block_scores", [1, 100, 1 << 24])
@pytest.mark.parametrize("pooled", [False, True], ids=["all", "pools"])
def test_constant_embeddings_score_chance(width: int, block_scores: int, pooled: bool) -> None:
    draw = random.Random(width)
    relevant = [draw.sample(range(53), draw.choice([1, 2, 20])) for _ in range(31)]
    pools = [sorted({*entry, *draw.sample(range(53), draw.randint(1, 30))}) for entry in relevant] if pooled else None
    torch.manual_seed(width)
    constant = torch.nn.functional.normalize(torch.randn(1, width), dim=1)
    ranks = rank(constant.expand(31, -1), constant.expand(53, -1), relevant, pools, block_scores=block_scores)
    assert summary(measure(ranks, METRICS)) == pytest.approx(chance(task_of(31, 53, relevant, pools)), rel=1e-12)


def test_chance_is_what_the_textbook_says() -> None:
    value = chance(task_of(2, 20, [[3], [4]], None))
    assert [value["recall@1"], value["precision@1"]] == pytest.approx([1 / 20, 1 / 20])
    assert value["recall@3"] == pytest.approx(3 / 20)
    assert value["mrr"] == pytest.approx(sum(1 / i for i in range(1, 21)) / 20)
    assert value["mean_rank"] == pytest.approx(10.5)
    several = chance(task_of(1, 20, [[3, 4, 5]], None))
    assert several["recall@3"] == pytest.approx(1 - math.comb(17, 3) / math.comb(20, 3))
    assert several["precision@3"] == pytest.approx(3 / 20)
    pooled = chance(task_of(2, 20, [[3], [4]], [[3, 4, 5, 6], [4, 0]]))
    assert pooled["recall@1"] == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert pooled["recall@50"] == 1


def test_agrees_with_torchmetrics_where_nothing_ties() -> None:
    torch.manual_seed(0)
    queries, candidates = torch.randn(20, 16), torch.randn(60, 16)
    relevant = [random.Random(i).sample(range(60), 1 + i) for i in range(20)]  # both ways of counting
    found = retrieval_metrics(queries, candidates, relevant, metrics=METRICS)
    for i, entry in enumerate(relevant):
        scores = queries[i] @ candidates.T
        target = torch.zeros(60, dtype=torch.bool)
        target[entry] = True
        for k in (1, 3, 50):
            assert found[f"recall@{k}"][i] == reference.retrieval_hit_rate(scores, target, top_k=k)
            ndcg = reference.retrieval_normalized_dcg(scores, target, top_k=k)
            assert found[f"ndcg@{k}"][i].item() == pytest.approx(ndcg.item(), rel=1e-5)
        assert found["precision@3"][i].item() == pytest.approx(reference.retrieval_precision(scores, target, 3).item())
        assert found["mrr"][i].item() == pytest.approx(reference.retrieval_reciprocal_rank(scores, target).item())
        assert found["mrr@2"][i].item() == pytest.approx(
            reference.retrieval_reciprocal_rank(scores, target, top_k=2).item()
        )


def test_a_query_does_not_care_for_its_company() -> None:
    """Queries with many relevant candidates go another way through the code than those with few."""
    torch.manual_seed(0)
    queries, candidates = torch.randint(-2, 3, (6, 3)).float(), torch.randint(-2, 3, (80, 3)).float()
    relevant = [[1], [2, 3], [4], list(range(40)), [7, 70], [0]]
    together = retrieval_metrics(queries, candidates, relevant, metrics=METRICS)
    for i in range(6):
        alone = retrieval_metrics(queries[i : i + 1], candidates, relevant[i : i + 1], metrics=METRICS)
        for metric in METRICS:
            assert alone[metric].item() == pytest.approx(together[metric][i].item(), rel=1e-12), metric


def test_summary_and_its_error() -> None:
    values = {"mrr": torch.tensor([0.0, 1.0, 1.0, 0.0]), "median_rank": torch.tensor([1.0, 9.0, 3.0])}
    assert summary(values) == {"mrr": 0.5, "median_rank": 3.0}
    assert standard_errors(values)["mrr"] == pytest.approx(math.sqrt(1 / 3) / 2)
    assert math.isnan(standard_errors(values)["median_rank"])


@pytest.mark.parametrize(
    "metric", ["recal@10", "recall", "recall@0", "ndcg@", "precision", "recall@ten", "mean_rank@3"]
)
def test_unknown_metric(metric: str) -> None:
    with pytest.raises(UnknownNameError, match=r"there are recall@10"):
        retrieval_metrics(*scored(1.0), [[0]], metrics=(metric,))


def test_unknown_way_to_count_ties() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'wrong'"):
        retrieval_metrics(*scored(1.0), [[0]], ties="wrogn")


@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_many_right_answers_are_the_mean_over_all_orders(levels: int) -> None:
    """mAP@R and R-precision of five candidates, against every order that respects the scores."""
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (8, 5), generator=generator).float()
    relevant = [sorted(torch.randperm(5, generator=generator)[: 1 + i % 4].tolist()) for i in range(8)]
    found = measure(rank_scores(lambda rows: scores[rows], (8, 5), relevant), ("map@r", "r_precision"))
    for i, right in enumerate(relevant):
        values = []
        for order in itertools.permutations(range(5)):
            if all(scores[i, a] >= scores[i, b] for a, b in itertools.pairwise(order)):
                hits = [candidate in right for candidate in order[: len(right)]]
                average = sum(sum(hits[: p + 1]) / (p + 1) for p, hit in enumerate(hits) if hit) / len(right)
                values.append((average, sum(hits) / len(right)))
        expected = torch.tensor(values, dtype=torch.float64).mean(0)
        assert found["map@r"][i].item() == pytest.approx(expected[0].item(), abs=1e-9)
        assert found["r_precision"][i].item() == pytest.approx(expected[1].item(), abs=1e-9)


@pytest.mark.parametrize("most", [3, 20])
@pytest.mark.parametrize("pooled", [False, True])
def test_scores_of_minus_infinity_are_the_worst_and_tie(most: int, pooled: bool) -> None:
    """Counted by hand: what pads shorter lists is no candidate, also where a score is as low as can be."""
    dice = random.Random(most)
    queries, candidates = 12, 30
    table = [[dice.choice([-math.inf, -math.inf, 0.0, 1.0, 2.0]) for _ in range(candidates)] for _ in range(queries)]
    relevant = [dice.sample(range(candidates), dice.randint(1, most)) for _ in range(queries)]
    pools = [sorted({*right, *dice.sample(range(candidates), dice.randint(1, 9))}) for right in relevant]
    scores = torch.tensor(table)
    ranks = rank_scores(lambda rows: scores[rows], (queries, candidates), relevant, pools if pooled else None)
    for i, right in enumerate(relevant):
        among = [table[i][j] for j in (pools[i] if pooled else range(candidates))]
        for place, j in enumerate(sorted(right)):
            own = table[i][j]
            found = [int(part[i, place]) for part in (ranks.above, ranks.tied, ranks.tied_relevant)]
            assert found == [sum(s > own for s in among), among.count(own), [table[i][k] for k in right].count(own)]
