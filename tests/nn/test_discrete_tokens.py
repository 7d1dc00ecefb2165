"""Finite discrete tokens against a loop over their equations, padding, temperature, and as one graph."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from zoo.export.verify import export_and_verify
from zoo.nn.discrete_tokens import FiniteDiscreteTokens, QueryMap
from zoo.types import Graph


def part(codes: int = 12, dim: int = 6, **options: object) -> FiniteDiscreteTokens:
    torch.manual_seed(0)
    return FiniteDiscreteTokens(codes, dim, **{"temperature": 0.7, **options})  # type: ignore[arg-type]


def slow(codebook: torch.Tensor, tokens: torch.Tensor, temperature: float) -> torch.Tensor:
    """One row, one code after the other; the projection by bisection."""
    codebook = codebook.detach()
    best = [max(float(t @ code) / math.sqrt(len(code)) / temperature for t in tokens) for code in codebook]
    low, high = min(best) - 1, max(best)
    for _ in range(100):
        tau = (low + high) / 2
        low, high = (tau, high) if sum(max(0.0, b - tau) for b in best) > 1 else (low, tau)
    return sum(max(0.0, b - low) * code for b, code in zip(best, codebook, strict=True))


def test_equals_its_equations() -> None:
    pooling, tokens = part(), torch.randn(5, 4, 6)
    expected = torch.stack([slow(pooling.codebook, row, 0.7) for row in tokens])
    torch.testing.assert_close(pooling(tokens, None), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pooling(tokens, torch.ones(5, 4)), expected, atol=1e-5, rtol=1e-4)


def test_exact_ignores_padding_and_official_does_not() -> None:
    tokens = torch.randn(3, 4, 6)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    rows = [tokens[i, : int(mask[i].sum())] for i in range(3)]
    for padding in ("exact", "official"):
        pooling = part(padding=padding, temperature=20.0)
        together = pooling(tokens, mask)
        alone = torch.cat([pooling(row[None], None) for row in rows])
        torch.testing.assert_close(together[0], alone[0])
        assert torch.allclose(together, alone, atol=1e-6) == (padding == "exact")
    # official: the scores of padding are 0, so no code scores below that
    scores = (tokens @ pooling.codebook.T / math.sqrt(6) * mask[..., None]).amax(1)
    assert (scores[1:] >= 0).all()
    expected = pooling.activation(scores / 20.0) @ pooling.codebook
    torch.testing.assert_close(together, expected)


def test_every_part_gets_a_gradient() -> None:
    pooling, queries = part(), QueryMap(8, 6)
    pooling(queries(torch.randn(5, 3, 8)), torch.ones(5, 3)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in [*pooling.parameters(), *queries.parameters()])


def test_temperature_decays_at_its_steps_and_is_kept() -> None:
    pooling = part(temperature=8.0, decay=0.5, decay_every=10, least=1.5)
    seen = []
    for step in range(41):
        pooling.anneal(step)
        seen.append(float(pooling.temperature))
    assert seen[0] == seen[9] == 8.0 and seen[10] == seen[19] == 4.0 and seen[20] == 2.0 and seen[30] == seen[40] == 1.5
    other = part()
    other.load_state_dict(pooling.state_dict())
    assert float(other.temperature) == 1.5


class Whole(nn.Module):
    def __init__(self, padding: str) -> None:
        super().__init__()
        self.queries, self.pooling = QueryMap(8, 6), part(padding=padding)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.pooling(self.queries(tokens), mask)


@pytest.mark.parametrize("padding", ["exact", "official"])
def test_exports(tmp_path: Path, padding: str) -> None:
    def example(rows: int, length: int) -> dict[str, torch.Tensor]:
        mask = torch.ones(rows, length, dtype=torch.int64)
        mask[-1, 1:] = 0
        return {"tokens": torch.randn(rows, length, 8), "mask": mask}

    axes = {0: "batch", 1: "sequence"}
    graph = Graph(
        "codes",
        Whole(padding),
        [example(3, 7), example(1, 4), example(5, 2)],
        {"tokens": axes, "mask": axes, "embeddings": {0: "batch"}},
    )
    assert export_and_verify([graph], tmp_path, tolerance=1e-5)
