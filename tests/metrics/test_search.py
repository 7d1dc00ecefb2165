"""Search is exact whatever the blocks, with one order for equal scores, in bounded memory."""

from __future__ import annotations

import pytest
import torch

from zoo.errors import NonFiniteError, SampleError
from zoo.metrics import search as module_under_test
from zoo.metrics.search import search

SHAPES = [(37, 500, 8, 10, (16, 64)), (5, 7, 3, 20, (2, 3)), (24, 2500, 6, 60, (16, 1200)), (33, 257, 4, 50, (7, 31))]
SHAPES += [(9, 10, 4, 1, (16, 64)), (9, 22, 4, 5, (16, 64))]
SHAPES += [(9, 1000, 4, 5, (1024, 1 << 14)), (1, 1, 1, 1, (1, 1))]


def vectors(kind: str, queries: int, candidates: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers, whose products are exact, with ties of every kind."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-9, 10, (queries + candidates, width), generator=generator).float()
    if kind == "ties":
        x = x.sign()
    if kind == "constant":
        x = torch.ones_like(x)
    if kind == "rising":  # each block of candidates is better than all before it
        x[queries:] = torch.arange(candidates, dtype=torch.float32)[:, None]
        x[:queries] = x[:queries].abs() + 1
    if kind == "duplicates":
        x[queries:] = x[queries:][torch.arange(candidates) % max(1, candidates // 5)]
    return x[:queries], x[queries:]


@pytest.mark.parametrize("rounded", [False, True], ids=["fp32", "rounded first"])
@pytest.mark.parametrize("kind", ["random", "ties", "constant", "rising", "duplicates"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_a_stable_sort_of_all_scores(
    shape: tuple[int, int, int, int, tuple[int, int]], kind: str, rounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_under_test, "pays", lambda *_: rounded)
    count, size, width, k, block = shape
    queries, candidates = vectors(kind, count, size, width)
    found = search(queries, candidates, k, block=block)
    for query in range(count):
        scores = [sum(a * b for a, b in zip(queries[query].tolist(), c, strict=True)) for c in candidates.tolist()]
        order = sorted(range(size), key=lambda i: (-scores[i], i))[:k]
        assert found.indexes[query].tolist() == order
        assert found.scores[query].tolist() == [scores[i] for i in order]


def test_real_vectors_in_half_precision_are_scored_in_fp32() -> None:
    x = torch.nn.functional.normalize(
        torch.randn(600, 48, generator=torch.Generator().manual_seed(0)), dim=1
    ).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = search(x[:50], x[50:], 20, block=(16, 128))
    exact = x[:50].double() @ x[50:].double().T
    assert torch.allclose(found.scores.double(), exact.sort(dim=1, descending=True).values[:, :20], atol=1e-6)
    assert torch.allclose(exact.gather(1, found.indexes), found.scores.double(), atol=1e-6)


@pytest.mark.parametrize(("k", "spread", "again"), [(20, 1.0, 0), (20, 1e-3, 50), (1, 1.0, 0)])
def test_what_rounded_scores_leave_unsure_is_searched_in_fp32(
    k: int, spread: float, again: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.nn.functional.normalize(torch.randn(3050, 128, generator=torch.Generator().manual_seed(1)), dim=1)
    queries, candidates = x[:50], x[49:50] + spread * x[50:]
    wanted = search(queries, candidates, k)
    searched: list[tuple[torch.dtype, int]] = []
    whole = module_under_test._best_keys

    def watched(queries: torch.Tensor, *rest: object) -> torch.Tensor:
        searched.append((queries.dtype, len(queries)))
        return whole(queries, *rest)

    monkeypatch.setattr(module_under_test, "pays", lambda *_: True)
    monkeypatch.setattr(module_under_test, "_best_keys", watched)
    found = search(queries, candidates, k)
    assert searched == [(torch.bfloat16, 50), *[(torch.float32, again)] * (again > 0)]
    assert torch.allclose(found.scores, wanted.scores, atol=3e-7, rtol=0)
    exact = queries.double() @ candidates.double().T
    best = exact.sort(dim=1, descending=True).values[:, :k]
    assert torch.allclose(exact.gather(1, found.indexes), best, atol=3e-7, rtol=0)


def test_memory_stays_within_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of scores is larger than a block, and even if all scores survive they are sorted out in slices."""
    blocks: list[torch.Size] = []
    updated = module_under_test._updated

    def watched(best: torch.Tensor, scores: torch.Tensor, *rest: int) -> torch.Tensor:
        blocks.append(scores.shape)
        return updated(best, scores, *rest)

    monkeypatch.setattr(module_under_test, "_updated", watched)
    monkeypatch.setattr(module_under_test, "_SURVIVORS", 640)
    queries, candidates = vectors("random", 100, 1000, 4)
    search(queries, candidates, 5, block=(32, 64))
    assert set(blocks) == {(10, 64), (2, 64), (4, 64), (10, 40), (2, 40), (4, 40)}
    rows, columns = module_under_test._BLOCK
    assert rows * columns * 4 <= 64 << 20


def test_no_queries() -> None:
    assert search(torch.zeros(0, 3), torch.ones(5, 3), 2).indexes.shape == (0, 2)


def test_what_can_not_be_searched() -> None:
    with pytest.raises(SampleError, match="queries are 3 wide, candidates 4"):
        search(torch.ones(2, 3), torch.ones(5, 4), 1)
    for k, count in ((0, 5), (3, 0)):
        with pytest.raises(SampleError, match=f"the {k} best of {count} candidates"):
            search(torch.ones(2, 3), torch.ones(count, 3), k)
    broken = torch.ones(5, 3)
    broken[4, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="search: the vector of candidate 4 is not finite"):
        search(torch.ones(2, 3), broken, 1)
