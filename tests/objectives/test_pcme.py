"""PCME against a loop over pairs of samples and against its official arithmetic; several ranks; extremes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from encoded_rows import WIDTH, check_ranks, check_tiles, close, encoded, leaves, outcome, trained, unit
from torch import Tensor

from zoo.errors import RecipeError
from zoo.metrics.probabilistic import total_variance
from zoo.objectives.pcme import PCME
from zoo.types import Embedding, Encoded

SAMPLES = 3


def rows(samples: int = 5, each: int = 1, weighted: bool = True) -> Encoded:
    batch = encoded(samples, each, spread=-2.0, labels=torch.tensor([7, -1, 7, -1, 3, -1])[:samples])
    if weighted:
        batch.weights = torch.linspace(1, 2, samples).double()
    return batch


def make(form: str = "exact", duplicates: str = "positive", **options: float) -> PCME:
    options = {"scale": 4.0, "bias": 3.0, "vib": 0.05, "uniformity": 0.2} | options
    return PCME(samples=SAMPLES, form=form, duplicates=duplicates, **options).double()  # type: ignore[arg-type]


def sampled(batch: Encoded, objective: PCME, view: str, stream: int) -> Tensor:
    """(R, K, E), with the noise of the next step."""
    e = batch.views[view]
    std = e.log_var.exp() if objective.official else (e.log_var / 2).exp()
    noise = objective.draws.normal((len(e.vector), SAMPLES, WIDTH), e.vector, stream)
    return torch.stack(
        [torch.stack([m + s * noise[i, k] for k in range(SAMPLES)]) for i, (m, s) in enumerate(zip(e.vector, std))]  # noqa: B905
    )


def distance(x: Tensor, y: Tensor) -> Tensor:
    return (sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) + 1e-6).sqrt()  # type: ignore[operator,no-any-return]


def kl(batch: Encoded, view: str, at: Tensor) -> Tensor:
    weights, log_var = batch.weights[batch.owners[view]], batch.views[view].log_var
    return (weights[:, None] * -0.5 * (1 + log_var - at.square() - log_var.exp())).sum()


def loop(batch: Encoded, objective: PCME) -> Tensor:
    x, y = sampled(batch, objective, "query", 0), sampled(batch, objective, "target", 1)
    factor, count = 2 if objective.official else 1, len(batch.sample)
    match = torch.zeros((), dtype=torch.float64)
    for i, a in enumerate(batch.owners["query"].tolist()):
        for j, b in enumerate(batch.owners["target"].tolist()):
            twins = a != b and batch.labels[a] == batch.labels[b] and int(batch.labels[a]) >= 0
            if twins and objective.duplicates == "mask":
                continue
            yes = a == b or (twins and objective.duplicates == "positive")
            chance = torch.zeros((), dtype=torch.float64)
            for k in range(SAMPLES):
                for l in range(SAMPLES):  # noqa: E741
                    z = factor * (objective.bias - objective.scale * distance(x[i, k], y[j, l]))
                    chance = chance + torch.sigmoid(z if yes else -z) / SAMPLES**2
            match = match - batch.weights[a] * chance.log()
    divergence = torch.zeros((), dtype=torch.float64)
    for view, samples in (("query", x), ("target", y)):
        rows = 1 if objective.official else len(batch.owners[view])
        at = samples.mean(1) if objective.official else batch.views[view].vector
        divergence = divergence + kl(batch, view, at) / rows
    every = [*x.flatten(0, 1), *y.flatten(0, 1)]
    near = [(-2 * (a - b).square().sum()).exp() for i, a in enumerate(every) for j, b in enumerate(every) if i != j]
    uniformity = (sum(near) / len(near)).log()
    return 2 * match / (1 if objective.official else count) + 0.05 * divergence + 0.2 * uniformity


@pytest.mark.parametrize("form", ["exact", "official"])
@pytest.mark.parametrize("duplicates", ["positive", "mask", "keep"])
@pytest.mark.parametrize("each", [1, 2])
def test_equals_the_loop(form: str, duplicates: str, each: int) -> None:
    batch, objective = rows(4, each), make(form, duplicates)
    expected = loop(batch, objective)
    tensors = [*leaves(batch), *trained(objective)]
    close(outcome(objective(batch, batch)["loss"], tensors), outcome(expected, tensors))


@pytest.mark.parametrize("scale", [15.0, 1000.0])
def test_equals_the_official_form(scale: float) -> None:
    """Samples of all pairs side by side, exp(s) / (exp(s) + exp(-s)) in logarithms, sums; both directions."""
    batch, objective = rows(6, weighted=False), make("official", "keep", scale=scale, bias=15.0)
    x, y = sampled(batch, objective, "query", 0), sampled(batch, objective, "target", 1)
    logits = objective.bias - objective.scale * (
        ((x[:, None, :, None] - y[None, :, None]).square().sum(-1) + 1e-6).sqrt().flatten(2)
    )
    sign = 2 * torch.eye(6, dtype=torch.float64)[:, :, None] - 1
    even = torch.stack([logits, -logits], 3).logsumexp(3)
    matching = (math.log(SAMPLES**2) - (sign * logits - even).logsumexp(2)).sum()
    vib = kl(batch, "query", x.mean(1)) + kl(batch, "target", y.mean(1))
    uniformity = torch.pdist(torch.cat([x, y]).flatten(0, 1)).pow(2).mul(-2).exp().mean().log()
    expected = 2 * matching + 0.2 * uniformity + 0.05 * vib
    tensors = [*leaves(batch), *trained(objective)]
    close(outcome(objective(batch, batch)["loss"], tensors), outcome(expected, tensors))


@pytest.mark.parametrize("form", ["exact", "official"])
def test_ranks_and_tiles(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (1, 2):
        batch = rows(6, each)
        check_ranks(lambda: make(form), batch, (1, 4))
        check_tiles(lambda: make(form), batch, monkeypatch)


@pytest.mark.parametrize("form", ["exact", "official"])
def test_gradcheck(form: str) -> None:
    batch = rows(3)

    def run(*parts: Tensor) -> Tensor:
        views = {name: Embedding(*parts[2 * n : 2 * n + 2]) for n, name in enumerate(batch.views)}
        moved = Encoded(views, batch.owners, batch.keys, batch.labels, batch.weights, batch.sample)
        return make(form).eval()(moved, moved)["loss"]

    assert torch.autograd.gradcheck(run, tuple(leaves(batch)))


def test_the_loss_is_that_of_points_where_nothing_is_uncertain() -> None:
    batch = rows(5, weighted=False)
    for e in batch.views.values():
        e.log_var = torch.full((5, WIDTH), -55.0, dtype=torch.float64)
    objective = make(duplicates="keep", vib=0.0, uniformity=0.0)
    query, target = (batch.views[name].vector.detach() for name in ("query", "target"))
    logits = 3.0 - 4.0 * (torch.cdist(query, target).square() + 1e-6).sqrt()
    expected = 2 * F.binary_cross_entropy_with_logits(logits, torch.eye(5, dtype=torch.float64), reduction="sum") / 5
    torch.testing.assert_close(objective(batch, batch)["loss"].detach(), expected, rtol=1e-8, atol=1e-8)


def test_every_step_of_training_draws_anew_and_resumes() -> None:
    batch, objective = rows(), make()
    first, second = (objective(batch, batch)["loss"] for _ in range(2))
    assert not torch.equal(first, second)
    again = make()
    again.load_state_dict(objective.state_dict())
    third = objective(batch, batch)["loss"]
    assert torch.equal(third, again(batch, batch)["loss"])
    objective.eval()
    assert torch.equal(objective(batch, batch)["loss"], objective(batch, batch)["loss"])


@pytest.mark.parametrize("level", [-50.0, 50.0, -math.inf])
@pytest.mark.parametrize("form", ["exact", "official"])
def test_finite_at_the_ends(level: float, form: str) -> None:
    """With equal means among the targets, so that samples without variance coincide."""
    batch = encoded(4, spread=0.0)
    for e in batch.views.values():
        e.vector = unit(1, WIDTH).float().expand(4, -1).clone().requires_grad_()
        e.log_var = torch.full((4, WIDTH), level).requires_grad_()
    objective = PCME(1000.0, 5.0, uniformity=1.0, form=form)  # type: ignore[arg-type]
    for part in outcome(objective(batch, batch)["loss"], [*leaves(batch), *trained(objective)]):
        assert torch.isfinite(part).all()


def test_settings_and_what_is_ranked_by() -> None:
    assert len(trained(PCME())) == 2 and not trained(PCME(learn="no"))
    with pytest.raises(RecipeError, match="at least one sample"):
        PCME(samples=0)
    batch = rows(6)
    sides = batch.views["query"], batch.views["target"]
    scores = PCME().pair_scores(*sides)
    assert scores.shape == (6, 6) and bool((scores < 0).all())
    doubled = [Embedding(side.vector, 2 * side.log_var) for side in sides]  # its log_var is log sigma
    assert torch.equal(PCME(form="official").pair_scores(*sides), PCME(30.0, 30.0).pair_scores(*doubled))


@pytest.mark.parametrize("form", ["exact", "official"])
@pytest.mark.parametrize("spread", [-3.0, -1.0])
def test_scores_what_it_trains(form: str, spread: float) -> None:
    """The probability of one pair: of the loss, of the score, and by Monte Carlo from the formula of the form."""
    batch = encoded(1, spread=spread)
    sides = batch.views["query"], batch.views["target"]
    objective = PCME(2.0, 2.0, samples=200, vib=0.0, form=form, seed=4).double()  # type: ignore[arg-type]
    trained_for = math.exp(-float(objective(batch, batch)["loss"].detach()) / 2)
    scored = float(objective.match_log_probability(*sides).detach().exp())
    official = form == "official"
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(2, 100_000, WIDTH, generator=generator, dtype=torch.float64)
    stds = [(side.log_var.detach() * (1.0 if official else 0.5)).exp() for side in sides]
    x, y = (side.vector.detach() + std * one for side, std, one in zip(sides, stds, noise, strict=True))
    expected = float(torch.sigmoid((2 if official else 1) * (2 - 2 * (x - y).norm(dim=1))).mean())
    assert scored == pytest.approx(expected, abs=0.03) and trained_for == pytest.approx(expected, abs=0.03)
    variance = float(total_variance(objective.distribution(sides[0])).detach())
    assert variance == pytest.approx(float(stds[0].square().sum()), rel=1e-9)
