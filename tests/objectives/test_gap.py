"""Alignment and uniformity against loops over pairs; several ranks against one; the penalty on positive pairs."""

from __future__ import annotations

import pytest
import torch
from encoded_rows import WIDTH, check_ranks, check_tiles, close, encoded, leaves, outcome, unit
from torch import Tensor

from zoo.objectives.gap import ContrastiveGap
from zoo.objectives.infonce import InfoNCE
from zoo.objectives.positive_margin import PositiveMargin
from zoo.types import Encoded


def contrastive() -> InfoNCE:
    return InfoNCE(0.1, symmetric=True).double()


def pairs(batch: Encoded, left: str, right: str, duplicates: str) -> list[tuple[Tensor, Tensor]]:
    found = []
    for i, a in enumerate(batch.owners[left].tolist()):
        for j, b in enumerate(batch.owners[right].tolist()):
            labels = batch.labels[a] == batch.labels[b] and batch.labels[a] >= 0
            if a != b and not (duplicates == "mask" and labels):
                found.append((batch.views[left].vector[i], batch.views[right].vector[j]))
    return found


def uniformity(batch: Encoded, left: str, right: str, duplicates: str, sharpness: float) -> Tensor:
    terms = [(-sharpness * (x - y).square().sum()).exp() for x, y in pairs(batch, left, right, duplicates)]
    return (sum(terms) / len(terms)).log()


def alignment(batch: Encoded) -> Tensor:
    query, target, owner = batch.views["query"].vector, batch.views["target"].vector, batch.owners["target"].tolist()
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(query)):
        own = [j for j, o in enumerate(owner) if o == i]
        total = total + batch.weights[i] * sum((query[i] - target[j]).square().sum() for j in own) / len(own)
    return total / len(query)


@pytest.mark.parametrize("duplicates", ["mask", "keep"])
@pytest.mark.parametrize(("samples", "each"), [(6, 1), (4, 3)])
@pytest.mark.parametrize("sharpness", [2.0, 10.0])
def test_equals_the_loop(duplicates: str, samples: int, each: int, sharpness: float) -> None:
    batch = encoded(samples, each, labels=torch.tensor([7, -1, 7, -1, 3, -1])[:samples])
    batch.weights = torch.linspace(1, 2, samples)
    objective = ContrastiveGap(contrastive(), 0.5, 0.7, 1.3, sharpness, duplicates)
    expected = contrastive()(batch, batch)["loss"] + 0.5 * alignment(batch)
    for view in ("query", "target"):
        expected = expected + 0.35 * uniformity(batch, view, view, duplicates, sharpness)
    expected = expected + 1.3 * uniformity(batch, "query", "target", duplicates, sharpness)
    found = objective(batch, batch)
    close(outcome(found["loss"], leaves(batch)), outcome(expected, leaves(batch)))
    torch.testing.assert_close(found["alignment"], alignment(batch).detach())


def test_is_pdist_of_the_official_code() -> None:
    batch = encoded(7)
    expected = sum(torch.pdist(e.vector).square().mul(-2).exp().mean().log() for e in batch.views.values()) / 2
    found = ContrastiveGap(contrastive(), 0.0, 1.0)(batch, batch)
    torch.testing.assert_close(found["uniformity"], expected.detach())
    assert "cross_uniformity" not in found and "temperature" in found


@pytest.mark.parametrize("cuts", [(4,), (1, 4)])
@pytest.mark.parametrize("each", [1, 2])
def test_ranks_and_tiles(cuts: tuple[int, ...], each: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = encoded(6, each, labels=torch.tensor([7, -1, 7, -1, 3, -1]))
    batch.weights = torch.linspace(1, 2, 6)

    def make() -> ContrastiveGap:
        return ContrastiveGap(InfoNCE(0.1, "log", symmetric=True), cross_uniformity=1.0)

    check_ranks(make, batch, cuts)
    check_tiles(make, batch, monkeypatch)


def test_gradient_is_that_of_finite_differences() -> None:
    objective = ContrastiveGap(contrastive(), cross_uniformity=1.0)
    batch = encoded(4)

    def run(query: Tensor, target: Tensor) -> Tensor:
        batch.views["query"].vector, batch.views["target"].vector = query, target
        return objective(batch, batch)["loss"]

    assert torch.autograd.gradcheck(run, tuple(leaves(batch)))


def test_a_single_sample_has_nothing_to_be_driven_apart_from() -> None:
    batch = encoded(1)
    found = ContrastiveGap(contrastive(), 0.0, 1.0, 1.0)(batch, batch)["loss"]
    close(outcome(found, leaves(batch)), [torch.zeros(()), torch.zeros(1, WIDTH), torch.zeros(1, WIDTH)])


def test_analytic_values() -> None:
    """Equal pairs on two opposite points: alignment 0, both uniformities log of the mean of e^0 and e^-8."""
    batch = encoded(4)
    point = unit(1, WIDTH)
    for e in batch.views.values():
        e.vector = torch.cat([point, point, -point, -point])
    found = ContrastiveGap(contrastive(), cross_uniformity=1.0)(batch, batch)
    expected = ((4 + 8 * torch.tensor(-8.0, dtype=torch.float64).exp()) / 12).log()
    assert float(found["alignment"]) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(found["uniformity"], expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(found["cross_uniformity"], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("each", [1, 3])
def test_penalty_on_positive_pairs(each: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = encoded(5, each)
    batch.weights = torch.linspace(1, 2, 5)
    expected = contrastive()(batch, batch)["loss"] + 0.3 * alignment(batch)
    found = PositiveMargin(contrastive(), 0.3)(batch, batch)
    close(outcome(found["loss"], leaves(batch)), outcome(expected, leaves(batch)))
    torch.testing.assert_close(found["penalty"], alignment(batch).detach())
    same = ContrastiveGap(contrastive(), 0.3, 0.0)(batch, batch)
    torch.testing.assert_close(found["loss"], same["loss"])
    check_ranks(lambda: PositiveMargin(InfoNCE(0.1, "log")), batch)
    check_tiles(lambda: PositiveMargin(InfoNCE(0.1, "log")), batch, monkeypatch)


def test_margin_is_the_lowest_right_less_the_highest_wrong() -> None:
    batch = encoded(4, 2, labels=torch.tensor([7, -1, 7, -1]))
    with torch.no_grad():  # the text of a twin fits best, and is right
        batch.views["target"].vector[4] = batch.views["query"].vector[0]
    cosines = (batch.views["query"].vector @ batch.views["target"].vector.T).tolist()
    total = 0.0
    for i, row in enumerate(cosines):
        right = {i, 2 - i} if i in (0, 2) else {i}
        total += min(c for j, c in enumerate(row) if j // 2 in right) - max(
            c for j, c in enumerate(row) if j // 2 not in right
        )
    assert float(PositiveMargin(contrastive())(batch, batch)["margin"]) == pytest.approx(total / 4)
    one = encoded(1)
    assert float(PositiveMargin(contrastive())(one, one)["margin"]) == 0.0
