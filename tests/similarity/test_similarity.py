"""Every similarity against a slow loop over pairs and coordinates, against Monte Carlo, and at the ends of the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from encoded_rows import close, outcome, randn, unit
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.similarity import tiles
from zoo.similarity.cosine import Cosine
from zoo.similarity.distances import CSD, Wasserstein2
from zoo.similarity.match_probability import SOFT_ROOT, MatchProbability
from zoo.similarity.overlap import ExpectedLikelihood, Inclusion
from zoo.types import Embedding

WIDTH = 6
OFFICIAL = Inclusion("official", -3.0)
ALL = [Cosine(), CSD(), Wasserstein2(), ExpectedLikelihood(), Inclusion(), OFFICIAL, MatchProbability(3.0, 2.0)]
CLOSED = [one for one in ALL if not isinstance(one, MatchProbability)]


def rows(count: int, seed: int = 0) -> Embedding:
    return Embedding(
        unit(count, WIDTH, seed=seed).requires_grad_(), randn(count, WIDTH, seed=seed + 50).requires_grad_()
    )


def leaves(*sides: Embedding) -> list[Tensor]:
    return [part for side in sides for part in (side.vector, side.log_var) if part is not None]


def named(similarity: nn.Module) -> str:
    return type(similarity).__name__ + (" official" if similarity is OFFICIAL else "")


# ---- one cell, written from the formula, coordinate by coordinate ----------------------------------------------------


def cosine(m: Tensor, v: Tensor, n: Tensor, w: Tensor) -> Tensor:
    return sum(a * b for a, b in zip(m, n, strict=True))  # type: ignore[return-value]


def csd(m: Tensor, v: Tensor, n: Tensor, w: Tensor) -> Tensor:
    return -sum((a - b) ** 2 + s + t for a, s, b, t in zip(m, v, n, w, strict=True))  # type: ignore[return-value]


def wasserstein(m: Tensor, v: Tensor, n: Tensor, w: Tensor) -> Tensor:
    terms = ((a - b) ** 2 + (s.sqrt() - t.sqrt()) ** 2 for a, s, b, t in zip(m, v, n, w, strict=True))
    return -sum(terms)  # type: ignore[return-value]


def expected_likelihood(m: Tensor, v: Tensor, n: Tensor, w: Tensor) -> Tensor:
    return torch.distributions.Normal(n, (v + w).sqrt()).log_prob(m).sum()


def inclusion_exact(m: Tensor, v: Tensor, n: Tensor, w: Tensor) -> Tensor:
    """p^2 is a Gaussian of half the variance, times the integral of p^2, which is 1 / (2 sigma sqrt(pi))."""
    halved = torch.distributions.Normal(n, (v / 2 + w).sqrt()).log_prob(m)
    return (halved - (2 * (math.pi * v).sqrt()).log()).sum()


def inclusion_official(m: Tensor, v: Tensor, n: Tensor, w: Tensor) -> Tensor:
    """As the official code writes it: sums of precisions, and differences of large numbers."""
    p, q = math.exp(-3.0) / v, math.exp(-3.0) / w
    a, b, c = p + q / 2, 2 * m * p + n * q, m**2 * p + n**2 * q / 2
    return (-2 * v.log() - w.log() - a.log() / 2 + b**2 / (4 * a) - c).sum()


def match_probability(m: Tensor, v: Tensor, n: Tensor, w: Tensor) -> Tensor:
    noise = torch.randn(2, 1, 7, WIDTH, generator=torch.Generator().manual_seed(0)).double()
    total = torch.zeros((), dtype=torch.float64)
    for k in range(7):
        for l in range(7):  # noqa: E741
            x, y = m + v.sqrt() * noise[0, 0, k], n + w.sqrt() * noise[1, 0, l]
            total = total + torch.sigmoid(2.0 - 3.0 * ((x - y).square().sum() + SOFT_ROOT).sqrt()) / 49
    return total.log()


LOOPS = [cosine, csd, wasserstein, expected_likelihood, inclusion_exact, inclusion_official, match_probability]


@pytest.mark.parametrize(("similarity", "cell"), list(zip(ALL, LOOPS, strict=True)), ids=map(named, ALL))
@pytest.mark.parametrize("tile", [1, 1 << 22], ids=["tiles", "one piece"])
def test_equals_the_loop(similarity: nn.Module, cell: Callable, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE_CELLS", tile * 100 if isinstance(similarity, MatchProbability) else tile * 13)
    queries, keys, weights = rows(3), rows(5, seed=3), randn(3, 5, seed=9)
    found = similarity(queries, keys)
    assert found.shape == (3, 5) and found.dtype == torch.float64
    loop = torch.stack(
        [
            torch.stack([cell(m, l.exp(), n, k.exp()) for n, k in zip(keys.vector, keys.log_var, strict=True)])
            for m, l in zip(queries.vector, queries.log_var, strict=True)  # noqa: E741
        ]
    )
    close([found.detach()], [loop.detach()])
    tensors = leaves(queries, keys)
    close(outcome((found * weights).sum(), tensors), outcome((loop * weights).sum(), tensors))


@pytest.mark.parametrize("similarity", ALL, ids=named)
def test_gradients(similarity: nn.Module) -> None:
    sides = rows(2), rows(3, seed=3)

    def run(m: Tensor, v: Tensor, n: Tensor, w: Tensor) -> Tensor:
        return similarity(Embedding(m, v), Embedding(n, w))

    assert torch.autograd.gradcheck(run, tuple(leaves(*sides)))


# ---- expectations ----------------------------------------------------------------------------------------------------


def samples(embedding: Embedding, count: int, seed: int) -> Tensor:
    noise = randn(count, *embedding.vector.shape, seed=seed)
    return (embedding.vector + (embedding.log_var / 2).exp() * noise).detach()


def density(of: Embedding, at: Tensor) -> Tensor:
    return torch.distributions.Normal(of.vector, (of.log_var / 2).exp()).log_prob(at).sum(-1).detach().exp()


def within(estimates: Tensor, expected: float) -> None:
    """The mean of the estimates is within five of its standard errors of the expected value."""
    error = float(estimates.std() / len(estimates) ** 0.5)
    assert abs(float(estimates.mean()) - expected) < 5 * error
    assert error < 0.05 * abs(expected)


def test_closed_forms_are_the_expectations_they_claim_to_be() -> None:
    query, key = rows(1), rows(1, seed=3)
    x, y = samples(query, 400_000, 7), samples(key, 400_000, 8)
    within((x - y).square().sum((1, 2)), -CSD()(query, key).item())
    within(density(key, x).flatten(), ExpectedLikelihood()(query, key).exp().item())
    within((density(query, x) * density(key, x)).flatten(), Inclusion()(query, key).exp().item())


def test_match_probability_converges() -> None:
    query, key = rows(1), rows(1, seed=3)
    x, y = samples(query, 400_000, 7), samples(key, 400_000, 8)
    expected = torch.sigmoid(2.0 - ((x - y).square().sum((1, 2)) + SOFT_ROOT).sqrt())
    many = torch.stack([MatchProbability(1.0, 2.0, 7, seed)(query, key).exp().detach()[0, 0] for seed in range(1000)])
    error = float((many.var() / len(many) + expected.var() / len(expected)).sqrt())
    assert abs(float(many.mean() - expected.mean())) < 5 * error < 0.03


# ---- what they mean --------------------------------------------------------------------------------------------------


def test_csd_prefers_the_certain_of_two_and_wasserstein_the_equally_wide() -> None:
    mean = unit(1, WIDTH)
    query = Embedding(mean, torch.full((1, WIDTH), -2.0))
    keys = Embedding(mean.expand(2, -1), torch.tensor([[-6.0], [-2.0]]).expand(2, WIDTH))
    assert CSD()(query, keys).argmax() == 0
    found = Wasserstein2()(query, keys)
    assert found.argmax() == 1 and abs(found[0, 1].item()) < 1e-12


@pytest.mark.parametrize("similarity", [Inclusion(), Inclusion("official"), OFFICIAL], ids=str)
def test_the_narrow_lies_within_the_wide(similarity: Inclusion) -> None:
    narrow, wide = (Embedding(unit(1, WIDTH), torch.full((1, WIDTH), level)) for level in (-5.0, -1.0))
    assert similarity(narrow, wide).item() > similarity(wide, narrow).item()


def test_match_probability_does_not_depend_on_the_company() -> None:
    queries, keys = rows(4), rows(5, seed=3)
    alone = MatchProbability()(
        Embedding(queries.vector[2:3], queries.log_var[2:3]), Embedding(keys.vector[4:], keys.log_var[4:])
    )
    torch.testing.assert_close(alone, MatchProbability()(queries, keys)[2:3, 4:])


# ---- the ends of the numbers -----------------------------------------------------------------------------------------


def extreme(level: float, count: int = 4) -> Embedding:
    return Embedding(unit(count, WIDTH).float().requires_grad_(), torch.full((count, WIDTH), level).requires_grad_())


@pytest.mark.parametrize("similarity", ALL, ids=named)
@pytest.mark.parametrize("left", [-50.0, 50.0, -1e4, -math.inf])
@pytest.mark.parametrize("right", [-50.0, 50.0, 1e4])
def test_finite_in_fp32(similarity: nn.Module, left: float, right: float) -> None:
    """Equal means among them, for which a naive density is 0 / 0."""
    queries, keys = extreme(left), extreme(right)
    scores = similarity(queries, keys)
    assert scores.dtype == torch.float32 and torch.isfinite(scores).all()
    for part in outcome(1000 * scores.mean(), leaves(queries, keys)):
        assert torch.isfinite(part).all()


@pytest.mark.parametrize("similarity", CLOSED, ids=named)
def test_half_precision_is_raised_under_autocast(similarity: nn.Module) -> None:
    queries, keys = (
        Embedding(side.vector.detach().bfloat16(), side.log_var.detach().bfloat16())
        for side in (rows(3), rows(5, seed=3))
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = similarity(queries, keys)
    exact = similarity(*(Embedding(s.vector.double(), s.log_var.double()) for s in (queries, keys)))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


def test_points_have_no_distribution() -> None:
    for similarity in ALL[1:]:
        with pytest.raises(RecipeError, match="log_var"):
            similarity(rows(2), Embedding(unit(2, WIDTH)))
    with pytest.raises(RecipeError, match="eps"):
        Inclusion(eps=-10.0)
    with pytest.raises(RecipeError, match="forms"):
        Inclusion("close")  # type: ignore[arg-type]
