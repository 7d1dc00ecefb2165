"""Bounds of rounded scores hold for every pair, also where rounding is worst."""

from __future__ import annotations

import pytest
import torch

from zoo.metrics.rounded import Rounded, at_most, thresholds


@pytest.mark.parametrize("kind", ["random", "worst", "aligned", "large", "small", "zero", "lopsided", "cancelling"])
def test_no_score_is_beyond_its_bound(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 96, generator=generator)
    if kind == "worst":  # every number half-way between two of bf16, all rounded the same way
        x = x.abs().bfloat16().float() * (1 + 2.0**-8)
    if kind == "aligned":
        x = x[:1] * (1 + 1e-3 * x)
    x = x * {"large": 1e15, "small": 1e-12, "zero": 0}.get(kind, 1)
    queries, candidates = x[:100], x[100:]
    if kind == "lopsided":  # squares of the small ones vanish, their products with the large ones do not
        queries, candidates = queries.bfloat16().float() * 2.0**50, candidates * 1e-21
    if kind == "cancelling":  # nothing is lost by rounding, and sums that ought to be zero are not
        x = torch.randn(2, 100, 4096, generator=generator).bfloat16().float()
        order = torch.randperm(8192, generator=generator)
        queries, candidates = torch.cat([x[0], x[0]], 1)[:, order], torch.cat([x[1], -x[1]], 1)[:, order]
    asked, offered = Rounded.of(queries), Rounded.of(candidates)
    exact = queries.double() @ candidates.double().T
    scores = asked.values @ offered.values.T
    error = asked.error(offered)[:, None]
    assert (exact <= at_most(scores.float(), error)).all()
    assert (exact >= -at_most(-scores.float(), error)).all()
    for value in (exact.float()[:, :1], exact.float().median(1, keepdim=True).values):
        low, high = thresholds(value, error)
        assert (exact > value)[scores > high].all()
        assert (exact < value)[scores < low].all()
    if kind == "random":  # and they say something
        assert (error < 0.01 * asked.norms[:, None] * offered.norms.amax()).all()


def test_parts_are_rounded_like_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(70, 9, generator=torch.Generator().manual_seed(0))
    whole = Rounded.of(x)
    monkeypatch.setattr("zoo.metrics.rounded._AT_A_TIME", 50)
    parts = Rounded.of(x)
    for name in ("values", "norms", "lost"):
        assert torch.equal(getattr(whole, name), getattr(parts, name))
    assert torch.equal(whole.values, x.bfloat16())
    assert torch.allclose(whole.lost, (x - x.bfloat16().float()).norm(dim=1))
