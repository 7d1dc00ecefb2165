"""ProLIP against loops over pairs and coordinates and against its official arithmetic; several ranks; extremes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from encoded_rows import WIDTH, check_ranks, check_tiles, close, encoded, leaves, outcome, randn, trained, unit
from torch import Tensor

from zoo.errors import RecipeError
from zoo.objectives.own_pairs import own_pairs
from zoo.objectives.prolip import LARGEST_INCLUSION, ProLIP
from zoo.objectives.siglip import SigLIP
from zoo.types import Embedding, Encoded

INCLUSIONS = (("query", "target", 0.2), ("query", "masked", 0.3))


def rows(samples: int = 6, each: int = 1, masked: tuple[int, ...] = (4, 1)) -> Encoded:
    """Queries and targets, and masked queries of some samples, in any order."""
    batch = encoded(samples, each, spread=-1.0, labels=torch.tensor([7, -1, 7, -1, 3, -1])[:samples])
    batch.weights = torch.linspace(1, 2, samples)
    count = len(masked)
    batch.views["masked"] = Embedding(
        unit(count, WIDTH, seed=40).requires_grad_(), randn(count, WIDTH, seed=41).requires_grad_()
    )
    batch.owners["masked"] = torch.tensor(masked)
    batch.keys["masked"] = torch.arange(500, 500 + count)
    return batch


def make(form: str = "exact", duplicates: str = "positive", scale: float = 3.0, temperature: float = 0.25) -> ProLIP:
    options = {"inclusions": INCLUSIONS, "inclusion_scale": scale, "vib": 0.05, "duplicates": duplicates, "form": form}
    return ProLIP(temperature, -2.0, "linear", **options).double()  # type: ignore[arg-type]


def inside(m: Tensor, l: Tensor, n: Tensor, k: Tensor, form: str, eps: float = -10.0) -> Tensor:  # noqa: E741
    """H(1 in 2) of a coordinate: the official arithmetic, and the integral by its own formula."""
    if form == "official":
        p, q = (eps - l).exp(), (eps - k).exp()
        a, b, c = p + q / 2, 2 * m * p + n * q, m**2 * p + n**2 * q / 2
        return -2 * l - k - a.log() / 2 + b**2 / (4 * a) - c
    v, w = l.exp(), k.exp()
    halved = torch.distributions.Normal(n, (v / 2 + w).sqrt()).log_prob(m)
    return halved - (2 * (math.pi * v).sqrt()).log()


def inclusion(batch: Encoded, inner: str, outer: str, form: str, scale: float) -> Tensor:
    one, two = batch.views[inner], batch.views[outer]
    terms = []
    for i, a in enumerate(batch.owners[inner].tolist()):
        for j, b in enumerate(batch.owners[outer].tolist()):
            if a == b:
                sides = one.vector[i], one.log_var[i], two.vector[j], two.log_var[j]
                difference = inside(*sides, form) - inside(*sides[2:], *sides[:2], form)
                terms.append(batch.weights[a] * -F.logsigmoid(scale * difference).mean())
    return sum(terms) / len(terms)  # type: ignore[return-value]


def kl(batch: Encoded, view: str, form: str) -> Tensor:
    e, weights = batch.views[view], batch.weights[batch.owners[view]]
    log = e.log_var / 2 if form == "official" else e.log_var
    return (weights[:, None] * -0.5 * (1 + log - e.vector.square() - log.exp())).mean()


def loop(batch: Encoded, objective: ProLIP, scale: float = 3.0) -> Tensor:
    x, y = batch.views["query"], batch.views["target"]
    total = torch.zeros((), dtype=torch.float64)
    for i, a in enumerate(batch.owners["query"].tolist()):
        for j, b in enumerate(batch.owners["target"].tolist()):
            twins = a != b and batch.labels[a] == batch.labels[b] and int(batch.labels[a]) >= 0
            if not (twins and objective.duplicates == "mask"):
                yes = a == b or (twins and objective.duplicates == "positive")
                spread = (x.log_var[i].exp() + y.log_var[j].exp()).sum()
                z = objective.temperature() * (x.vector[i] @ y.vector[j] - spread / 2) + objective.bias
                total = total - batch.weights[a] * F.logsigmoid(z if yes else -z) / len(batch.sample)
    for inner, outer, weight in INCLUSIONS:
        total = total + weight * inclusion(batch, inner, outer, objective.form, scale)
    return total + 0.05 * (kl(batch, "query", objective.form) + kl(batch, "target", objective.form))


@pytest.mark.parametrize("form", ["exact", "official"])
@pytest.mark.parametrize("duplicates", ["positive", "mask", "keep"])
@pytest.mark.parametrize("each", [1, 2])
def test_equals_the_loop(form: str, duplicates: str, each: int) -> None:
    batch, objective = rows(each=each), make(form, duplicates)
    found = objective(batch, batch)
    tensors = [*leaves(batch), *trained(objective)]
    close(outcome(found["loss"], tensors), outcome(loop(batch, objective), tensors))
    expected = inclusion(batch, "query", "masked", form, 3.0).detach()
    torch.testing.assert_close(found["query_in_masked"], expected)


@pytest.mark.parametrize("form", ["exact", "official"])
def test_ranks_and_tiles(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (1, 2):
        batch = rows(each=each)
        for cuts in ((4,), (2, 5)):  # the second cuts leave one rank without a masked row
            check_ranks(lambda: make(form), batch, cuts)
        check_tiles(lambda: make(form), batch, monkeypatch)


def test_all_certain_is_siglip() -> None:
    batch = encoded(6, spread=-500.0)
    found = ProLIP(vib=0.0, inclusions=(), duplicates="keep").double()(batch, batch)["loss"]
    torch.testing.assert_close(found, SigLIP(duplicates="keep").double()(batch, batch)["loss"])


@pytest.mark.parametrize("form", ["exact", "official"])
def test_an_exploded_inclusion_is_dropped_by_the_official_form_alone(form: str) -> None:
    batch = rows()
    batch.views["masked"].log_var = torch.full((2, WIDTH), -30.0, dtype=torch.float64).requires_grad_()
    found = make(form, scale=1e5)(batch, batch)
    assert (float(found["query_in_masked"]) > LARGEST_INCLUSION) is (form == "exact")
    assert float(found["query_in_masked"]) != 0 or form == "official"
    check_ranks(lambda: make(form, scale=1e5), batch)


@pytest.mark.parametrize("form", ["exact", "official"])
def test_gradcheck(form: str) -> None:
    batch = rows(4, masked=(2, 0))

    def run(*parts: Tensor) -> Tensor:
        views = {name: Embedding(*parts[2 * n : 2 * n + 2]) for n, name in enumerate(batch.views)}
        moved = Encoded(views, batch.owners, batch.keys, batch.labels, batch.weights, batch.sample)
        return make(form)(moved, moved)["loss"]

    assert torch.autograd.gradcheck(run, tuple(leaves(batch)))


@pytest.mark.parametrize("level", [-50.0, 50.0, -math.inf])
@pytest.mark.parametrize("other", [-50.0, 50.0, 0.0])
@pytest.mark.parametrize("form", ["exact", "official"])
def test_finite_at_the_ends(level: float, other: float, form: str) -> None:
    batch = rows()
    for name, e in batch.views.items():
        e.vector = e.vector.detach().float().requires_grad_()
        e.log_var = torch.full_like(e.vector, level if name == "query" else other).requires_grad_()
    objective = ProLIP(0.001, -10.0, "linear", inclusions=INCLUSIONS, form=form)  # type: ignore[arg-type]
    for part in outcome(objective(batch, batch)["loss"], [*leaves(batch), *trained(objective)]):
        assert torch.isfinite(part).all()


def test_settings_that_do_not_fit() -> None:
    batch = rows()
    with pytest.raises(RecipeError, match=r"'covered'.*query.*target"):
        ProLIP(inclusions=(("query", "covered", 1.0),))(batch, batch)
    with pytest.raises(RecipeError, match="eps"):
        ProLIP(eps=-10.0)
    batch.owners["masked"] = torch.tensor([90, 91])
    none = own_pairs(batch, batch, "query", "masked")
    assert none.total == len(none.left) == len(none.right) == 0 and float(none.share(torch.zeros(0))) == 0
    assert make("official").eps == -10.0 and len(trained(ProLIP())) == 2


def test_its_probabilities_are_those_of_the_loss() -> None:
    batch = encoded(5, spread=0.5)
    objective = ProLIP(temperature=0.5, bias=-1.0, inclusions=(), vib=0.0).double()
    p = objective.match_log_probability(batch.views["query"], batch.views["target"]).exp()
    expected = F.binary_cross_entropy(p, torch.eye(5, dtype=p.dtype), reduction="sum") / 5
    torch.testing.assert_close(objective(batch, batch)["match"].to(p.dtype), expected, rtol=1e-8, atol=1e-8)
