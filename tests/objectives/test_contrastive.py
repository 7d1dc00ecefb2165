"""InfoNCE over the core: one pass for both directions, tiles, ranks, half precision, and open_clip's class."""

from __future__ import annotations

import pytest
import torch
from encoded_rows import WIDTH, check_ranks, check_tiles, close, encoded, leaves, outcome, unit

from zoo.objectives import infonce
from zoo.objectives.infonce import InfoNCE
from zoo.types import Embedding, Encoded

DUPLICATES = ("mask", "positive", "keep")


def with_twins(samples: int = 6, each: int = 1) -> Encoded:
    labels = torch.full((samples,), -1)
    labels[[0, 2]] = 7
    batch = encoded(samples, each, labels=labels)
    batch.weights = torch.linspace(1, 2, samples)
    return batch


@pytest.mark.parametrize("scale", [1.0, 14.3, 1000.0])
@pytest.mark.parametrize("samples", [2, 7])
@pytest.mark.parametrize("tiles", [False, True])
def test_symmetric_is_open_clips(scale: float, samples: int, tiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    official = pytest.importorskip("open_clip.loss").ClipLoss()
    if tiles:
        monkeypatch.setattr("zoo.objectives.contrastive.DENSE_CELLS", 0)
        monkeypatch.setattr("zoo.objectives.contrastive.TILE_CELLS", 1)
    batch = encoded(samples)
    objective = InfoNCE(1 / scale, "linear", symmetric=True).double()
    with torch.no_grad():
        objective.temperature.parameter.fill_(1 / scale)  # in fp64
    tensors = [*leaves(batch), objective.temperature.parameter]
    expected = official(*leaves(batch), 1 / objective.temperature.parameter)
    close(outcome(objective(batch, batch)["loss"], tensors), outcome(expected, tensors))


@pytest.mark.parametrize("duplicates", DUPLICATES)
@pytest.mark.parametrize("twins", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_pass_is_two_one_sided_losses(
    duplicates: str, twins: bool, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = with_twins() if twins else encoded(6)
    options = {"label_smoothing": smoothing, "duplicates": duplicates}
    passes = []
    losses = infonce.Direction.losses
    monkeypatch.setattr(infonce.Direction, "losses", lambda *a, **k: (passes.append(a[0].row_view), losses(*a, **k))[1])
    together = InfoNCE(0.125, symmetric=True, **options).double()(batch, batch)["loss"]
    assert passes == (["query", "target"] if twins and duplicates == "positive" else ["query"])
    alone = [
        InfoNCE(0.125, views=views, **options).double()(batch, batch)["loss"]
        for views in (("query", "target"), ("target", "query"))
    ]
    close(outcome(together, leaves(batch)), outcome(sum(alone) / 2, leaves(batch)))


@pytest.mark.parametrize("duplicates", DUPLICATES)
@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ranks_and_tiles(duplicates: str, each: int, smoothing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = with_twins(6, each)

    def make() -> InfoNCE:
        return InfoNCE(0.2, "log", symmetric=True, label_smoothing=smoothing, duplicates=duplicates)

    check_ranks(make, batch, (1, 4))
    check_tiles(make, batch, monkeypatch)


@pytest.mark.parametrize("negatives", ["own", "shared"])
def test_ranks_and_tiles_with_mined_negatives(negatives: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = with_twins(6)
    batch.views["negatives"] = Embedding(unit(12, WIDTH, seed=7).requires_grad_())
    batch.owners["negatives"] = torch.arange(6).repeat_interleave(2)
    batch.keys["negatives"] = torch.arange(900, 912)
    batch.keys["negatives"][5] = batch.keys["target"][3]

    def make() -> InfoNCE:
        return InfoNCE(0.2, "log", symmetric=True, negatives=negatives)

    check_ranks(make, batch, (1, 4))
    check_tiles(make, batch, monkeypatch)


@pytest.mark.parametrize("duplicates", DUPLICATES)
def test_several_right_columns_share_the_target(duplicates: str) -> None:
    """L_out of SupCon, on matrices: the mean over the right columns of their log-probabilities."""
    batch = with_twins(5, 2)
    batch.weights = torch.ones(5)
    query, target = leaves(batch)
    logits = 8 * query @ target.T
    own = batch.owners["target"] == torch.arange(5)[:, None]
    twin = torch.zeros(5, 5, dtype=torch.bool)
    twin[0, 2] = twin[2, 0] = True
    twin = twin.repeat_interleave(2, 1)
    right = own | twin if duplicates == "positive" else own
    if duplicates == "mask":
        logits = logits.masked_fill(twin, -torch.inf)
    logs = logits.log_softmax(1).masked_fill(~right, 0.0)
    expected = -(logs.sum(1) / right.sum(1)).mean()
    found = InfoNCE(0.125, duplicates=duplicates).double()(batch, batch)["loss"]
    close(outcome(found, leaves(batch)), outcome(expected, leaves(batch)))


@pytest.mark.parametrize("tiles", [False, True])
def test_half_precision_is_raised_under_autocast(tiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if tiles:
        monkeypatch.setattr("zoo.objectives.contrastive.DENSE_CELLS", 0)
        monkeypatch.setattr("zoo.objectives.contrastive.TILE_CELLS", 20)
    batch = encoded(12)
    for e in batch.views.values():
        e.vector = e.vector.detach().bfloat16().requires_grad_()
    half = leaves(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = InfoNCE(0.02, symmetric=True)(batch, batch)["loss"]
    found.backward()
    for e in batch.views.values():
        e.vector = e.vector.detach().double().requires_grad_()
    expected = outcome(InfoNCE(0.02, symmetric=True)(batch, batch)["loss"], leaves(batch))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected[0], rtol=1e-5, atol=1e-6)
    for left, right in zip(half, expected[1:], strict=True):
        torch.testing.assert_close(left.grad.double(), right, rtol=1e-2, atol=1e-4)  # a bf16 gradient


@pytest.mark.parametrize("duplicates", DUPLICATES)
@pytest.mark.parametrize("tiles", [False, True])
def test_extreme_temperature(duplicates: str, tiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if tiles:
        monkeypatch.setattr("zoo.objectives.contrastive.DENSE_CELLS", 0)
        monkeypatch.setattr("zoo.objectives.contrastive.TILE_CELLS", 1)
    batch = with_twins()
    for e in batch.views.values():
        e.vector = e.vector.detach().float().requires_grad_()
    objective = InfoNCE(1e-3, "linear", None, symmetric=True, label_smoothing=0.1, duplicates=duplicates)
    values = outcome(objective(batch, batch)["loss"], [*leaves(batch), objective.temperature.parameter])
    assert all(torch.isfinite(value).all() for value in values)
