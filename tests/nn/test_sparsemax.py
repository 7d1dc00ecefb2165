"""Sparsemax against a slow projection onto the simplex, and against what defines a projection."""

from __future__ import annotations

import pytest
import torch

from zoo.nn.sparsemax import sparsemax


def project(scores: list[float]) -> list[float]:
    """The nearest point of the simplex, by bisection for the number that is taken off."""
    low, high = min(scores) - 1, max(scores)
    for _ in range(200):
        tau = (low + high) / 2
        if sum(max(0.0, z - tau) for z in scores) > 1:
            low = tau
        else:
            high = tau
    return [max(0.0, z - (low + high) / 2) for z in scores]


@pytest.mark.parametrize("spread", [1e-4, 0.1, 1.0, 10.0])
def test_equals_the_slow_projection(spread: float) -> None:
    scores = spread * torch.randn(20, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 5
    expected = torch.tensor([project(row) for row in scores.tolist()], dtype=torch.float64)
    torch.testing.assert_close(sparsemax(scores), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(sparsemax(scores.float()), expected.float(), atol=1e-5, rtol=0)


def test_is_on_the_simplex_and_sparse() -> None:
    found = sparsemax(3 * torch.randn(50, 4096, generator=torch.Generator().manual_seed(1)))
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(1), torch.ones(50), atol=1e-5, rtol=0)
    assert (found > 0).sum(1).max() < 10


def test_ties_and_what_is_left_out() -> None:
    scores = torch.tensor([[1.0, 1.0, -torch.inf], [0.0, -torch.inf, -torch.inf], [0.5, 0.0, 0.0]])
    expected = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [2 / 3, 1 / 6, 1 / 6]])
    torch.testing.assert_close(sparsemax(scores), expected)


def test_half_precision_is_raised() -> None:
    scores = torch.randn(2, 1000, generator=torch.Generator().manual_seed(2)).bfloat16() / 1000
    found = sparsemax(scores)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, sparsemax(scores.float()))


def test_gradient_is_that_of_the_projection() -> None:
    scores = torch.randn(4, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sparsemax, scores)
    masked = torch.tensor([[0.3, 0.1, -torch.inf]], requires_grad=True)
    sparsemax(masked)[0, 0].backward()
    torch.testing.assert_close(masked.grad, torch.tensor([[0.5, -0.5, 0.0]]))
