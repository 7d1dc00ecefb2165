"""InfoNCE against a slow fp64 loop written from the formula, and against analytic values."""

from __future__ import annotations

import math

import pytest
import torch

from zoo.errors import RecipeError
from zoo.objectives.infonce import InfoNCE
from zoo.objectives.temperature import Temperature
from zoo.types import Embedding, Encoded


def encoded(query, target, negatives=None, keys=None, labels=None, owners=None) -> Encoded:
    count = len(query)
    views = {"query": Embedding(query), "target": Embedding(target)}
    sample = torch.arange(count)
    owner = {"query": sample, "target": sample}
    key = {"query": torch.arange(count), "target": torch.arange(100, 100 + count)} | (keys or {})
    if negatives is not None:
        views["negatives"] = Embedding(negatives)
        owner["negatives"] = torch.arange(len(negatives)) % count if owners is None else owners
        key.setdefault("negatives", torch.arange(1000, 1000 + len(negatives)))
    labels = torch.full((count,), -1) if labels is None else labels
    return Encoded(views, owner, key, labels, torch.ones(count), sample)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).float()


def loop(query, target, temperature, allowed, extra=None, extra_allowed=None, smoothing=0.0) -> float:
    """Mean over queries of the smoothed cross-entropy, one cell after the other."""
    query, target = query.double(), target.double()
    total = 0.0
    for i in range(len(query)):
        scores = [float(query[i] @ target[j]) / temperature for j in range(len(target)) if j == i or allowed[i][j]]
        if extra is not None:
            more = range(len(extra))
            scores += [float(query[i] @ extra[j].double()) / temperature for j in more if extra_allowed[i][j]]
        log_z = math.log(sum(math.exp(s) for s in scores))
        own = float(query[i] @ target[i]) / temperature
        total += (1 - smoothing) * (log_z - own) + smoothing * sum(log_z - s for s in scores) / len(scores)
    return total / len(query)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("per_query", [0, 1, 3])
@pytest.mark.parametrize("negatives", ["own", "shared"])
def test_equals_the_loop(smoothing: float, per_query: int, negatives: str) -> None:
    q, t = unit(5, 8), unit(5, 8, seed=1)
    extra = unit(5 * per_query, 8, seed=2) if per_query else None
    owners = torch.arange(5).repeat_interleave(per_query) if per_query else None
    batch = encoded(q, t, extra, owners=owners)
    everyone = [[True] * 5] * 5
    extra_allowed = None
    if per_query:
        extra_allowed = [[negatives == "shared" or int(owners[j]) == i for j in range(len(extra))] for i in range(5)]
    objective = InfoNCE(0.05, label_smoothing=smoothing, negatives=negatives)
    expected = loop(q, t, 0.05, everyone, extra, extra_allowed, smoothing)
    assert objective(batch, batch)["loss"].item() == pytest.approx(expected, rel=1e-6)


def test_smoothing_is_torchs_where_nothing_is_masked() -> None:
    q, t = unit(6, 8), unit(6, 8, seed=1)
    batch = encoded(q, t)
    expected = torch.nn.functional.cross_entropy(q @ t.T / 0.07, torch.arange(6), label_smoothing=0.1)
    torch.testing.assert_close(InfoNCE(0.07, label_smoothing=0.1)(batch, batch)["loss"], expected)


