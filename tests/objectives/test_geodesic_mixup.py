"""Mixtures along the sphere, and the losses on them, against loops over their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from encoded_rows import check_ranks, check_tiles, close, encoded, leaves, outcome, unit
from torch import Tensor

from zoo.errors import RecipeError
from zoo.objectives.draws import Draws
from zoo.objectives.geodesic_mixup import GeodesicMixup, slerp
from zoo.objectives.infonce import InfoNCE
from zoo.types import Encoded


def mixed(a: Tensor, b: Tensor, lam: float) -> Tensor:
    angle = torch.acos(a @ b)
    return torch.sin(lam * angle) / torch.sin(angle) * a + torch.sin((1 - lam) * angle) / torch.sin(angle) * b


def entropy(scores: list[Tensor], target: list[float]) -> Tensor:
    logits = torch.stack(scores)
    return -sum(weight * logits.log_softmax(0)[j] for j, weight in enumerate(target))


def both(left: list[Tensor], right: list[Tensor], scale: float, targets: list[list[float]], weights: Tensor) -> Tensor:
    total = 0.0
    for i in range(len(left)):
        forth = entropy([scale * left[i] @ y for y in right], targets[i])
        total = total + weights[i] * (forth + entropy([scale * right[i] @ x for x in left], targets[i])) / 2
    return total / len(left)


def loop(batch: Encoded, name: str, lam: float, scale: float, m2_scale: float, exact: bool) -> Tensor:
    image, text = list(batch.views["query"].vector), list(batch.views["target"].vector)
    n, weights = len(image), batch.weights
    if name == "m2":
        total = 0.0
        negatives = [mixed(x, y, lam) for x, y in zip(image, text, strict=True)]
        for side, other in ((image, text), (text, image)):
            for i in range(n):
                scores = [m2_scale * side[i] @ (other[i] if i == j else negatives[j]) for j in range(n)]
                total = total + weights[i] * entropy(scores, [float(i == j) for j in range(n)])
        return total / n / (2 if exact else 1)
    own, other = (lam, 1 - lam) if name != "vl" else ((0.5, 0.5) if exact else (1.0, 1.0))
    targets = [[own * (i == j) + other * (j == n - 1 - i) for j in range(n)] for i in range(n)]
    if "v" in name:
        image = [mixed(image[i], image[n - 1 - i], lam) for i in range(n)]
    if "l" in name:
        text = [mixed(text[i], text[n - 1 - i], lam) for i in range(n)]
    return both(image, text, scale, targets, weights)


@pytest.mark.parametrize("name", ["m2", "v", "l", "vl"])
@pytest.mark.parametrize("sums", ["official", "exact"])
@pytest.mark.parametrize("m2_temperature", [0.2, None])
def test_equals_the_loop(name: str, sums: str, m2_temperature: float | None) -> None:
    batch = encoded(6)
    batch.weights = torch.linspace(1, 2, 6)
    plain = {"m2": 0.0, "v": 0.0, "l": 0.0, "vl": 0.0} | {name: 0.7}
    objective = GeodesicMixup(0.125, sums=sums, m2_temperature=m2_temperature, **plain).double()
    lam = objective.draws.beta(objective.concentrations)[list(plain).index(name)]
    assert 0 < lam < 1
    term = loop(batch, name, lam, 8.0, 8.0 if m2_temperature is None else 5.0, sums == "exact")
    expected = InfoNCE(0.125, symmetric=True)(batch, batch)["loss"] + 0.7 * term
    found = objective(batch, batch)
    close(outcome(found["loss"], leaves(batch)), outcome(expected, leaves(batch)))
    torch.testing.assert_close(found[name], term.detach())


@pytest.mark.parametrize("samples", [6, 5])
def test_ranks_and_tiles(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample in the middle of an odd batch is its own partner."""
    batch = encoded(samples, labels=torch.tensor([7, -1, 7, -1, 3, -1])[:samples])

    def make() -> GeodesicMixup:
        return GeodesicMixup(0.2, "log", m2=0.5, v=0.5, l=0.5, vl=0.5, m2_temperature=None)

    check_ranks(make, batch)
    check_tiles(make, batch, monkeypatch)


