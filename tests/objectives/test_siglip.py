"""The sigmoid loss against loops, open_clip's class and binary cross-entropy."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from encoded_rows import check_ranks, check_tiles, close, encoded, leaves, outcome, trained

from zoo.objectives.siglip import SigLIP


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (4.0, -1.6), (1000.0, -10.0)])
@pytest.mark.parametrize("samples", [2, 7])
def test_equals_open_clip_and_binary_cross_entropy(scale: float, bias: float, samples: int) -> None:
    official = pytest.importorskip("open_clip.loss").SigLipLoss()
    batch = encoded(samples)
    objective = SigLIP(1 / scale, bias, "linear").double()
    with torch.no_grad():
        objective.temperature.parameter.fill_(1 / scale)  # in fp64
    query, target = leaves(batch)
    tensors = [query, target, objective.bias]
    found = outcome(objective(batch, batch)["loss"], tensors)
    expected = official(query, target, torch.tensor(scale, dtype=torch.float64), objective.bias)
    close(found, outcome(expected, tensors))
    logits = scale * query @ target.T + objective.bias
    binary = samples * F.binary_cross_entropy_with_logits(logits, torch.eye(samples, dtype=torch.float64))
    close(found, outcome(binary, tensors))


@pytest.mark.parametrize("duplicates", ["positive", "mask", "keep"])
@pytest.mark.parametrize("each", [1, 2])
def test_equals_the_loop(duplicates: str, each: int) -> None:
    batch = encoded(5, each, labels=torch.tensor([7, -1, 7, -1, 3]))
    batch.weights = torch.linspace(1, 2, 5)
    total = 0.0
    for i in range(5):
        for j in range(5 * each):
            twins = {i, j // each} == {0, 2}
            sign = 1 if j // each == i or (twins and duplicates == "positive") else -1
            if not (twins and duplicates == "mask"):
                cosine = float(batch.views["query"].vector[i].detach() @ batch.views["target"].vector[j].detach())
                total += float(batch.weights[i]) * math.log1p(math.exp(-sign * (8 * cosine - 2)))
    found = SigLIP(0.125, -2.0, "linear", duplicates=duplicates).double()(batch, batch)["loss"]
    assert float(found.detach()) == pytest.approx(total / 5, rel=1e-8)


def test_ranks_and_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = encoded(6, 2, labels=torch.tensor([7, -1, 7, -1, 3, -1]))
    batch.weights = torch.linspace(1, 2, 6)
    for duplicates in ("positive", "mask", "keep"):
        check_ranks(lambda d=duplicates: SigLIP(0.1, -2.0, duplicates=d), batch, (1, 4))
        check_tiles(lambda d=duplicates: SigLIP(0.1, -2.0, duplicates=d), batch, monkeypatch)


def test_what_is_learned() -> None:
    assert len(trained(SigLIP())) == 2 and not trained(SigLIP(learn="no"))
    batch = encoded(4)
    objective = SigLIP()
    assert all(float(g.abs().max()) > 0 for g in outcome(objective(batch, batch)["loss"], trained(objective))[1:])


def test_half_precision_is_raised_under_autocast() -> None:
    batch = encoded(6)
    for e in batch.views.values():
        e.vector = e.vector.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = SigLIP(0.01, -2.0)(batch, batch)["loss"]
    for e in batch.views.values():
        e.vector = e.vector.double()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), SigLIP(0.01, -2.0).double()(batch, batch)["loss"], rtol=1e-5, atol=1e-5)


def test_the_mean_over_pairs_is_sails() -> None:
    batch = encoded(5, each=2)
    summed, mean = (SigLIP(0.1, -3.0, mean=mean)(batch, batch)["loss"] for mean in (False, True))
    torch.testing.assert_close(mean, summed / 10)
