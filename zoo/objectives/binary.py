"""Every cell a binary question: sums of binary cross-entropies over rows, in tiles (see `zoo.objectives.contrastive`).

Shapes: R rows, C columns, D width, r rows of one tile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from zoo.objectives import contrastive
from zoo.objectives.contrastive import at_least_fp32

Signs = Callable[[slice], Tensor]
"""Which rows -> (r, C): 1 = the answer is yes, -1 = no, 0 = not asked. No gradient."""


def sigmoid_sums(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    answers: Tensor | Signs,
    dense_cells: int | None = None,
    tile_cells: int | None = None,
) -> Tensor:
    """Sum over j of -log sigmoid(y_ij z_ij), z = scale * rows @ columns^T + bias, for every row i. (R,) fp32

    Args:
        rows: (R, D). Half precision is raised to fp32, fp64 stays.
        columns: (C, D).
        scale: scalar; gets a gradient.
        bias: scalar; gets a gradient.
        answers: (R,) int64, the one column of each row to which the answer is yes; or `Signs`.
        dense_cells: instead of `zoo.objectives.contrastive.DENSE_CELLS`.
        tile_cells: instead of `zoo.objectives.contrastive.TILE_CELLS`.
    """
    dense = contrastive.DENSE_CELLS if dense_cells is None else dense_cells
    step = max(1, (contrastive.TILE_CELLS if tile_cells is None else tile_cells) // max(1, len(columns)))
    rows, columns, scale, bias = (at_least_fp32(part) for part in (rows, columns, scale, bias))
    with torch.autocast(rows.device.type, enabled=False):
        if len(rows) * len(columns) <= dense:
            return _sums(_logits(rows, columns, scale, bias), answers, slice(0, len(rows)))
        sums: Tensor = _TiledSigmoid.apply(rows, columns, scale, bias, answers, step)
    return sums


def _logits(rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return (rows * scale) @ columns.T + bias  # scale and bias may be fp32 beside fp64 rows


def _sums(logits: Tensor, answers: Tensor | Signs, part: slice) -> Tensor:
    if isinstance(answers, Tensor):
        own = logits.gather(1, answers[part, None]).squeeze(1)
        return F.softplus(logits).sum(1) - F.softplus(own) + F.softplus(-own)
    signs = answers(part).to(logits.dtype)
    return (F.softplus(-signs * logits) * signs.abs()).sum(1)


class _TiledSigmoid(torch.autograd.Function):
    """The backward pass computes each tile again; d sum / d z is sigmoid(z) - 1 where the answer is yes, sigmoid(z) else."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, answers: Tensor | Signs, step: int
    ) -> Tensor:
        ctx.answers, ctx.step = answers, step
        ctx.save_for_backward(rows, columns, scale, bias)
        sums = rows.new_empty(len(rows))
        for part in _slices(len(rows), step):
            sums[part] = _sums(_logits(rows[part], columns, scale, bias), answers, part)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, scale, bias = ctx.saved_tensors
        to_rows, to_columns, to_bias = torch.empty_like(rows), torch.zeros_like(columns), torch.zeros_like(bias)
        with torch.autocast(rows.device.type, enabled=False):
            for part in _slices(len(rows), ctx.step):
                gradient = _cell_gradient(_logits(rows[part], columns, scale, bias), ctx.answers, part)
                gradient.mul_(grad[part, None])
                to_bias += gradient.sum()
                to_rows[part] = gradient @ columns
                to_columns.addmm_(gradient.T, rows[part])
        to_scale = (to_rows * rows).sum().reshape(scale.shape)
        return to_rows.mul_(scale), to_columns.mul_(scale), to_scale.to(scale.dtype), to_bias, None, None


def _cell_gradient(logits: Tensor, answers: Tensor | Signs, part: slice) -> Tensor:
    if isinstance(answers, Tensor):
        gradient = logits.sigmoid_()
        return gradient.scatter_add_(1, answers[part, None], -torch.ones_like(gradient[:, :1]))
    signs = answers(part).to(logits.dtype)
    return (-signs * logits).sigmoid_().mul_(-signs)


def _slices(rows: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
