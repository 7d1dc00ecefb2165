"""Adjustments of single cells, each against a loop over its formula, through InfoNCE and in tiles."""

from __future__ import annotations

import math

import pytest
import torch
from encoded_rows import check_ranks, check_tiles, close, encoded, leaves, outcome
from torch import Tensor

from zoo.objectives.adjust import Adjustment, FalseNegativeFilter, HardestNegatives, Hardness, Margin
from zoo.objectives.infonce import InfoNCE
from zoo.types import Encoded

SCALE = 8.0


def value(cell: Tensor) -> float:
    return float(cell.detach())


def hardness(row: list[Tensor], i: int) -> list[Tensor]:
    """Each negative counts exp(9 cosine) times."""
    return [math.exp(9 * value(c)) * (SCALE * c).exp() for j, c in enumerate(row) if j != i] + [(SCALE * row[i]).exp()]


def margin(row: list[Tensor], i: int) -> list[Tensor]:
    return [(SCALE * c).exp() for j, c in enumerate(row) if j != i] + [(SCALE * (row[i] - 0.3)).exp()]


def without_false(row: list[Tensor], i: int) -> list[Tensor]:
    return [(SCALE * c).exp() for j, c in enumerate(row) if j == i or value(c) <= value(row[i]) + 0.1]


def hardest(row: list[Tensor], i: int) -> list[Tensor]:
    others = sorted((c for j, c in enumerate(row) if j != i), key=value)[-2:]
    return [(SCALE * c).exp() for c in [*others, row[i]]]


KINDS = {
    "hardness": (Hardness(9.0), hardness),
    "margin": (Margin(0.3), margin),
    "filter": (FalseNegativeFilter(0.1), without_false),
    "hardest": (HardestNegatives(2), hardest),
}


def loop(batch: Encoded, terms, own_margin: float) -> Tensor:
    query, target = batch.views["query"].vector, batch.views["target"].vector
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(query)):
        row = [query[i] @ y for y in target]
        total = total + sum(terms(row, i)).log() - SCALE * (row[i] - own_margin)
    return total / len(query)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("samples", [5, 9])
def test_equals_the_loop(name: str, samples: int) -> None:
    adjustment, terms = KINDS[name]
    batch = encoded(samples)
    found = InfoNCE(1 / SCALE, adjust=[adjustment]).double()(batch, batch)["loss"]
    expected = loop(batch, terms, 0.3 if name == "margin" else 0.0)
    close(outcome(found, leaves(batch)), outcome(expected, leaves(batch)))
    plain = InfoNCE(1 / SCALE).double()(batch, batch)["loss"]
    assert abs(value(found - plain)) > 1e-3


@pytest.mark.parametrize(
    "neutral",
    [Hardness(0.0), Margin(0.0), FalseNegativeFilter(2.1), HardestNegatives(100)],
    ids=lambda a: type(a).__name__,
)
def test_what_leaves_infonce_as_it_is(neutral: Adjustment) -> None:
    batch = encoded(6, labels=torch.tensor([7, -1, 7, -1, 3, -1]))
    found, plain = (InfoNCE(0.1, symmetric=True, adjust=a)(batch, batch)["loss"] for a in ([neutral], []))
    close(outcome(found, leaves(batch)), outcome(plain, leaves(batch)))


@pytest.mark.parametrize("name", KINDS)
def test_ranks_and_tiles(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = encoded(6, labels=torch.tensor([7, -1, 7, -1, 3, -1]))

    def make() -> InfoNCE:
        return InfoNCE(0.2, "log", symmetric=True, adjust=[KINDS[name][0]])

    check_ranks(make, batch)
    check_tiles(make, batch, monkeypatch)


def test_they_apply_in_order_and_stay_finite_at_extreme_temperature() -> None:
    batch = encoded(8)
    chain = [FalseNegativeFilter(0.1), HardestNegatives(3), Hardness(9.0), Margin(0.3)]
    found = InfoNCE(1e-3, max_scale=None, symmetric=True, adjust=chain)(batch, batch)["loss"]
    assert all(torch.isfinite(gradient).all() for gradient in outcome(found, leaves(batch)))
    both = InfoNCE(1 / SCALE, adjust=[FalseNegativeFilter(0.1), HardestNegatives(2)]).double()(batch, batch)["loss"]

    def filtered_then_hardest(row: list[Tensor], i: int) -> list[Tensor]:
        kept = [c for j, c in enumerate(row) if j != i and value(c) <= value(row[i]) + 0.1]
        return [(SCALE * c).exp() for c in [*sorted(kept, key=value)[-2:], row[i]]]

    torch.testing.assert_close(both, loop(batch, filtered_then_hardest, 0.0))
