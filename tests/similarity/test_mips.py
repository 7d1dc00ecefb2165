"""An index of inner products over E + 1 coordinates ranks exactly as CSD does."""

from __future__ import annotations

import pytest
import torch
from encoded_rows import randn, unit

from zoo.metrics.search import search
from zoo.similarity import mips
from zoo.similarity.distances import CSD
from zoo.types import Embedding

WIDTH, ITEMS, QUERIES, BEST = 24, 700, 40, 25


def embeddings(count: int, seed: int) -> Embedding:
    """Variances that differ enough to change the ranking: their traces lie between .01 and 1 or so."""
    return Embedding(
        unit(count, WIDTH, seed=seed).float(), (randn(count, 1, seed=seed + 1).float() - 5).expand(-1, WIDTH)
    )


@pytest.fixture
def sides() -> tuple[Embedding, Embedding]:
    return embeddings(QUERIES, 0), embeddings(ITEMS, 10)


def brute_force(queries: Embedding, items: Embedding) -> torch.Tensor:
    """Indexes (Q, k) by the definition of CSD, coordinate by coordinate in fp64."""
    distances = [
        (q - items.vector.double()).square().sum(1) + v.exp().sum() + items.log_var.double().exp().sum(1)
        for q, v in zip(queries.vector.double(), queries.log_var.double(), strict=True)
    ]
    return torch.stack(distances).argsort(dim=1, stable=True)[:, :BEST]


def test_ranks_as_brute_force_does(sides: tuple[Embedding, Embedding]) -> None:
    queries, items = sides
    found = search(mips.query_vectors(queries), mips.item_vectors(items), BEST)
    expected = brute_force(queries, items)
    assert torch.equal(found.indexes, expected)
    by_cosine = search(queries.vector, items.vector, BEST).indexes
    assert not torch.equal(by_cosine, expected)  # the variances matter here
    exact = CSD()(queries, items).gather(1, expected)
    torch.testing.assert_close(mips.scores(found.scores, queries), exact, rtol=1e-5, atol=1e-5)


def test_faiss_ranks_alike(sides: tuple[Embedding, Embedding]) -> None:
    faiss = pytest.importorskip("faiss")
    queries, items = sides
    index = faiss.IndexFlatIP(WIDTH + 1)
    index.add(mips.item_vectors(items).numpy())
    products, indexes = index.search(mips.query_vectors(queries).numpy(), BEST)
    assert torch.equal(torch.from_numpy(indexes), brute_force(queries, items))
    found = mips.scores(torch.from_numpy(products), queries)
    torch.testing.assert_close(found, CSD()(queries, items).gather(1, torch.from_numpy(indexes)), rtol=1e-5, atol=1e-5)
