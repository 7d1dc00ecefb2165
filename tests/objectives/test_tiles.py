"""Tiles against one dense matrix and against loops written from the formula, in fp64, gradients included."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from zoo.objectives.binary import sigmoid_sums
from zoo.objectives.contrastive import row_blocks, softmax_losses


def unit(rows: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(values, dim=-1).requires_grad_()


def loop(
    rows: Tensor, columns: Tensor, scale: float, targets: list[dict[int, float]], hidden, smoothing=0.0
) -> list[float]:
    """The loss of every row, one cell after the other. targets: per row, column -> weight."""
    losses = []
    for i, row in enumerate(rows.detach()):
        kept = [j for j in range(len(columns)) if not hidden(i, j)]
        scores = {j: scale * float(row @ columns[j].detach()) for j in kept}
        top = max(scores.values())
        log_z = top + math.log(sum(math.exp(score - top) for score in scores.values()))
        hard = sum(weight * (log_z - scores[j]) for j, weight in targets[i].items())
        losses.append((1 - smoothing) * hard + smoothing * sum(log_z - s for s in scores.values()) / len(scores))
    return losses


def never(i: int, j: int) -> bool:
    return False


def hook(hidden):
    def adjust(logits: Tensor, part: slice) -> Tensor:
        rows = range(part.start, part.stop)
        mask = torch.tensor([[hidden(i, j) for j in range(logits.shape[1])] for i in rows])
        return logits.masked_fill(mask, -torch.inf)

    return None if hidden is never else adjust


def some(i: int, j: int) -> bool:
    return (i * 3 + j) % 5 == 0 and i != j


def results(dense: bool, rows, columns, scale, target, **options) -> tuple[Tensor, ...]:
    sizes = {"dense_cells": 1 << 40} if dense else {"dense_cells": 0, "tile_cells": 3 * len(columns)}
    found = softmax_losses(rows, columns, scale, target, **options, **sizes)
    weights = torch.linspace(0.5, 2, len(rows), dtype=torch.float64)
    total = (found.rows * weights).sum()
    if found.columns is not None:
        total = total + (found.columns * weights.flip(0)).sum()
    gradients = torch.autograd.grad(total, (rows, columns, scale))
    columns_losses = found.columns if found.columns is not None else torch.zeros(0)
    return (found.rows.detach(), columns_losses.detach(), found.correct, *gradients)


@pytest.mark.parametrize("scale", [1.0, 14.3, 1000.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("hidden", [never, some])
@pytest.mark.parametrize("shape", [(7, 7), (4, 11)])
@pytest.mark.parametrize("both", [False, True])
def test_tiles_equal_dense_and_loop(scale, smoothing, hidden, shape, both) -> None:
    if both and shape[0] != shape[1]:
        pytest.skip("losses of both sides are of square problems")
    rows, columns = unit(shape[0], 5, 0), unit(shape[1], 5, 1)
    own = torch.randperm(shape[1], generator=torch.Generator().manual_seed(2))[: shape[0]] if hidden is never else None
    own = torch.arange(shape[0]) if own is None else own
    value = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    options = {"adjust": hook(hidden), "smoothing": smoothing, "both": both}
    tiled, dense = (results(d, rows, columns, value, own, **options) for d in (False, True))
    for left, right in zip(tiled, dense, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-11)
        assert torch.isfinite(left.double()).all()
    expected = loop(rows, columns, scale, [{int(j): 1.0} for j in own], hidden, smoothing)
    torch.testing.assert_close(tiled[0], torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-10)
    if both:
        inverse = [{int((own == j).nonzero()): 1.0} for j in range(shape[1])]
        turned = loop(columns, rows, scale, inverse, lambda j, i: hidden(i, j), smoothing)
        torch.testing.assert_close(tiled[1], torch.tensor(turned, dtype=torch.float64), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_several_and_soft_targets(smoothing: float) -> None:
    rows, columns = unit(6, 5, 0), unit(9, 5, 1)
    scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    table = torch.rand(6, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    table *= torch.tensor([[not some(i, j) for j in range(9)] for i in range(6)])

    def target(part: slice) -> Tensor:
        return table[part]

    options = {"adjust": hook(some), "smoothing": smoothing}
    tiled, dense = (results(d, rows, columns, scale, target, **options) for d in (False, True))
    for left, right in zip(tiled, dense, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-11)
    weights = [{j: float(table[i, j]) for j in range(9) if not some(i, j)} for i in range(6)]
    log_z = loop(rows, columns, 9.0, weights, some)
    if not smoothing:
        torch.testing.assert_close(tiled[0], torch.tensor(log_z, dtype=torch.float64), rtol=1e-8, atol=1e-10)


def test_gradients_are_those_of_finite_differences() -> None:
    rows, columns = unit(5, 3, 0), unit(5, 3, 1)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)

    def run(a: Tensor, b: Tensor, s: Tensor) -> tuple[Tensor, Tensor | None]:
        found = softmax_losses(a, b, s, torch.arange(5), None, 0.1, True, dense_cells=0, tile_cells=10)
        return found.rows, found.columns

    assert torch.autograd.gradcheck(run, (rows, columns, scale))


def test_half_precision_is_raised() -> None:
    rows, columns = unit(8, 4, 0).detach().bfloat16().requires_grad_(), unit(8, 4, 1).detach().bfloat16()
    found = softmax_losses(rows, columns, torch.tensor(50.0), torch.arange(8), dense_cells=0, tile_cells=16)
    expected = torch.nn.functional.cross_entropy(
        50 * rows.float() @ columns.float().T, torch.arange(8), reduction="none"
    )
    assert found.rows.dtype == torch.float32
    torch.testing.assert_close(found.rows, expected)
    found.rows.sum().backward()
    assert rows.grad.dtype == torch.bfloat16


def test_both_sides_need_a_square() -> None:
    with pytest.raises(ValueError, match="one column per row"):
        softmax_losses(unit(2, 3, 0), unit(3, 3, 1), torch.tensor(1.0), torch.arange(2), both=True)


def test_row_blocks_are_one_block() -> None:
    rows, columns = unit(7, 4, 0), unit(5, 4, 1)

    def block(part: slice) -> Tensor:
        return torch.nn.functional.softplus(rows[part] @ columns.T).sum(1)

    whole, parts = block(slice(0, 7)), row_blocks(block, 7, 5, dense_cells=0, tile_cells=10)
    torch.testing.assert_close(parts, whole)
    for left, right in zip(
        torch.autograd.grad((parts**2).sum(), (rows, columns)),
        torch.autograd.grad((whole**2).sum(), (rows, columns)),
        strict=True,
    ):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("scale", [1.0, 14.3, 1000.0])
@pytest.mark.parametrize("kind", ["own", "signs"])
def test_sigmoid_tiles_equal_dense_and_loop(scale: float, kind: str) -> None:
    rows, columns = unit(7, 5, 0), unit(9, 5, 1)
    value = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    own = torch.randperm(9, generator=torch.Generator().manual_seed(2))[:7]
    table = torch.randint(-1, 2, (7, 9), generator=torch.Generator().manual_seed(3)).double()
    if kind == "own":
        table = torch.full((7, 9), -1.0).double().scatter_(1, own[:, None], 1.0)
    answers = own if kind == "own" else lambda part: table[part]
    found = []
    for sizes in ({"dense_cells": 1 << 40}, {"dense_cells": 0, "tile_cells": 27}):
        sums = sigmoid_sums(rows, columns, value, bias, answers, **sizes)
        total = (sums * torch.linspace(0.5, 2, 7, dtype=torch.float64)).sum()
        found.append((sums.detach(), *torch.autograd.grad(total, (rows, columns, value, bias))))
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-11)
        assert torch.isfinite(left).all()
    for i in range(7):
        cells = [(float(table[i, j]), scale * float(rows[i] @ columns[j]) - 2.0) for j in range(9) if table[i, j]]
        expected = sum(max(0.0, -y * z) + math.log1p(math.exp(-abs(z))) for y, z in cells)
        assert float(found[0][0][i]) == pytest.approx(expected, rel=1e-9, abs=1e-11)
