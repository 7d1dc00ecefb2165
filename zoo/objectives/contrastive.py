"""The contrastive core: rows of queries against rows of keys, in tiles, so that no matrix of all pairs is ever held.

Two primitives carry nearly every objective of the zoo:

    softmax_losses   cross-entropy of every row (and, from the same tiles, of every column): InfoNCE and its kin
    row_blocks       any loss of a row that looks at all columns: sigmoid, triplet, uniformity, ...

A tile is a block of rows against all columns. The forward pass keeps a fp32 log-sum-exp per row (and column); the backward
pass computes each tile again. Both are exact: what is saved is memory, which grows with N instead of N x N. Below
`DENSE_CELLS` cells there is one tile and autograd keeps it, which is faster there (docs/performance.md has the figures).

Shapes: R rows, C columns, D width, r rows of one tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

DENSE_CELLS = 1 << 18  # cells of a matrix that is computed in one piece (measured crossover, docs/performance.md)
TILE_CELLS = 1 << 20  # cells of a tile: 4 MiB per fp32 matrix, which stays in the cache of a CPU core

Adjust = Callable[[Tensor, slice], Tensor]
"""(logits (r, C), which rows) -> logits + a constant per cell; -inf takes a cell out. Its result must not depend on the
logits but through constants: gradients pass it unchanged. May work in place on the logits."""

Target = Callable[[slice], Tensor]
"""Which rows -> (r, C) target weights >= 0, 0 where `Adjust` gives -inf. No gradient."""


@dataclass(frozen=True, slots=True)
class SoftmaxLosses:
    """rows (R,) and, where asked for, columns (C,) fp32 losses; correct (R,) bool: the best cell of the row is a target."""

    rows: Tensor
    columns: Tensor | None
    correct: Tensor


def softmax_losses(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    target: Tensor | Target,
    adjust: Adjust | None = None,
    smoothing: float = 0.0,
    both: bool = False,
    dense_cells: int | None = None,
    tile_cells: int | None = None,
) -> SoftmaxLosses:
    """Cross-entropy of rows against columns: sum_j T_ij (lse_i - z_ij), z = adjust(scale * rows @ columns^T).

    Args:
        rows: (R, D). Half precision is raised to fp32, fp64 stays.
        columns: (C, D); there may be none where there are no rows.
        scale: scalar; gets a gradient.
        target: (R,) int64, the one right column of each row; or `Target`, for several or soft ones.
        adjust: see `Adjust`.
        smoothing: this share of the target is spread evenly over the cells that are not -inf (the right one included, as
            in torch.nn.functional.cross_entropy).
        both: also the losses of the columns against the rows, from the same tiles. `target` is then a permutation and
            `adjust` means the same seen from either side.
        dense_cells: instead of `DENSE_CELLS`.
        tile_cells: instead of `TILE_CELLS`.

    Returns:
        `SoftmaxLosses`, with gradients to rows, columns and scale.
    """
    if both and not (isinstance(target, Tensor) and len(rows) == len(columns)):
        raise ValueError("losses of both sides need one column per row and one row per column")
    dense = DENSE_CELLS if dense_cells is None else dense_cells
    cells = TILE_CELLS if tile_cells is None else tile_cells
    rows, columns, scale = at_least_fp32(rows), at_least_fp32(columns), at_least_fp32(scale)
    options = _Softmax(target, adjust, smoothing, both, _step(len(columns), cells))
    with torch.autocast(rows.device.type, enabled=False):
        if not len(columns):
            found = _nothing(rows, columns, scale)
        elif len(rows) * len(columns) <= dense:
            found = _dense(rows, columns, scale, options)
        else:
            found = _TiledSoftmax.apply(rows, columns, scale, options)
    return SoftmaxLosses(found[0], found[1] if both else None, found[2])


def row_blocks(
    block: Callable[[slice], Tensor],
    rows: int,
    columns: int,
    dense_cells: int | None = None,
    tile_cells: int | None = None,
) -> Tensor:
    """`block(which rows)` for all rows, joined along the first axis; each block is computed again in the backward pass.

    Args:
        block: differentiable; may use any tensor that it closes over. Returns one entry per row.
        rows: how many rows there are.
        columns: how many cells each row looks at, which decides the size of a block.
        dense_cells: as in `softmax_losses`.
        tile_cells: as in `softmax_losses`.
    """
    if rows * columns <= (DENSE_CELLS if dense_cells is None else dense_cells):
        return block(slice(0, rows))
    step = _step(columns, TILE_CELLS if tile_cells is None else tile_cells)
    parts = [checkpoint(block, part, use_reentrant=False, preserve_rng_state=False) for part in _slices(rows, step)]
    return torch.cat(parts)


def at_least_fp32(vectors: Tensor) -> Tensor:
    """Half precision raised to fp32: near 0.5 a bf16 cosine is off by up to .004, .2 in logits at temperature .02."""
    return vectors if vectors.dtype == torch.float64 else vectors.float()


# ---- one tile --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Softmax:
    target: Tensor | Target
    adjust: Adjust | None
    smoothing: float
    both: bool
    step: int


def _logits(rows: Tensor, columns: Tensor, scale: Tensor, options: _Softmax, part: slice) -> Tensor:
    logits = (rows[part] * scale) @ columns.T
    return logits if options.adjust is None else options.adjust(logits, part)


def _kept(logits: Tensor, options: _Softmax) -> Tensor:
    """1 for cells that take part; without a hook that is all of them."""
    return torch.ones_like(logits) if options.adjust is None else (logits > -torch.inf).to(logits.dtype)


def _finite(logits: Tensor, options: _Softmax) -> Tensor:
    """Logits to be summed with weights: what is taken out has weight 0, and 0 times -inf is not 0."""
    return logits if options.adjust is None else logits.masked_fill(logits == -torch.inf, 0.0)


def _row_terms(logits: Tensor, lse: Tensor, options: _Softmax, part: slice) -> tuple[Tensor, Tensor]:
    """Losses of the rows of a tile, and which are correct."""
    best = logits.detach().argmax(dim=1, keepdim=True)
    if isinstance(options.target, Tensor):
        own = options.target[part, None]
        losses = lse - logits.gather(1, own).squeeze(1)
        correct = (best == own).squeeze(1)
    else:
        target = options.target(part).to(logits.dtype)
        losses = lse * target.sum(1) - (target * _finite(logits, options)).sum(1)
        correct = target.gather(1, best).squeeze(1) > 0
    if options.smoothing:
        mean = _finite(logits, options).sum(1) / _kept(logits, options).sum(1)
        losses = (1 - options.smoothing) * losses + options.smoothing * (lse - mean)
    return losses, correct


def _dense(rows: Tensor, columns: Tensor, scale: Tensor, options: _Softmax) -> tuple[Tensor, Tensor, Tensor]:
    everything = slice(0, len(rows))
    logits = _logits(rows, columns, scale, options, everything)
    losses, correct = _row_terms(logits, logits.logsumexp(1), options, everything)
    if not options.both:
        return losses, losses.new_zeros(0), correct
    turned = _Softmax(_inverse(options.target), options.adjust, options.smoothing, False, options.step)
    return losses, _row_terms(logits.T, logits.logsumexp(0), turned, everything)[0], correct


def _nothing(rows: Tensor, columns: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """No rows against no columns, still part of the graph: all processes must have the same gradients to share."""
    losses = ((rows * scale) @ columns.T).sum(1)
    return losses, losses, torch.zeros(len(rows), dtype=torch.bool, device=rows.device)


def _inverse(target: Any) -> Tensor:
    return torch.empty_like(target).scatter_(0, target, torch.arange(len(target), device=target.device))


# ---- all tiles -------------------------------------------------------------------------------------------------------


class _TiledSoftmax(torch.autograd.Function):
    """Losses tile by tile; the backward pass needs the log-sum-exps alone and closes in four matrix products in all."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, options: _Softmax) -> tuple[Tensor, ...]:
        lse, losses = rows.new_empty(len(rows)), rows.new_empty(len(rows))
        correct = torch.empty(len(rows), dtype=torch.bool, device=rows.device)
        side = _Columns(rows, columns) if options.both else None
        for part in _slices(len(rows), options.step):
            logits = _logits(rows, columns, scale, options, part)
            lse[part] = logits.logsumexp(1)
            losses[part], correct[part] = _row_terms(logits, lse[part], options, part)
            if side is not None:
                side.add(logits, part, options)
        ctx.options = options
        ctx.save_for_backward(rows, columns, scale, lse, *([side.lse, side.count] if side else []))
        ctx.mark_non_differentiable(correct)
        return losses, side.losses(options) if side else losses.new_zeros(0), correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, row_grad: Tensor, column_grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, scale, lse, *side = ctx.saved_tensors
        options: _Softmax = ctx.options
        to_rows, to_columns = torch.empty_like(rows), torch.zeros_like(columns)
        with torch.autocast(rows.device.type, enabled=False):
            for part in _slices(len(rows), options.step):
                logits = _logits(rows, columns, scale, options, part)
                gradient = _cell_gradient(logits, lse[part], row_grad[part], options, part)
                if options.both:
                    _add_column_gradient(gradient, logits, side, row_grad, column_grad, options, part)
                to_rows[part] = gradient @ columns
                to_columns.addmm_(gradient.T, rows[part])
        # d loss / d scale = sum of gradient x cosine = sum over rows of <row, what came back to it>
        to_scale = (to_rows * rows).sum().reshape(scale.shape)
        return to_rows.mul_(scale), to_columns.mul_(scale), to_scale.to(scale.dtype), None


