"""Schedules against the formulas of the official code."""

from __future__ import annotations

import math

import pytest
import torch

from zoo.nn.schedules import WarmupCosine, WarmupLinear


def rates(schedule: type, warmup: int, total: int, **options: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=2.0)
    found, scheduler = [], schedule(optimizer, warmup, total, **options)
    for _ in range(total + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_cosine_is_that_of_open_clip(warmup: int) -> None:
    """`cosine_lr`: base_lr * (step + 1) / warmup_length, then 0.5 * (1 + cos(pi * e / es)) * base_lr."""
    wanted = [
        2.0 * (step + 1) / warmup
        if step < warmup
        else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (12 - warmup))) * 2.0
        for step in range(13)
    ]
    assert rates(WarmupCosine, warmup, 12) == pytest.approx(wanted)


def test_cosine_ends_at_the_floor() -> None:
    found = rates(WarmupCosine, 3, 12, floor=0.1)
    assert found[0] > 0 and max(found) == found[2] == 2.0 and found[-1] == pytest.approx(0.2)


@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_linear_is_that_of_transformers(warmup: int) -> None:
    from transformers import get_linear_schedule_with_warmup

    def theirs(optimizer: torch.optim.Optimizer, first: int, total: int) -> object:
        return get_linear_schedule_with_warmup(optimizer, first, total)

    assert rates(WarmupLinear, warmup, 12) == pytest.approx(rates(theirs, warmup, 12))  # type: ignore[arg-type]
