"""Encoded rows for the tests of objectives: random, in fp64, cut into the shares of several ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.objectives import contrastive
from zoo.types import Embedding, Encoded, Mixture

WIDTH = 6


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(randn(*shape, seed=seed), dim=-1)


def encoded(
    samples: int = 6,
    each: int = 1,
    tokens: tuple[int, int] = (0, 0),
    spread: float | None = None,
    labels: Tensor | None = None,
    keys: dict[str, Tensor] | None = None,
    seed: int = 0,
) -> Encoded:
    """`samples` queries and `each` targets per sample. tokens: how many per row of query and target; the last is padding
    in every third row. spread: the mean of the log variances, which there are none of otherwise.
    """
    counts, views = {"query": samples, "target": samples * each}, {}
    for place, (name, length) in enumerate(zip(counts, tokens, strict=True)):
        views[name] = Embedding(unit(counts[name], WIDTH, seed=seed + place).requires_grad_())
        if spread is not None:
            views[name].log_var = (randn(counts[name], WIDTH, seed=seed + 20 + place) + spread).requires_grad_()
        if length:
            views[name].tokens = randn(counts[name], length, WIDTH, seed=seed + 10 + place).requires_grad_()
            views[name].mask = torch.ones(counts[name], length, dtype=torch.int64)
            views[name].mask[::3, -1] = 0
    sample = torch.arange(samples)
    return Encoded(
        views=views,
        owners={"query": sample, "target": sample.repeat_interleave(each)},
        keys={"query": torch.arange(samples), "target": torch.arange(100, 100 + samples * each)} | (keys or {}),
        labels=torch.full((samples,), -1) if labels is None else labels,
        weights=torch.ones(samples),
        sample=sample,
    )


def share_of(whole: Encoded, start: int, stop: int) -> Encoded:
    """The samples `start` to `stop`, as the rank sees them that encoded them: slices of the same graph."""
    kept = {name: (owner >= start) & (owner < stop) for name, owner in whole.owners.items()}

    def cut(name: str, values: Tensor | None) -> Tensor | None:
        return None if values is None else values[kept[name]]

    return Encoded(
        views={
            name: Embedding(**{part.name: cut(name, getattr(e, part.name)) for part in fields(e)})  # type: ignore[arg-type]
            for name, e in whole.views.items()
        },
        owners={name: owner[kept[name]] for name, owner in whole.owners.items()},
        keys={name: key[kept[name]] for name, key in whole.keys.items()},
        labels=whole.labels[start:stop],
        weights=whole.weights[start:stop],
        sample=whole.sample[start:stop],
        mixed={name: Mixture(one.partner[kept[name]], one.share[kept[name]]) for name, one in whole.mixed.items()},
    )


def leaves(whole: Encoded) -> list[Tensor]:
    """The tensors that gradients are asked for."""
    values = [getattr(e, part.name) for e in whole.views.values() for part in fields(e)]
    return [value for value in values if value is not None and value.requires_grad]


def outcome(loss: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """The loss and its gradients; zeros where there is none."""
    found = torch.autograd.grad(loss, tensors, allow_unused=True)
    return [loss.detach(), *(torch.zeros_like(t) if g is None else g for t, g in zip(tensors, found, strict=True))]


def trained(objective: torch.nn.Module) -> list[Tensor]:
    return [parameter for parameter in objective.parameters() if parameter.requires_grad]


def close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-8) -> None:
    for left, right in zip(found, expected, strict=True):
        assert torch.isfinite(left).all()
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance, check_dtype=False)


def in_tiles(monkeypatch: pytest.MonkeyPatch, cells: int = 1) -> None:
    """One row per tile from now on."""
    monkeypatch.setattr(contrastive, "DENSE_CELLS", 0)
    monkeypatch.setattr(contrastive, "TILE_CELLS", cells)


def check_ranks(make: Callable[[], torch.nn.Module], whole: Encoded, cuts: tuple[int, ...] = (4,)) -> None:
    """The shares of several ranks add up to the loss and the gradients of one process."""
    edges = [0, *cuts, len(whole.sample)]
    one = make().double()
    tensors = [*leaves(whole), *trained(one)]
    expected = outcome(one(whole, whole)["loss"], tensors)
    total = [torch.zeros_like(value) for value in expected]
    for start, stop in pairwise(edges):
        rank = make().double()
        tensors = [*leaves(whole), *trained(rank)]
        shares = outcome(rank(share_of(whole, start, stop), whole)["loss"], tensors)
        total = [left + right for left, right in zip(total, shares, strict=True)]
    assert max(float(value.abs().max()) for value in expected[1:]) > 1e-6
    close(total, expected)


def check_tiles(make: Callable[[], torch.nn.Module], whole: Encoded, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row at a time gives what one block gives."""
    results = []
    for tiles in (False, True):
        with monkeypatch.context() as patch:
            if tiles:
                in_tiles(patch)
            one = make().double()
            results.append(outcome(one(whole, whole)["loss"], [*leaves(whole), *trained(one)]))
    close(results[1], results[0])