def _cell_gradient(logits: Tensor, lse: Tensor, grad: Tensor, options: _Softmax, part: slice) -> Tensor:
    """Gradient of sum(row losses x grad) with respect to the logits, (r, C)."""
    gradient = (logits - lse[:, None]).exp_()
    if isinstance(options.target, Tensor):
        gradient.mul_(grad[:, None])
        gradient.scatter_add_(1, options.target[part, None], -(1 - options.smoothing) * grad[:, None])
    else:
        target = options.target(part).to(logits.dtype)
        mass = (1 - options.smoothing) * target.sum(1) + options.smoothing
        gradient.mul_((grad * mass)[:, None]).sub_(target * ((1 - options.smoothing) * grad)[:, None])
    if options.smoothing:
        kept = _kept(logits, options)
        gradient.sub_(kept * (options.smoothing * grad / kept.sum(1))[:, None])
    return gradient


def _add_column_gradient(
    gradient: Tensor,
    logits: Tensor,
    side: list[Tensor],
    row_grad: Tensor,
    column_grad: Tensor,
    options: _Softmax,
    part: slice,
) -> None:
    """The same seen from the columns, whose own row is the inverse of the target."""
    lse, count = side
    assert isinstance(options.target, Tensor)
    own = options.target[part]
    gradient.addcmul_((logits - lse).exp_(), column_grad[None, :])
    gradient.scatter_add_(1, own[:, None], -(1 - options.smoothing) * column_grad[own, None])
    if options.smoothing:
        gradient.sub_(_kept(logits, options) * (options.smoothing * column_grad / count))


class _Columns:
    """What the columns need to know of all rows: log-sum-exp, own logit, and for smoothing sum and number of cells."""

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        self.lse = rows.new_full((len(columns),), -torch.inf)
        self.own = rows.new_zeros(len(columns))
        self.sum, self.count = rows.new_zeros(len(columns)), rows.new_zeros(len(columns))

    def add(self, logits: Tensor, part: slice, options: _Softmax) -> None:
        self.lse = torch.logaddexp(self.lse, logits.logsumexp(0))
        assert isinstance(options.target, Tensor)
        own = options.target[part]
        self.own[own] = logits.gather(1, own[:, None]).squeeze(1)
        if options.smoothing:
            self.sum += _finite(logits, options).sum(0)
            self.count += _kept(logits, options).sum(0)

    def losses(self, options: _Softmax) -> Tensor:
        losses = self.lse - self.own
        if options.smoothing:
            even = self.lse - self.sum / self.count
            losses = (1 - options.smoothing) * losses + options.smoothing * even
        return losses


def _step(columns: int, cells: int) -> int:
    return max(1, cells // max(1, columns))


def _slices(rows: int, step: int) -> Iterator[slice]:
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
