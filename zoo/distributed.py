"""Gathering rows of all ranks, with the right gradient and for unequal counts."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(rows: Tensor, counts: list[int]) -> Tensor:
    """Rows (R, ...) of every rank, in the order of the ranks. `counts` holds R of every rank (`row_counts`).

    The gradient of a row is the sum over all ranks of what they made of it.
    """
    return _GatherRows.apply(rows, counts) if world_size() > 1 else rows


def row_counts(rows: int, device: torch.device) -> list[int]:
    """Number of rows on every rank."""
    if world_size() == 1:
        return [rows]
    counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([rows], device=device))
    return [int(count) for count in counts]


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.start = sum(counts[: dist.get_rank()])
        ctx.rows = len(rows)
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.start : ctx.start + ctx.rows], None


def gather_objects(value: Any) -> list[Any]:
    """The value of every rank, as pickled objects; for results, not for training."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
