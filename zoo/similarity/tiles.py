"""Scores of all pairs in tiles, for scores that no matrix product gives: a tile bounds what is held at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

TILE_CELLS = 1 << 22  # values of one intermediate tensor: 16 MiB in fp32


def tiled(
    score: Callable[[slice, slice], Tensor], rows: int, columns: int, cells: int, tile_cells: int | None = None
) -> Tensor:
    """`score(which rows, which columns)` for all pairs, (rows, columns); each tile is computed again in the backward pass.

    Args:
        score: differentiable, (r, c); may use any tensor that it closes over.
        rows: how many rows there are.
        columns: how many columns.
        cells: values that one pair takes on the way, which decides the size of a tile.
        tile_cells: instead of `TILE_CELLS`.
    """
    pairs = max(1, (TILE_CELLS if tile_cells is None else tile_cells) // cells)
    width = max(1, min(columns, pairs))
    height = max(1, pairs // width)
    if rows <= height and columns <= width:
        return score(slice(0, rows), slice(0, columns))
    return torch.cat(
        [
            torch.cat([_again(score, part, other) for other in _slices(columns, width)], dim=1)
            for part in _slices(rows, height)
        ]
    )


def _again(score: Callable[[slice, slice], Tensor], rows: slice, columns: slice) -> Tensor:
    found: Tensor = checkpoint(score, rows, columns, use_reentrant=False, preserve_rng_state=False)
    return found


def _slices(count: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]