def test_slerp() -> None:
    a, b = unit(5, 4).requires_grad_(), unit(5, 4, seed=1).requires_grad_()
    expected = torch.stack([mixed(x, y, 0.3) for x, y in zip(a, b, strict=True)])
    found = slerp(a, b, 0.3)
    close(outcome(found[:, 0].sum(), [a, b]), outcome(expected[:, 0].sum(), [a, b]))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(slerp(a, b, 1.0), a)
    torch.testing.assert_close(slerp(a, b, 0.0), b)
    right_angle = slerp(torch.eye(2)[:1], torch.eye(2)[1:], 1 / 3)
    torch.testing.assert_close(right_angle, torch.tensor([[0.5, math.sqrt(3) / 2]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slerp_of_equal_and_opposite_vectors(dtype: torch.dtype) -> None:
    for factor in (1.0, -1.0):
        a = unit(1000, 64).to(dtype).requires_grad_()
        b = (factor * a.detach()).requires_grad_()
        found = slerp(a, b, 0.25)
        gradients = torch.autograd.grad(found.sum(), [a, b])
        assert all(torch.isfinite(value).all() for value in (found, *gradients))
        torch.testing.assert_close(found.norm(dim=1), torch.ones(1000, dtype=dtype))
    near = torch.nn.functional.normalize(a + 2e-3 * unit(1000, 64, seed=1).to(dtype), dim=1)
    torch.testing.assert_close(slerp(a, near, 0.5).norm(dim=1), torch.ones(1000, dtype=dtype), rtol=1e-5, atol=1e-5)


def test_identical_embeddings_train() -> None:
    batch = encoded(4)
    for e in batch.views.values():
        e.vector = unit(1, 6).expand(4, 6).clone().float().requires_grad_()
    found = GeodesicMixup(1e-3, max_scale=1000.0, m2=0.5, v=0.5, l=0.5, vl=0.5)(batch, batch)["loss"]
    assert all(torch.isfinite(value).all() for value in outcome(found, leaves(batch)))


def test_several_rows_per_sample_are_refused() -> None:
    batch = encoded(4, 2)
    with pytest.raises(RecipeError, match="'target', which has 8 rows for 4 samples"):
        GeodesicMixup()(batch, batch)


def test_rows_in_another_order_than_samples() -> None:
    batch, shuffled = encoded(5), encoded(5)
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled.views["target"].vector = shuffled.views["target"].vector[order]
    shuffled.owners["target"], shuffled.keys["target"] = order, shuffled.keys["target"][order]
    objective = GeodesicMixup(m2=0.5, v=0.5, l=0.5, vl=0.5).eval()
    torch.testing.assert_close(objective(shuffled, shuffled)["loss"], objective(batch, batch)["loss"])


def test_draws_are_new_at_every_step_and_the_same_after_resuming() -> None:
    draws = Draws(seed=3)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = draws.beta([0.5, 0.2])
    assert draws.beta([0.5, 0.2]) == first and torch.equal(torch.get_rng_state(), state)
    draws.advance()
    second = draws.beta([0.5, 0.2])
    resumed = Draws(seed=3)
    resumed.load_state_dict(draws.state_dict())
    assert resumed.beta([0.5, 0.2]) == second != first
    resumed.eval().advance()
    assert resumed.beta([0.5, 0.2]) == second
    assert Draws(seed=4).beta([0.5, 0.2]) != first


def test_draws_are_of_the_distribution() -> None:
    draws, shares = Draws(), []
    for _ in range(2000):
        shares += draws.beta([0.2])
        draws.advance()
    found = torch.tensor(shares)
    assert float(found.mean()) == pytest.approx(0.5, abs=0.04)
    assert float(found.var()) == pytest.approx(0.25 / 1.4, abs=0.02)  # of Beta(c, c): 1 / (4 (2 c + 1))