def test_symmetric_is_the_mean_of_both_directions() -> None:
    q, t = unit(6, 8), unit(6, 8, seed=1)
    batch = encoded(q, t)
    logits, own = q @ t.T / 0.1, torch.arange(6)
    expected = (torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(InfoNCE(0.1, symmetric=True)(batch, batch)["loss"], expected)


@pytest.mark.parametrize("what", ["target", "query", "label"])
def test_false_negatives_are_masked(what: str) -> None:
    """Samples 0 and 2 are as right as one another, by equal target, equal query or equal label."""
    q, t = unit(4, 8), unit(4, 8, seed=1)
    keys, labels = {}, None
    if what == "label":
        labels = torch.tensor([7, -1, 7, -1])
    else:
        keys = {what: torch.tensor([5, 6, 5, 8])}
    batch = encoded(q, t, keys=keys, labels=labels)
    allowed = [[{i, j} != {0, 2} for j in range(4)] for i in range(4)]
    loss = InfoNCE(0.05)(batch, batch)["loss"].item()
    assert loss == pytest.approx(loop(q, t, 0.05, allowed), rel=1e-6)
    unmasked = InfoNCE(0.05, duplicates="keep")(batch, batch)["loss"].item()
    assert unmasked == pytest.approx(loop(q, t, 0.05, [[True] * 4] * 4), rel=1e-6)


def test_a_mined_negative_that_is_the_positive_is_masked() -> None:
    q, t = unit(2, 8), unit(2, 8, seed=1)
    keys = {"target": torch.tensor([5, 6]), "negatives": torch.tensor([5, 9])}
    batch = encoded(q, t, t[[0, 0]], keys=keys, owners=torch.tensor([0, 1]))
    expected = loop(q, t, 0.05, [[True] * 2] * 2, t[[0, 0]], [[False, True], [True, True]])
    assert InfoNCE(0.05)(batch, batch)["loss"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("duplicates", ["mask", "keep"])
def test_rows_of_the_own_side_are_negatives_too(duplicates: str) -> None:
    """Queries 1 and 3 are equal content, so neither is a negative of the other unless duplicates are kept."""
    q, t = unit(5, 8), unit(5, 8, seed=1)
    batch = encoded(q, t, keys={"query": torch.tensor([0, 1, 2, 1, 4])})
    apart = [[i == j or {i, j} != {1, 3} or duplicates == "keep" for j in range(5)] for i in range(5)]
    others = [[i != j and apart[i][j] for j in range(5)] for i in range(5)]
    forth = loop(q, t, 0.1, apart, q, others)
    objective = InfoNCE(0.1, duplicates=duplicates, intra_modal=True)
    assert objective(batch, batch)["loss"].item() == pytest.approx(forth, rel=1e-6)
    back = loop(t, q, 0.1, apart, t, others)
    both = InfoNCE(0.1, duplicates=duplicates, intra_modal=True, symmetric=True)
    assert both(batch, batch)["loss"].item() == pytest.approx((forth + back) / 2, rel=1e-6)


def test_constant_embeddings_cost_the_log_of_the_batch() -> None:
    batch = encoded(unit(1, 8).expand(16, 8), unit(1, 8).expand(16, 8))
    assert InfoNCE()(batch, batch)["loss"].item() == pytest.approx(math.log(16), rel=1e-6)


@pytest.mark.parametrize("learn", ["no", "log", "linear"])
@pytest.mark.parametrize("start", [0.0, -0.07, math.nan, math.inf])
def test_a_temperature_that_is_none_is_refused(learn: str, start: float) -> None:
    with pytest.raises(RecipeError, match=r"the temperature is .*; it divides cosines, so set it above 0"):
        InfoNCE(start, learn=learn)


@pytest.mark.parametrize("largest", [0.0, -1.0, math.nan])
def test_a_largest_scale_that_is_none_is_refused(largest: float) -> None:
    with pytest.raises(RecipeError, match=r"max_scale is .*; set it above 0, or to null"):
        Temperature(0.07, "log", largest)


@pytest.mark.parametrize(("learn", "scale"), [("no", 1000.0), ("linear", 1000.0), ("log", 100.0)])
def test_the_largest_scale_holds_the_logarithm_alone(learn: str, scale: float) -> None:
    assert Temperature(0.001, learn)().item() == pytest.approx(scale)


@pytest.mark.parametrize(("learn", "gradient"), [("log", True), ("linear", True), ("no", False)])
def test_temperature_starts_where_told_and_learns_where_told(learn: str, gradient: bool) -> None:
    objective = InfoNCE(0.07, learn=learn)
    batch = encoded(unit(4, 8), unit(4, 8, seed=1))
    losses = objective(batch, batch)
    assert losses["temperature"].item() == pytest.approx(0.07, rel=1e-6)
    assert objective.temperature.parameter.requires_grad is gradient
    if gradient:
        losses["loss"].backward()
        assert objective.temperature.parameter.grad.abs() > 0


def test_log_scale_is_clamped() -> None:
    objective = InfoNCE(0.001, learn="log", max_scale=100.0)
    assert objective.temperature().item() == pytest.approx(100.0)


def test_an_unknown_view_lists_those_present() -> None:
    batch = encoded(unit(2, 8), unit(2, 8, seed=1))
    with pytest.raises(RecipeError, match=r"'caption'.*query.*target"):
        InfoNCE(views=("query", "caption"))(batch, batch)
