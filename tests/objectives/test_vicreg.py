"""VICReg against loops over samples and dimensions, the official form, several ranks, and analytic values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from encoded_rows import WIDTH, check_ranks, close, encoded, leaves, outcome, unit
from torch import Tensor

from zoo.errors import RecipeError
from zoo.objectives.vicreg import VicReg
from zoo.types import Encoded


def slow(batch: Encoded, scaled: bool, target: float, epsilon: float) -> dict[str, Tensor]:
    """The three terms of the paper, entry by entry."""
    factor = WIDTH**0.5 if scaled else 1.0
    one, other = (batch.views[name].vector * factor for name in ("query", "target"))
    n = len(batch.sample)
    zero = torch.zeros((), dtype=torch.float64)
    apart = sum((batch.weights[i] * (one[i, j] - other[i, j]) ** 2 for i in range(n) for j in range(WIDTH)), zero) / n
    flat, repeated = zero, zero
    for rows in (one, other):
        means = [sum((rows[i, j] for i in range(n)), zero) / n for j in range(WIDTH)]

        def covariance(j: int, k: int, rows: Tensor = rows, means: list[Tensor] = means) -> Tensor:
            return sum(((rows[i, j] - means[j]) * (rows[i, k] - means[k]) for i in range(n)), zero) / (n - 1)

        for j in range(WIDTH):
            flat = flat + (target - (covariance(j, j) + epsilon).sqrt()).clamp(min=0) / WIDTH
            for k in range(WIDTH):
                repeated = repeated + (covariance(j, k) ** 2 / WIDTH if j != k else 0.0)
    return {"invariance": apart, "variance": flat, "covariance": repeated}


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("target", [1.0, 0.4])
def test_equals_the_loop(scaled: bool, target: float) -> None:
    batch = encoded(6)
    batch.weights = torch.linspace(1, 2, 6)
    found = VicReg(2.0, 3.0, 0.7, target, 1e-3, scaled)(batch, batch)
    terms = slow(batch, scaled, target, 1e-3)
    expected = 2 * terms["invariance"] + 3 * terms["variance"] + 0.7 * terms["covariance"]
    close(outcome(found["loss"], leaves(batch)), outcome(expected, leaves(batch)))
    for name, value in terms.items():
        torch.testing.assert_close(found[name], value.detach())


def test_official_form() -> None:
    """As the released code computes it with torch: mean squared error, halved variance term."""
    batch = encoded(6)
    x, y = (batch.views[name].vector * WIDTH**0.5 for name in ("query", "target"))
    flat = sum(F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() / 2 for z in (x, y))
    repeated = 0
    for z in (x, y):
        covariance = torch.cov(z.T)
        repeated = repeated + (covariance - covariance.diag().diag()).square().sum() / WIDTH
    expected = 25 * F.mse_loss(x, y) + 25 * flat + repeated
    torch.testing.assert_close(VicReg(form="official")(batch, batch)["loss"], expected)


@pytest.mark.parametrize("cuts", [(4,), (1, 4)])
@pytest.mark.parametrize("form", ["paper", "official"])
def test_ranks(cuts: tuple[int, ...], form: str) -> None:
    batch = encoded(6)
    batch.weights = torch.linspace(1, 2, 6)
    check_ranks(lambda: VicReg(form=form), batch, cuts)  # type: ignore[arg-type]


def test_gradient_is_that_of_finite_differences() -> None:
    batch = encoded(4)

    def run(query: Tensor, target: Tensor) -> Tensor:
        batch.views["query"].vector, batch.views["target"].vector = query, target
        return VicReg()(batch, batch)["loss"]

    assert torch.autograd.gradcheck(run, tuple(leaves(batch)))


def test_collapse_is_what_costs() -> None:
    """All in one point: nothing is apart and nothing repeated, and every dimension lacks its whole deviation."""
    batch = encoded(5)
    for e in batch.views.values():
        e.vector = unit(1, WIDTH).expand(5, WIDTH)
    found = VicReg(epsilon=1e-6)(batch, batch)
    assert float(found["invariance"]) == pytest.approx(0, abs=1e-12)
    assert float(found["covariance"]) == pytest.approx(0, abs=1e-12)
    assert float(found["variance"]) == pytest.approx(2 * (1 - 1e-3))


def test_vectors_spread_over_the_sphere_satisfy_the_variance() -> None:
    batch = encoded(4000)
    found = VicReg(1.0, 1.0, 1.0, target_deviation=0.95)(batch, batch)
    assert float(found["variance"]) == 0.0 and float(found["deviation"]) == pytest.approx(1, abs=0.02)
    assert float(VicReg(target_deviation=0.95, scaled=False)(batch, batch)["variance"]) > 1


def test_a_single_sample_is_only_drawn_together() -> None:
    batch = encoded(1)
    one, other = (batch.views[name].vector for name in ("query", "target"))
    expected = 25 * WIDTH * (one - other).square().sum()
    found = VicReg()(batch, batch)
    close(outcome(found["loss"], leaves(batch)), outcome(expected, leaves(batch)))
    assert all(torch.isfinite(value) for value in found.values())  # what is logged, too
    assert found["variance"].item() == found["covariance"].item() == 0.0
    assert found["deviation"].item() == pytest.approx(0.01)  # sqrt(epsilon)


def test_several_rows_of_a_sample_are_refused() -> None:
    batch = encoded(3, 2)
    with pytest.raises(RecipeError, match="one row per sample in the view 'target'"):
        VicReg()(batch, batch)
