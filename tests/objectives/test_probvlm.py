"""ProbVLM's likelihood against densities of torch, loops and the official arithmetic; its variance against Monte Carlo."""

from __future__ import annotations

import math

import pytest
import torch
from encoded_rows import WIDTH, check_ranks, close, encoded, leaves, outcome, randn, unit
from torch import Tensor

from zoo.errors import RecipeError
from zoo.objectives.generalised_gaussian import (
    log_variance,
    log_width,
    negative_log_likelihood,
    official_negative_log_likelihood,
)
from zoo.objectives.probvlm import ProbVLM
from zoo.types import Embedding, Encoded


def rows(samples: int = 5, each: int = 1) -> Encoded:
    batch = encoded(samples, each, spread=-2.0)
    batch.weights = torch.linspace(1, 2, samples).double()
    for n, e in enumerate(batch.views.values()):
        e.given = unit(len(e.vector), WIDTH, seed=60 + n)
        e.log_shape = (randn(len(e.vector), WIDTH, seed=70 + n) / 2).requires_grad_()
    return batch


def make(form: str = "exact") -> ProbVLM:
    return ProbVLM(1.0, 0.3, 0.2, form)  # type: ignore[arg-type]


@pytest.mark.parametrize(("shape", "density"), [(1.0, torch.distributions.Laplace), (2.0, torch.distributions.Normal)])
def test_is_a_known_density_at_known_shapes(shape: float, density: type) -> None:
    residual, log_alpha = randn(200), randn(200, seed=1)
    width = log_alpha.exp() / (2**0.5 if shape == 2 else 1)
    expected = -density(torch.zeros(200, dtype=torch.float64), width).log_prob(residual) - math.log(2)
    found = negative_log_likelihood(residual, log_alpha, torch.full_like(residual, math.log(shape)))
    close([found], [expected])
    variance = log_variance(log_alpha, torch.full_like(residual, math.log(shape)))
    close([variance], [(width.square() * (2 if shape == 1 else 1)).log()])


@pytest.mark.parametrize("shape", [0.6, 1.0, 2.0, 5.0])
def test_integrates_to_one_and_has_its_variance(shape: float) -> None:
    """|x / alpha|^beta is a Gamma variable; and the density by the trapezoid rule."""
    log_shape, log_alpha = torch.tensor(shape, dtype=torch.float64).log(), torch.tensor(-0.7, dtype=torch.float64)
    torch.manual_seed(0)
    power = torch.distributions.Gamma(1 / shape, 1.0).sample((400_000,)).double()
    squares = (log_alpha.exp() * power.pow(1 / shape)).square()
    assert abs(float(squares.mean() / log_variance(log_alpha, log_shape).exp()) - 1) < 0.03
    x = torch.linspace(-60, 60, 4_000_001, dtype=torch.float64)
    density = (-negative_log_likelihood(x, log_alpha, log_shape)).exp() / 2
    assert float(torch.trapezoid(density, x)) == pytest.approx(1, abs=1e-4)


def test_width_is_the_inverse_of_the_variance() -> None:
    log_var, log_shape = randn(50), randn(50, seed=1)
    close([log_variance(log_width(log_var, log_shape), log_shape)], [log_var])


def cell(r: Tensor, log_var: Tensor, log_shape: Tensor, form: str) -> Tensor:
    beta = log_shape.exp()
    ratio = (torch.lgamma(3 / beta) - torch.lgamma(1 / beta)).exp()
    alpha = (log_var.exp() / ratio).sqrt()
    if form == "exact":
        return (r.abs() / alpha) ** beta - (beta / alpha).log() + torch.lgamma(1 / beta)
    inverse, beta = 1 / alpha + 1e-4, beta + 1e-4
    product = (r.abs() * inverse * beta).clamp(min=1e-4, max=1e3)
    return product - inverse.log() + torch.lgamma(beta.pow(-1)) - beta.log()


def loop(batch: Encoded, form: str) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for adapted in ("query", "target"):
        for frozen in ("query", "target"):
            terms = []
            for i, a in enumerate(batch.owners[adapted].tolist()):
                for j, b in enumerate(batch.owners[frozen].tolist()):
                    if a == b and (adapted != frozen or i == j):
                        e, z = batch.views[adapted], batch.views[frozen].given[j]
                        for d in range(WIDTH):
                            r = e.vector[i, d] - z[d]
                            nll = cell(r, e.log_var[i, d], e.log_shape[i, d], form)
                            terms.append(batch.weights[a] * (r.abs() + 0.3 * nll))
            total = total + (1.0 if adapted == frozen else 0.2) * sum(terms) / len(terms)
    return total


@pytest.mark.parametrize("form", ["exact", "official"])
@pytest.mark.parametrize("each", [1, 2])
def test_equals_the_loop_on_one_rank_and_on_several(form: str, each: int) -> None:
    batch = rows(each=each)
    close(outcome(make(form)(batch, batch)["loss"], leaves(batch)), outcome(loop(batch, form), leaves(batch)))
    check_ranks(lambda: make(form), batch, (1, 4))


@pytest.mark.parametrize("form", ["exact", "official"])
def test_gradcheck(form: str) -> None:
    batch = rows(3)

    def run(*parts: Tensor) -> Tensor:
        views = {
            name: Embedding(parts[3 * n], parts[3 * n + 1], given=e.given, log_shape=parts[3 * n + 2])
            for n, (name, e) in enumerate(batch.views.items())
        }
        moved = Encoded(views, batch.owners, batch.keys, batch.labels, batch.weights, batch.sample)
        return make(form)(moved, moved)["loss"]

    assert torch.autograd.gradcheck(run, tuple(leaves(batch)))


@pytest.mark.parametrize("likelihood", [negative_log_likelihood, official_negative_log_likelihood])
@pytest.mark.parametrize("log_var", [-50.0, 50.0])
@pytest.mark.parametrize("log_shape", [-50.0, 0.0, 3.0, 50.0])
def test_finite_at_the_ends(likelihood, log_var: float, log_shape: float) -> None:
    tensors = [
        torch.tensor([0.0, 1e-30, 0.5, -2.0], requires_grad=True),
        torch.full((4,), log_var, requires_grad=True),
        torch.full((4,), log_shape, requires_grad=True),
    ]
    found = likelihood(tensors[0], log_width(*tensors[1:]), tensors[2])
    for part in outcome(1000 * found.sum(), tensors):
        assert torch.isfinite(part).all()


def test_an_entry_without_an_adapter_is_named() -> None:
    batch = encoded(4, spread=0.0)
    with pytest.raises(RecipeError, match="`log_shape` of the view 'query'"):
        ProbVLM()(batch, batch)
