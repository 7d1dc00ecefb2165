"""The hinge loss against a loop over its formula."""

from __future__ import annotations

import pytest
import torch
from encoded_rows import check_ranks, check_tiles, close, encoded, leaves, outcome, unit
from torch import Tensor

from zoo.objectives.triplet import Triplet, hinge
from zoo.types import Encoded


def number(cell: Tensor) -> float:
    return float(cell.detach())


def loop(batch: Encoded, margin: float, hardest: bool, same=lambda i, j: i == j, hidden=lambda i, j: False) -> Tensor:
    """Both directions, cell by cell; `same` and `hidden` look at samples."""
    query, target = batch.views["query"].vector, batch.views["target"].vector
    owner = batch.owners["target"].tolist()
    total = torch.zeros((), dtype=torch.float64)
    cells = [[query[i] @ target[j] for j in range(len(target))] for i in range(len(query))]
    sides = [
        [[(cells[i][j], i, owner[j]) for j in range(len(target))] for i in range(len(query))],
        [[(cells[i][j], owner[j], i) for i in range(len(query))] for j in range(len(target))],
    ]
    for side, each in zip(sides, (1, len(target) // len(query)), strict=True):  # rows of one sample share its weight
        for row in side:
            positive = min((c for c, a, b in row if same(a, b)), key=number)
            costs = [margin - positive + c for c, a, b in row if not same(a, b) and not hidden(a, b)]
            costs = [cost for cost in costs if cost > 0]
            if costs:
                total = total + (max(costs, key=number) if hardest else sum(costs)) / each
    return total / len(batch.sample)


@pytest.mark.parametrize("negatives", ["all", "hardest"])
@pytest.mark.parametrize(("samples", "each"), [(6, 1), (4, 3), (2, 1)])
@pytest.mark.parametrize("margin", [0.2, 1.5])
def test_equals_the_loop(negatives: str, samples: int, each: int, margin: float) -> None:
    batch = encoded(samples, each)
    found = Triplet(margin, negatives)(batch, batch)["loss"]
    expected = loop(batch, margin, negatives == "hardest")
    close(outcome(found, leaves(batch)), outcome(expected, leaves(batch)))


@pytest.mark.parametrize("negatives", ["all", "hardest"])
@pytest.mark.parametrize("duplicates", ["mask", "positive", "keep"])
def test_as_right_as_the_own_one(negatives: str, duplicates: str) -> None:
    batch = encoded(5, labels=torch.tensor([7, -1, 7, -1, 3]))
    twins = {(0, 2), (2, 0)}
    found = Triplet(0.9, negatives, duplicates=duplicates)(batch, batch)["loss"]
    expected = loop(
        batch,
        0.9,
        negatives == "hardest",
        lambda i, j: i == j or (duplicates == "positive" and (i, j) in twins),
        lambda i, j: duplicates == "mask" and (i, j) in twins,
    )
    close(outcome(found, leaves(batch)), outcome(expected, leaves(batch)))


def test_is_the_loss_of_vsepp_but_for_the_divisor() -> None:
    """Costs of the whole matrix, the diagonal cleared, maxima of rows and of columns, summed."""
    batch = encoded(6)
    scores = batch.views["query"].vector @ batch.views["target"].vector.T
    diagonal = scores.diag()
    rows, columns = (0.2 + scores - diagonal[:, None]).clamp(min=0), (0.2 + scores - diagonal).clamp(min=0)
    off = 1 - torch.eye(6, dtype=torch.float64)
    expected = (rows * off).max(1).values.sum() + (columns * off).max(0).values.sum()
    torch.testing.assert_close(Triplet(negatives="hardest")(batch, batch)["loss"], expected / 6)


def test_one_sided() -> None:
    batch = encoded(5)
    scores = batch.views["query"].vector @ batch.views["target"].vector.T
    costs = (0.2 + scores - scores.diag()[:, None]).clamp(min=0) * (1 - torch.eye(5))
    found = Triplet(symmetric=False)(batch, batch)
    torch.testing.assert_close(found["loss"], costs.sum() / 5)
    assert float(found["violations"]) == pytest.approx(float((costs.sum(1) > 0).float().mean()))


@pytest.mark.parametrize("negatives", ["all", "hardest"])
def test_tiles_and_ranks(negatives: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = encoded(6, 2, labels=torch.tensor([7, -1, 7, -1, 3, -1]))
    batch.weights = torch.linspace(1, 2, 6)
    check_tiles(lambda: Triplet(0.5, negatives), batch, monkeypatch)
    check_ranks(lambda: Triplet(0.5, negatives), batch)


def test_rows_without_negatives_or_own_cells_cost_nothing() -> None:
    scores = unit(3, 3).requires_grad_()
    own = torch.tensor([[True, True, True], [False, False, False], [True, False, False]])
    for negatives in ("all", "hardest"):
        found = hinge(scores, own, ~own, 0.2, negatives)
        close(outcome(found.sum(), [scores]), [torch.zeros(()), torch.zeros(3, 3)])


def test_half_precision_is_raised_under_autocast() -> None:
    batch = encoded(6)
    for e in batch.views.values():
        e.vector = e.vector.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = Triplet()(batch, batch)["loss"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), loop(batch32(batch), 0.2, False), rtol=1e-5, atol=1e-6)


def batch32(batch: Encoded) -> Encoded:
    for e in batch.views.values():
        e.vector = e.vector.double()
    return batch
