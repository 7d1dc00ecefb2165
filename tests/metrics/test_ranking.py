"""Ranks do not depend on blocks, rounding or settings, and bad input is named."""

from __future__ import annotations

import random

import pytest
import torch

from zoo.errors import NonFiniteError, SampleError
from zoo.metrics import counting, ranking, rounded_ranks
from zoo.metrics.ranking import best, distinct_rows, rank


def data(
    queries: int = 37, candidates: int = 211, width: int = 24
) -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(queries + candidates, width, generator=generator), dim=1)
    relevant = [random.Random(i).sample(range(candidates), 1 + i % 4) for i in range(queries)]
    return vectors[:queries], vectors[queries:], relevant


def equal(a: ranking.Ranks, b: ranking.Ranks) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("above", "tied", "tied_relevant", "mask"))


@pytest.mark.parametrize("pooled", [False, True], ids=["all", "pools"])
def test_block_size_changes_nothing(pooled: bool) -> None:
    queries, candidates, relevant = data()
    pools = [[*entry, *random.Random(i).sample(range(211), 9)] for i, entry in enumerate(relevant)] if pooled else None
    whole = rank(queries, candidates, relevant, pools)
    for block in (1, 500, 211 * 10, 211 * 36):
        assert equal(rank(queries, candidates, relevant, pools, block_scores=block), whole)


def test_a_pool_is_the_candidates_in_it() -> None:
    queries, candidates, relevant = data()
    pools = [[*entry, *random.Random(i).sample(range(211), 9), entry[0]] for i, entry in enumerate(relevant)]
    pooled = rank(queries, candidates, relevant, pools)
    for i, (entry, pool) in enumerate(zip(relevant, pools, strict=True)):
        own = sorted(set(pool))
        alone = rank(queries[i : i + 1], candidates[own], [[own.index(j) for j in entry]])
        assert torch.equal(pooled.above[i][pooled.mask[i]], alone.above[0])
        assert torch.equal(pooled.tied[i][pooled.mask[i]], alone.tied[0])


@pytest.mark.parametrize("width", [17, 100, 257])
@pytest.mark.parametrize("block_scores", [1, 1 << 24])
@pytest.mark.parametrize("count", [7, 153])
def test_equal_candidates_tie_wherever_they_stand(width: int, block_scores: int, count: int) -> None:
    """A matrix product may round equal rows differently, above all for one query; that must not decide a rank."""
    queries, candidates, _ = data(33, count, width)
    copies = candidates.repeat(3, 1)  # of every vector three
    ranks = rank(queries, copies, [[i % (3 * count)] for i in range(33)], block_scores=block_scores)
    assert ranks.tied.eq(3).all()
    assert (ranks.above % 3).eq(0).all()


def test_half_precision_vectors_are_scored_in_fp32_whatever_the_run_is_set_to() -> None:
    queries, candidates, relevant = data(64, 500, 64)
    queries, candidates = queries.bfloat16(), candidates.bfloat16()
    relevant = [[i] for i in range(64)]
    wanted = rank(queries.float(), candidates.float(), relevant)
    assert wanted.tied.eq(1).all()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert equal(rank(queries, candidates, relevant), wanted)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("width", [1, 5, 8])
def test_distinct_rows(width: int) -> None:
    torch.manual_seed(0)
    rows = torch.randn(40, width)[torch.randint(0, 40, (3000,))]
    rows[7], rows[8] = 0.0, -0.0
    distinct, which = distinct_rows(rows)
    assert torch.equal(distinct[which], rows)
    assert len(distinct) == len(torch.unique(rows, dim=0))
    assert which[7] == which[8]
    again, which = distinct_rows(distinct)
    assert torch.equal(again[which], distinct) and len(again) == len(distinct)


def test_distinct_rows_survive_equal_fingerprints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "_fingerprints", lambda rows: torch.zeros(len(rows), dtype=torch.int64))
    rows = torch.tensor([[1.0, 2, 3, 4], [2, 1, 3, 4], [1, 2, 3, 4]])
    distinct, which = distinct_rows(rows)
    assert torch.equal(distinct[which], rows) and len(distinct) == 2


