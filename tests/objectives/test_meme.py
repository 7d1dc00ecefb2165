"""MEME against a loop written from its formula and densities of torch; samples that lack a view; ranks; the ends."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from encoded_rows import WIDTH, close, encoded, leaves, outcome, randn, share_of, trained, unit
from torch import Tensor
from torch.distributions import Categorical, Independent, Laplace, MixtureSameFamily, Normal, kl_divergence

from zoo.errors import RecipeError
from zoo.objectives.meme import MEME
from zoo.similarity.distances import Wasserstein2
from zoo.types import Embedding, Encoded

WIDTHS = {"query": 4, "target": 7}
FORMS = ["exact", "official"]


def rows(samples: int = 6, each: int = 1, lone: bool = True) -> Encoded:
    """If `lone`, sample 1 has no target and sample 3 no query."""
    whole = encoded(samples, each, spread=-1.0)
    whole.weights = torch.linspace(1, 2, samples).double()
    for n, (name, e) in enumerate(whole.views.items()):
        e.given = unit(len(e.vector), WIDTHS[name], seed=60 + n)
    if lone:
        for name, without in (("query", 3), ("target", 1)):
            kept, e = whole.owners[name] != without, whole.views[name]
            moments = [part.detach()[kept].requires_grad_() for part in (e.vector, e.log_var)]
            whole.views[name] = Embedding(*moments, given=e.given[kept])
            whole.owners[name], whole.keys[name] = whole.owners[name][kept], whole.keys[name][kept]
        for n, name in enumerate(("query", "target")):
            log_var = (randn(3, WIDTH, seed=90 + n) - 1).requires_grad_()
            whole.views[f"{name}_pseudo"] = Embedding(unit(3, WIDTH, seed=80 + n).requires_grad_(), log_var)
            whole.owners[f"{name}_pseudo"] = torch.full((3,), -(2**62))
    return whole


def make(form: str = "exact", **arguments: float) -> MEME:
    torch.manual_seed(0)
    return MEME(WIDTH, WIDTHS, hidden=5, samples=3, classifier=2.0, scale=0.7, form=form, **arguments).double()  # type: ignore[arg-type]


# ---- the loop ----------------------------------------------------------------------------------------------------------


def loop(objective: MEME, whole: Encoded, form: str) -> Tensor:
    noise = {
        name: objective.draws.normal((len(whole.owners[name]), 4, WIDTH), whole.views[name].vector, n)
        for n, name in enumerate(("query", "target"))
    }

    def normal(name: str, row: int) -> Normal:
        return Normal(whole.views[name].vector[row], (whole.views[name].log_var[row] / 2).exp())

    def likely(name: str, row: int, z: Tensor) -> Tensor:
        latent = whole.views[name].given[row] * math.sqrt(WIDTHS[name])
        return Laplace(objective.decoders[name](z), 0.7).log_prob(latent).sum()

    def drawn(name: str, row: int) -> list[Tensor]:
        q = normal(name, row)
        return [q.mean + q.stddev * noise[name][row, k] for k in range(4)]

    def bound(s: str, i: int, t: str, j: int) -> Tensor:
        z, *others = drawn(s, i)
        told = sum(likely(t, j, one).exp() for one in (z, *others)) / 4
        weight = (likely(t, j, z).exp() / told).detach()
        if form == "official":
            divergence = kl_divergence(normal(s, i), normal(t, j)).sum()
        else:
            divergence = (normal(s, i).log_prob(z) - normal(t, j).log_prob(z)).sum()
        return weight * (likely(s, i, z) - divergence - likely(t, j, z)) + 2.0 * told.log()

    def alone(s: str, i: int, t: str) -> Tensor:
        z, prior = drawn(s, i)[0], whole.views[f"{t}_pseudo"]
        parts = Independent(Normal(prior.vector, (prior.log_var / 2).exp()), 1)
        mixture = MixtureSameFamily(Categorical(logits=torch.zeros(3, dtype=z.dtype)), parts)
        return likely(s, i, z) + mixture.log_prob(z) - normal(s, i).log_prob(z).sum()

    terms = []
    for s, t in (("query", "target"), ("target", "query")):
        for i, owner in enumerate(whole.owners[s].tolist()):
            partners = [j for j, other in enumerate(whole.owners[t].tolist()) if other == owner]
            half = 1.0 if form == "official" else 0.5
            terms += [(half, whole.weights[owner] * bound(s, i, t, j)) for j in partners]
            terms += [] if partners else [(None, whole.weights[owner] * alone(s, i, t))]
    pairs = sum(1 for half, _ in terms if half) // 2
    count = pairs + sum(1 for half, _ in terms if half is None)
    return -sum((1.0 if half is None else half) * value for half, value in terms) / count


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("each", "lone"), [(1, True), (2, True), (1, False)])
def test_equals_the_loop(form: str, each: int, lone: bool) -> None:
    whole, objective = rows(each=each, lone=lone), make(form)
    tensors = [*leaves(whole), *trained(objective)]
    expected = outcome(loop(objective, whole, form), tensors)
    close(outcome(objective(whole, whole)["loss"], tensors), expected)
    assert min(float(value.abs().max()) for value in expected) > 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_ranks_add_up_to_one_process(form: str) -> None:
    """Rank 0 has all the samples that lack a view; every rank has the pseudo-inputs."""
    whole, objective = rows(), make(form)
    tensors = [*leaves(whole), *trained(objective)]
    total = None
    for start, stop in pairwise((0, 4, 6)):
        rank, part = make(form), share_of(whole, start, stop)
        for name in ("query_pseudo", "target_pseudo"):
            part.views[name], part.owners[name] = whole.views[name], whole.owners[name]
        shares = outcome(rank(part, whole)["loss"], [*leaves(whole), *trained(rank)])
        total = shares if total is None else [left + right for left, right in zip(total, shares, strict=True)]
    close(total, outcome(objective(whole, whole)["loss"], tensors))


def test_noise_differs_between_training_steps_alone() -> None:
    whole, objective = rows(), make()
    first, second = (float(objective(whole, whole)["loss"].detach()) for _ in range(2))
    assert first != second
    objective.eval()
    first, second = (float(objective(whole, whole)["loss"].detach()) for _ in range(2))
    assert first == second


# ---- what it means -----------------------------------------------------------------------------------------------------


def test_is_a_lower_bound_of_the_joint_likelihood() -> None:
    """L(s, t) with a = 1 is at most log p(s|t) on average, which in one dimension is an integral over a grid."""
    torch.manual_seed(0)
    views = {name: 1 for name in WIDTHS}
    objective = MEME(1, views, hidden=3, samples=200, classifier=1.0).double()
    ones, size = torch.ones(400, 1, dtype=torch.float64), 400
    both = {"query": (0.4, -1.0), "target": (-0.3, 0.2)}
    whole = encoded(size)
    for name, (mean, log_var) in both.items():
        whole.views[name] = Embedding(ones * mean, ones * log_var, given=ones)
    found = -float(objective(whole, whole)["pairs"])
    grid = torch.linspace(-30, 30, 200_001, dtype=torch.float64)[:, None]
    evidence = 0.0
    for s, t in (("query", "target"), ("target", "query")):
        mean, log_var = both[t]
        prior = Normal(mean, math.exp(log_var / 2)).log_prob(grid[:, 0])
        likelihood = Laplace(objective.decoders[s](grid)[:, 0], 1.0).log_prob(torch.ones(1).double())
        evidence += float(torch.trapezoid((prior + likelihood).exp(), grid[:, 0]).log().detach()) / 2
    assert found < evidence


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ends", [(-20.0, -20.0), (20.0, 20.0), (-20.0, 20.0), (20.0, -20.0)])
def test_finite_at_the_ends(form: str, ends: tuple[float, float]) -> None:
    """In fp32, for all four combinations of the log-variances of the two sides."""
    whole, objective = rows(), make(form).float()
    for name, e in whole.views.items():
        vector = e.vector.detach().float().requires_grad_()
        log_var = torch.full_like(vector, ends[name.startswith("target")], requires_grad=True)
        whole.views[name] = Embedding(vector, log_var, given=None if e.given is None else e.given.float())
    whole.weights = whole.weights.float()
    for part in outcome(objective(whole, whole)["loss"], [*leaves(whole), *trained(objective)]):
        assert torch.isfinite(part).all()


def test_importance_weights_lie_between_0_and_the_number_of_samples() -> None:
    objective, whole = make(), rows()
    weights = [float(objective(whole, whole)["weight"]) for _ in range(20)]
    assert min(weights) > 0 and max(weights) < 4
    assert sum(weights) / 20 == pytest.approx(1.0, abs=0.3)


def test_pairs_are_ranked_by_wasserstein_distances() -> None:
    whole = rows(lone=False)
    sides = whole.views["query"], whole.views["target"]
    assert torch.equal(make().pair_scores(*sides), Wasserstein2()(*sides))


# ---- what does not fit -------------------------------------------------------------------------------------------------


def test_what_is_missing_is_named() -> None:
    whole = rows()
    del whole.views["target_pseudo"]
    with pytest.raises(RecipeError, match="needs the view 'target_pseudo'"):
        make()(whole, whole)
    whole = rows()
    whole.views["query"].given = None
    with pytest.raises(RecipeError, match=r"view 'query'.*given: true"):
        make()(whole, whole)
    whole.views["query"].given = torch.ones(5, 9)
    with pytest.raises(RecipeError, match=r"'query' have 9 values; `widths` of MEME says 4"):
        make()(whole, whole)
    with pytest.raises(RecipeError, match="widths of the views"):
        MEME(WIDTH, {"query": 3})
