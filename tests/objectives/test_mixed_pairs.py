"""Coin-flip mixup against the sum of two cross-entropies of mixed rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from encoded_rows import check_ranks, check_tiles, close, encoded, leaves, outcome

from zoo.errors import RecipeError
from zoo.objectives.infonce import InfoNCE
from zoo.objectives.mixed_pairs import CoinFlipMixup
from zoo.types import Mixture


@pytest.mark.parametrize("side", ["query", "target"])
@pytest.mark.parametrize("samples", [6, 5])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_two_cross_entropies(side: str, samples: int, smoothing: float) -> None:
    batch = encoded(samples)
    batch.weights = torch.linspace(1, 2, samples).double()
    objective = CoinFlipMixup(0.125, label_smoothing=smoothing, beta=0.8, mixed=(side,), seed=5).double()
    lam = objective.draws.beta([0.8, 1.0])[0]
    vectors = {name: e.vector for name, e in batch.views.items()}
    vectors[side] = F.normalize(lam * vectors[side] + (1 - lam) * vectors[side].flip(0), dim=1)
    logits, own = 8 * vectors["query"] @ vectors["target"].T, torch.arange(samples)

    def entropy(scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        costs = F.cross_entropy(scores, target, reduction="none", label_smoothing=smoothing)
        return (costs * batch.weights).sum() / samples

    expected = sum(lam * entropy(z, own) + (1 - lam) * entropy(z, own.flip(0)) for z in (logits, logits.T)) / 2
    close(outcome(objective(batch, batch)["loss"], leaves(batch)), outcome(expected, leaves(batch)))


@pytest.mark.parametrize("mixed", ["query", "target"])
def test_pictures_that_are_mixtures_already(mixed: str) -> None:
    batch = encoded(6)
    lam = float(torch.tensor(0.3))  # shares are fp32
    batch.mixed = {mixed: Mixture(torch.arange(6).flip(0), torch.full((6,), lam))}
    objective = CoinFlipMixup(0.125, mixed=("query",)).double()
    logits = 8 * batch.views["query"].vector @ batch.views["target"].vector.T
    own = torch.arange(6)
    expected = (
        sum(lam * F.cross_entropy(z, own) + (1 - lam) * F.cross_entropy(z, own.flip(0)) for z in (logits, logits.T)) / 2
    )
    close(outcome(objective(batch, batch)["loss"], leaves(batch)), outcome(expected, leaves(batch)))


def test_several_shares_are_refused() -> None:
    batch = encoded(4)
    batch.mixed = {"target": Mixture(torch.arange(4).flip(0), torch.tensor([0.1, 0.2, 0.3, 0.4]))}
    with pytest.raises(RecipeError, match="per: batch and share: 1 in the PictureMixing of the view 'target'"):
        CoinFlipMixup()(batch, batch)


def test_ranks_with_mixed_pictures() -> None:
    """Each rank has a share of its own, and partners among its own rows."""
    batch = encoded(6)
    share = torch.tensor([0.3, 0.3, 0.8, 0.8, 0.8, 0.8])
    batch.mixed = {"target": Mixture(torch.tensor([1, 0, 5, 4, 3, 2]), share)}
    check_ranks(lambda: CoinFlipMixup(0.2, "log"), batch, (2, 4))


def test_ranks_and_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = encoded(6)
    batch.weights = torch.linspace(1, 2, 6)
    check_ranks(lambda: CoinFlipMixup(0.2, "log", beta=1.0), batch, (1, 4))
    check_tiles(lambda: CoinFlipMixup(0.2, "log", beta=1.0), batch, monkeypatch)


def test_the_coin_is_fair_and_the_sides_are_told_apart() -> None:
    batch = encoded(6)
    objective = CoinFlipMixup(beta=1.0)
    mixed = {name: CoinFlipMixup(beta=1.0, mixed=(name,)) for name in ("query", "target")}
    counts = dict.fromkeys(mixed, 0)
    for _ in range(200):
        found = float(objective(batch, batch)["loss"])
        for name, other in mixed.items():
            counts[name] += found == float(other(batch, batch)["loss"])
    assert sum(counts.values()) == 200 and 70 < counts["query"] < 130


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_unmixed_it_is_infonce(share: float) -> None:
    batch = encoded(6)
    objective = CoinFlipMixup(0.125).double()
    objective.draws.beta = lambda _: [share, 0.3]
    expected = InfoNCE(0.125, symmetric=True)(batch, batch)["loss"]
    torch.testing.assert_close(objective(batch, batch)["loss"], expected)


def test_extreme_temperature() -> None:
    batch = encoded(6)
    found = CoinFlipMixup(1e-3, beta=1.0)(batch, batch)["loss"]
    assert all(torch.isfinite(value).all() for value in outcome(found, leaves(batch)))


def test_unknown_views_are_refused() -> None:
    with pytest.raises(RecipeError, match="caption"):
        CoinFlipMixup(mixed=("caption",))
