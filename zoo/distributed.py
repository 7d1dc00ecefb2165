"""Gathering rows of all ranks, with the right gradient and for unequal counts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from zoo.errors import RecipeError


def world_size() -> int:
    """Number of processes that train together; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def group_of(size: int) -> Any:
    """The process group of this rank when all ranks are divided into groups of `size` neighbours; None = all of them.

    Every rank must ask for it. Raises RecipeError if the ranks can't be divided so.
    """
    world = world_size()
    if size < 1 or world % size:
        raise RecipeError(
            f"{world} process{'es' * (world > 1)} can't be divided into groups of {size}: set gather_group to a number that "
            "divides them, or to null for one group"
        )
    return None if size == world else _group_of(size, dist.group.WORLD)


@cache
def _group_of(size: int, everyone: Any) -> Any:
    """`everyone` tells this training from an earlier one of the same process, whose groups are gone."""
    groups = [dist.new_group(list(range(start, start + size))) for start in range(0, dist.get_world_size(), size)]
    return groups[dist.get_rank() // size]


def rank_in(group: Any) -> int:
    """The number of this process in its group."""
    return int(dist.get_rank(group))


def gather_rows(rows: Tensor, counts: list[int], group: Any = None) -> Tensor:
    """Rows (R, ...) of every rank of the group, in the order of the ranks. `counts` holds R of every rank.

    The gradient of a row is the sum over these ranks of what they made of it.
    """
    return _GatherRows.apply(rows, counts, group) if len(counts) > 1 else rows


def gather_numbers(numbers: Sequence[int], device: torch.device, group: Any = None) -> list[list[int]]:
    """The numbers of every rank of the group, of which all have equally many."""
    if world_size() == 1:
        return [list(numbers)]
    mine = torch.tensor(numbers, dtype=torch.int64, device=device)
    found = [torch.zeros_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, mine, group=group)
    return [one.tolist() for one in found]


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], group: Any) -> Tensor:
        ctx.start = sum(counts[: rank_in(group)])
        ctx.rows, ctx.group = len(rows), group
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total[ctx.start : ctx.start + ctx.rows], None, None


def gather_objects(value: Any) -> list[Any]:
    """The value of every rank, as pickled objects; for results, not for training."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
