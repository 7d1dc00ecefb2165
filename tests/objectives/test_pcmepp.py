"""PCME++ against a loop over pairs, against the official form of all pairs and coordinates; several ranks; extremes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from encoded_rows import WIDTH, check_ranks, check_tiles, close, encoded, leaves, outcome, trained, unit
from torch import Tensor

from zoo.errors import RecipeError
from zoo.objectives.bottleneck import EXPLOSION
from zoo.objectives.pcmepp import PCMEPP, with_pseudo_positives
from zoo.similarity.distances import CSD
from zoo.types import Embedding, Encoded, Mixture


def rows(samples: int = 5, each: int = 1, spread: float = -2.0, **options: object) -> Encoded:
    batch = encoded(samples, each, spread=spread, **options)  # type: ignore[arg-type]
    batch.weights = torch.linspace(1, 2, samples)
    return batch


def mixed(batch: Encoded, view: str = "query") -> Encoded:
    """Every second row of a view is mixed with the row that stands opposite."""
    owners = batch.owners[view]
    share = torch.linspace(0.55, 0.95, len(owners)).double()
    share[::2] = 1.0
    batch.mixed = {view: Mixture(owners.flip(0), share)}
    return batch


def logit(batch: Encoded, i: int, j: int, scale: Tensor, bias: Tensor) -> Tensor:
    x, y = batch.views["query"], batch.views["target"]
    distance = torch.zeros((), dtype=torch.float64)
    for d in range(WIDTH):
        distance = distance + (x.vector[i, d] - y.vector[j, d]) ** 2 + x.log_var[i, d].exp() + y.log_var[j, d].exp()
    return bias - scale * distance


def label(batch: Encoded, i: int, j: int, duplicates: str) -> float:
    """How much query i and target j match; NaN = the cell does not count."""

    def origins(view: str, row: int) -> list[tuple[int, float]]:
        own = int(batch.owners[view][row])
        if view not in batch.mixed:
            return [(own, 1.0)]
        share = float(batch.mixed[view].share[row])
        return [(own, share), (int(batch.mixed[view].partner[row]), 1 - share)]

    total, doubtful = 0.0, False
    for a, p in origins("query", i):
        for b, q in origins("target", j):
            twins = a != b and int(batch.labels[a]) == int(batch.labels[b]) >= 0
            total += p * q * (a == b or (twins and duplicates == "positive"))
            doubtful |= twins and duplicates == "mask" and p * q > 0
    return math.nan if doubtful and total == 0 else total


def kl(batch: Encoded, view: str) -> Tensor:
    e = batch.views[view]
    weights = batch.weights[batch.owners[view]]
    terms = [
        w * (m**2 + v.exp() - 1 - v) / 2
        for w, mean, log_var in zip(weights, e.vector, e.log_var, strict=True)
        for m, v in zip(mean, log_var, strict=True)
    ]
    return sum(terms) / len(terms)  # type: ignore[return-value]


def cell(z: Tensor, m: float) -> Tensor:
    return torch.zeros_like(z) if math.isnan(m) else -m * F.logsigmoid(z) - (1 - m) * F.logsigmoid(-z)


def raised(labels: list[float], logits: list[Tensor]) -> list[float]:
    best = max(m for m in labels if not math.isnan(m))
    own = max(float(z.detach()) for z, m in zip(logits, labels, strict=True) if m == best)
    return [best if float(z.detach()) >= own and not math.isnan(m) else m for z, m in zip(logits, labels, strict=True)]


def loop(batch: Encoded, objective: PCMEPP, smoothing: float = 0.0) -> Tensor:
    count, width = len(batch.owners["query"]), len(batch.owners["target"])
    z = [[logit(batch, i, j, objective.scale, objective.bias) for j in range(width)] for i in range(count)]
    m = [
        [smoothing + (1 - 2 * smoothing) * label(batch, i, j, objective.duplicates) for j in range(width)]
        for i in range(count)
    ]
    query_weight = batch.weights.double()[batch.owners["query"]] / count / width
    target_weight = batch.weights.double()[batch.owners["target"]] / count / width
    total = torch.zeros((), dtype=torch.float64)
    for i in range(count):
        pseudo = raised(m[i], z[i])
        for j in range(width):
            total = total + query_weight[i] * (2 * cell(z[i][j], m[i][j]) + 0.3 * cell(z[i][j], pseudo[j]))
    for j in range(width):
        column = [row[j] for row in z]
        pseudo = raised([row[j] for row in m], column)
        for i in range(count):
            total = total + target_weight[j] * 0.3 * cell(column[i], pseudo[i])
    return total + 0.05 * (kl(batch, "query") + kl(batch, "target"))


def make(duplicates: str = "positive", smoothing: float = 0.0, form: str = "exact", scale: float = 5.0) -> PCMEPP:
    options = {
        "pseudo_positives": 0.3,
        "vib": 0.05,
        "duplicates": duplicates,
        "label_smoothing": smoothing,
        "form": form,
    }
    return PCMEPP(scale, 4.0, **options).double()  # type: ignore[arg-type]


@pytest.mark.parametrize("duplicates", ["positive", "mask", "keep"])
@pytest.mark.parametrize("mixture", ["", "query", "target"])
@pytest.mark.parametrize(("each", "smoothing"), [(1, 0.0), (2, 0.01)])
def test_equals_the_loop(duplicates: str, mixture: str, each: int, smoothing: float) -> None:
    batch = rows(5, each, labels=torch.tensor([7, -1, 7, -1, 3]))
    batch = mixed(batch, mixture) if mixture else batch
    objective = make(duplicates, smoothing)
    found = objective(batch, batch)
    tensors = [*leaves(batch), *trained(objective)]
    close(outcome(found["loss"], tensors), outcome(loop(batch, objective, smoothing), tensors))
    assert found["pseudo_positives"] > 0


def official(batch: Encoded, scale: Tensor, bias: Tensor, matched: Tensor, pseudo: float, vib: float) -> Tensor:
    """The official arithmetic: a tensor of all pairs and coordinates, and the mean of all cells."""
    x, y = batch.views["query"], batch.views["target"]
    means = (x.vector[:, None] - y.vector[None]).square().sum(-1)
    logits = bias - scale * (means + (x.log_var.exp()[:, None] + y.log_var.exp()[None]).sum(-1))
    loss = 2 * F.binary_cross_entropy_with_logits(logits, matched)
    for z, m in ((logits, matched), (logits.T, matched.T)):
        best, place = m.max(dim=1)
        near = z >= z.gather(1, place[:, None])
        loss = loss + pseudo * F.binary_cross_entropy_with_logits(z, torch.where(near, best[:, None].expand_as(m), m))
    for e in (x, y):
        loss = loss - vib * 0.5 * (1 + e.log_var - e.vector.square() - e.log_var.exp()).mean()
    return loss


@pytest.mark.parametrize("scale", [5.0, 1000.0])
@pytest.mark.parametrize("shared", [False, True], ids=["one match", "two captions of one picture"])
def test_equals_the_official_form(scale: float, shared: bool) -> None:
    """Where a row has one match, or equal ones, both forms are one."""
    batch = encoded(6, spread=-2.0, labels=torch.tensor([7, -1, -1, 7, -1, 2]) if shared else None)
    matched = torch.eye(6, dtype=torch.float64)
    if shared:
        matched[0, 3] = matched[3, 0] = 1
        for e in batch.views.values():  # as far away as the own one, so that "the first" and "the most probable" agree
            e.vector, e.log_var = (part.detach()[[0, 1, 2, 0, 4, 5]].requires_grad_() for part in (e.vector, e.log_var))
    objective = make(scale=scale)
    tensors = [*leaves(batch), *trained(objective)]
    expected = official(batch, objective.scale, objective.bias, matched, 0.3, 0.05)
    close(outcome(objective(batch, batch)["loss"], tensors), outcome(expected, tensors))


@pytest.mark.parametrize("mixture", ["", "query"])
def test_ranks_and_tiles(mixture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (1, 2):
        batch = rows(6, each, labels=torch.tensor([7, -1, 7, -1, 3, -1]))
        if mixture:
            batch = mixed(batch)
            batch.mixed["query"].partner = torch.tensor([3, 2, 1, 0, 5, 4])  # of the same rank
        for duplicates in ("positive", "mask", "keep"):
            check_ranks(lambda d=duplicates: make(d), batch)
            check_tiles(lambda d=duplicates: make(d), batch, monkeypatch)


@pytest.mark.parametrize("form", ["exact", "official"])
def test_an_exploded_divergence_is_dropped_by_the_official_form_alone(form: str) -> None:
    batch = rows()
    batch.views["target"].log_var = torch.full_like(batch.views["target"].log_var, 12.0).requires_grad_()
    found = make(form=form)(batch, batch)
    assert (float(found["vib"]) > EXPLOSION) is (form == "exact")
    torch.testing.assert_close(
        found["vib"], kl(batch, "query").detach() + (kl(batch, "target") if form == "exact" else 0)
    )
    check_ranks(lambda: make(form=form), batch)


def test_gradcheck() -> None:
    batch = rows(3)

    def run(*parts: Tensor) -> Tensor:
        queries, targets = Embedding(*parts[:2]), Embedding(*parts[2:4])
        objective = make()
        del objective.scale, objective.bias
        objective.scale, objective.bias = parts[4:]
        moved = Encoded(
            {"query": queries, "target": targets}, batch.owners, batch.keys, batch.labels, batch.weights, batch.sample
        )
        return objective(moved, moved)["loss"]

    numbers = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (5.0, 4.0)]
    assert torch.autograd.gradcheck(run, (*leaves(batch), *numbers))


def test_pseudo_positives_of_a_row() -> None:
    labels = torch.tensor([[1.0, 0.0, 0.0, -1.0], [0.0, 0.6, 0.4, 0.0], [0.0, 0.0, 0.0, 0.0]])
    logits = torch.tensor([[2.0, 3.0, 1.0, 9.0], [0.0, 1.0, 2.0, 0.5], [1.0, 2.0, 3.0, 4.0]])
    expected = torch.tensor([[1.0, 1.0, 0.0, -1.0], [0.0, 0.6, 0.6, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert torch.equal(with_pseudo_positives(labels, logits), expected)


@pytest.mark.parametrize("level", [-50.0, 50.0, -math.inf])
@pytest.mark.parametrize("form", ["exact", "official"])
def test_finite_at_the_ends(level: float, form: str) -> None:
    batch = encoded(4, spread=0.0)
    for e in batch.views.values():
        e.vector = unit(4, WIDTH).float().requires_grad_()
        e.log_var = torch.full((4, WIDTH), level).requires_grad_()
    objective = PCMEPP(1000.0, 5.0, form=form)  # type: ignore[arg-type]
    for part in outcome(objective(batch, batch)["loss"], [*leaves(batch), *trained(objective)]):
        assert torch.isfinite(part).all()


def test_what_is_learned_and_needed_and_ranked_by() -> None:
    assert len(trained(PCMEPP())) == 2 and not trained(PCMEPP(learn="no"))
    batch = encoded(4)
    with pytest.raises(RecipeError, match="log_var"):
        PCMEPP()(batch, batch)
    batch = rows(4)
    sides = batch.views["query"], batch.views["target"]
    torch.testing.assert_close(PCMEPP().pair_scores(*sides), CSD()(*sides))


def test_its_probabilities_are_those_of_the_loss() -> None:
    batch = encoded(5, spread=0.5)
    objective = PCMEPP(0.2, 3.0, pseudo_positives=0.0, vib=0.0).double()
    p = objective.match_log_probability(batch.views["query"], batch.views["target"]).exp()
    expected = F.binary_cross_entropy(p, torch.eye(5, dtype=p.dtype))
    torch.testing.assert_close(objective(batch, batch)["match"].to(p.dtype), expected, rtol=1e-8, atol=1e-8)