def test_counts_are_exact_beyond_what_fp32_can_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of the comparison, and its sum in double precision for very many candidates, change nothing."""
    queries, candidates, relevant = data()
    wanted = rank(queries, candidates, relevant)
    monkeypatch.setattr(counting, "_COUNTED", 500)
    assert equal(rank(queries, candidates, relevant), wanted)
    monkeypatch.setattr(counting, "_EXACT", 100)
    assert equal(rank(queries, candidates, relevant), wanted)


def test_memory_stays_within_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    count = ranking.counted

    def watched(scores: torch.Tensor, own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal largest
        largest = max(largest, scores.numel())
        return count(scores, own)

    monkeypatch.setattr(ranking, "counted", watched)
    queries, candidates, relevant = data(200, 500)
    rank(queries, candidates, relevant, block_scores=5000)
    assert largest == 5000


def test_best_candidates() -> None:
    queries, candidates, _ = data()
    scores = candidates @ queries[3]
    assert [i for i, _ in best(queries[3], candidates, most=4)] == scores.argsort(descending=True)[:4].tolist()
    pool = [5, 9, 200, 9]
    found = best(queries[3], candidates, pool)
    assert [i for i, _ in found] == sorted({5, 9, 200}, key=lambda i: -scores[i])
    assert found[0][1] == pytest.approx(scores[found[0][0]].item())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e30])
@pytest.mark.parametrize("kind", ["query", "candidate"])
def test_not_finite(kind: str, value: float) -> None:
    queries, candidates, relevant = data()
    (queries if kind == "query" else candidates)[12, 3] = value
    with pytest.raises(NonFiniteError, match=f"emoji: the vector of {kind} 12 is not finite"):
        rank(queries, candidates, relevant, name="emoji")


@pytest.mark.parametrize(
    ("relevant", "pools", "message"),
    [
        ([[0]], None, "2 queries, but 1 relevant lists"),
        ([[0], []], None, "query 1: relevant is empty"),
        ([[0], [9]], None, "query 1: relevant holds 9; there are 3 candidates"),
        ([[0], [-1]], None, "query 1: relevant holds -1"),
        ([[0], [1]], [[0]], "2 relevant lists and 1 pools"),
        ([[0], [1]], [[0], [0, 2]], "query 1: its relevant candidate 1 is not in its pool"),
        ([[0], [1]], [[0], []], "query 1: pool is empty"),
    ],
)
def test_indexes_that_do_not_fit(relevant: list[list[int]], pools: list[list[int]] | None, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        rank(torch.eye(2, 4), torch.eye(3, 4), relevant, pools)


def test_no_queries() -> None:
    with pytest.raises(SampleError, match="no queries"):
        rank(torch.zeros(0, 4), torch.eye(3, 4), [])


@pytest.mark.parametrize("kind", ["random", "whole", "constant", "duplicates", "large", "tiny", "shared mean"])
def test_rounded_scores_first_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, candidates, relevant = data(60, 400, 48)
    if kind == "whole":
        queries, candidates = (queries * 9).round(), (candidates * 9).round()
    if kind == "constant":
        candidates = candidates[:1].expand(400, -1)
    if kind == "duplicates":
        candidates = candidates[torch.arange(400) % 90]
    if kind in ("large", "tiny"):
        queries, candidates = ((v * (1e12 if kind == "large" else 1e-12)) for v in (queries, candidates))
    if kind == "shared mean":
        queries, candidates = queries + 0.3, candidates + 0.3
    wanted = rank(queries, candidates, relevant)
    answers = _always_rounded(monkeypatch, least_open=0.1)
    assert equal(rank(queries, candidates, relevant, block_scores=400 * 25), wanted)
    assert answers == [True] * 3


def test_too_many_undecided_scores_are_left_to_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, candidates, relevant = data(60, 400, 48)
    candidates = candidates[:1] + 1e-3 * candidates
    wanted = rank(queries, candidates, relevant)
    answers = _always_rounded(monkeypatch)
    assert equal(rank(queries, candidates, relevant, block_scores=400 * 25), wanted)
    assert answers == [False]  # and not tried again


def test_too_many_rounds_are_left_to_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, candidates, relevant = data(60, 400, 48)
    wanted = rank(queries + 0.3, candidates + 0.3, relevant)
    answers = _always_rounded(monkeypatch, least_open=0.1)
    monkeypatch.setattr(rounded_ranks, "_LOOKED_AT", 1 << 16)
    assert equal(rank(queries + 0.3, candidates + 0.3, relevant, block_scores=400 * 25), wanted)
    assert answers == [False]


def _always_rounded(monkeypatch: pytest.MonkeyPatch, least_open: float = 512) -> list[bool]:
    """Whether each block was ranked by rounded scores, as they come."""
    answers = []
    places = rounded_ranks.RoundedRanks.places

    def watched(*args: torch.Tensor) -> object:
        found = places(*args)
        answers.append(found is not None)
        return found

    monkeypatch.setattr(rounded_ranks, "pays", lambda *_: True)
    monkeypatch.setattr(rounded_ranks, "_OPEN", least_open)
    monkeypatch.setattr(rounded_ranks, "_LOOKED_AT", 1)
    monkeypatch.setattr(rounded_ranks.RoundedRanks, "places", watched)
    return answers
