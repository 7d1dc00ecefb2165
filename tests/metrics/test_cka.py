"""Streamed CKA equals the formula written out over all pairs of items, and says what it should of clear cases."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.errors import NonFiniteError, SampleError
from zoo.metrics.cka import LinearCka, linear_cka


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kernel(x: Tensor) -> list[list[float]]:
    rows = x.double().tolist()
    return [[sum(p * q for p, q in zip(a, b, strict=True)) for b in rows] for a in rows]


def slow_hsic(k: list[list[float]], m: list[list[float]], unbiased: bool) -> float:
    n = len(k)
    if not unbiased:

        def centred(matrix: list[list[float]]) -> list[list[float]]:
            rows = [sum(row) / n for row in matrix]
            total = sum(rows) / n
            return [[matrix[i][j] - rows[i] - rows[j] + total for j in range(n)] for i in range(n)]

        k, m = centred(k), centred(m)
        return sum(k[i][j] * m[i][j] for i in range(n) for j in range(n))
    k, m = ([[0.0 if i == j else one[i][j] for j in range(n)] for i in range(n)] for one in (k, m))
    trace = sum(k[i][j] * m[j][i] for i in range(n) for j in range(n))
    totals = sum(map(sum, k)) * sum(map(sum, m)) / ((n - 1) * (n - 2))
    product = sum(k[i][j] * m[j][q] for i in range(n) for j in range(n) for q in range(n))
    return (trace + totals - 2 / (n - 2) * product) / (n * (n - 3))


def slow(x: Tensor, y: Tensor, unbiased: bool) -> float:
    k, m = kernel(x), kernel(y)
    scale = slow_hsic(k, k, unbiased) * slow_hsic(m, m, unbiased)
    return slow_hsic(k, m, unbiased) / scale**0.5


def sides(count: int, far: float = 0.0) -> tuple[Tensor, Tensor]:
    x = randn(count, 5) + far
    return x, (x @ randn(5, 3, seed=1)).tanh() + 0.3 * randn(count, 3, seed=2) - far


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("block_rows", [1, 4, 1000])
@pytest.mark.parametrize(("count", "far"), [(4, 0.0), (17, 0.0), (17, 30.0)])
def test_equals_the_loop_over_pairs(count: int, far: float, block_rows: int, unbiased: bool) -> None:
    x, y = sides(count, far)
    found = linear_cka(x, y, unbiased=unbiased, block_rows=block_rows)
    # the loop itself would lose its digits far from the origin
    assert found == pytest.approx(slow(x - far, y + far, unbiased), rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("unbiased", [False, True])
def test_rotation_scale_and_shift_change_nothing(unbiased: bool) -> None:
    x, y = sides(40)
    rotation = torch.linalg.qr(randn(5, 5, seed=3)).Q
    assert linear_cka(x, 7 * x @ rotation + 2, unbiased=unbiased) == pytest.approx(1.0)
    assert linear_cka(y, x, unbiased=unbiased) == pytest.approx(linear_cka(x, y, unbiased=unbiased))
    assert linear_cka(x @ rotation + 1, 3 * y, unbiased=unbiased) == pytest.approx(linear_cka(x, y, unbiased=unbiased))


def test_unrelated_sides_of_few_items() -> None:
    """Fewer items than dimensions: plain CKA is high for noise, the unbiased one is not."""
    plain, unbiased = [], []
    for seed in range(20):
        x, y = randn(30, 60, seed=2 * seed), randn(30, 60, seed=2 * seed + 1)
        plain.append(linear_cka(x, y))
        unbiased.append(linear_cka(x, y, unbiased=True))
    assert sum(plain) / 20 > 0.6 and abs(sum(unbiased) / 20) < 0.05


def test_half_precision_is_raised_and_a_constant_side_is_0() -> None:
    x, y = sides(20)
    assert linear_cka(x.half(), y.float()) == pytest.approx(linear_cka(x, y), abs=1e-3)
    assert linear_cka(x, torch.ones(20, 3)) == 0.0


def test_errors_say_what_does_not_fit() -> None:
    x, y = sides(6)
    with pytest.raises(SampleError, match="6 rows, the other 5"):
        linear_cka(x, y[:5])
    with pytest.raises(SampleError, match="at least 4 items, there are 3"):
        linear_cka(x[:3], y[:3], unbiased=True)
    with pytest.raises(SampleError, match="at least 2 items, there are 0"):
        linear_cka(x[:0], y[:0])
    bad = y.clone()
    bad[4, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="item 4 "):
        linear_cka(x, bad, block_rows=2)
    cka = LinearCka()
    cka.update(x, y)
    with pytest.raises(SampleError, match="width 4, those before it had 3"):
        cka.update(x, randn(6, 4))
    with pytest.raises(SampleError, match="shape"):
        cka.update(x[0], y[0])
