"""Which cells of (rows of this rank) x (rows of all ranks) belong together, computed tile by tile.

Shapes: R rows, C columns, r rows of one tile.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from zoo.types import Encoded


class Match:
    """Cells of the view `rows` of `local` against the view `columns` of `everyone`.

    `own` cells hold two views of one sample. `same` cells are as right as those: equal content of the column and of the
    row's own column, equal content of the rows, or samples of one label; or equal content in a third view, `also`.
    """

    def __init__(self, local: Encoded, everyone: Encoded, rows: str, columns: str, also: str = "") -> None:
        self.row_owner, self.column_owner = local.owners[rows], everyone.owners[columns]
        self._pairs = [
            (_labels(local, self.row_owner), _labels(everyone, self.column_owner)),
            (key_of_owner(local, columns, self.row_owner), everyone.keys[columns]),
            (local.keys[rows], key_of_owner(everyone, rows, self.column_owner)),
        ]
        if also:
            owners = (local, self.row_owner), (everyone, self.column_owner)
            left, right = (key_of_owner(encoded, also, owner) for encoded, owner in owners)
            self._pairs.append((left, right))

    def own(self, part: slice) -> Tensor:
        """(r, C) bool."""
        return self.row_owner[part, None] == self.column_owner[None, :]

    def same(self, part: slice) -> Tensor:
        """(r, C) bool, the own cells among them."""
        cells = self.own(part)
        for left, right in self._pairs:
            cells |= (left[part, None] == right[None, :]) & (left[part, None] != _NONE)
        return cells

    def equals_target(self, part: slice, keys: Tensor) -> Tensor:
        """(r, K) bool: which of the content keys (K,) are that of the row's own column."""
        return self._pairs[1][0][part, None] == keys[None, :]

    @cached_property
    def column(self) -> Tensor | None:
        """(R,) the own column of every row, where each has just one; None where some have several or none."""
        order = self.column_owner.argsort(stable=True)
        owners = self.column_owner[order]
        first = torch.searchsorted(owners, self.row_owner)
        behind = torch.searchsorted(owners, self.row_owner, right=True)
        return order[first] if bool((behind - first == 1).all()) else None

    @cached_property
    def distinct(self) -> bool:
        """Whether no cell is `same` but the own ones: then no tile needs to be looked at."""
        if self.column is None:
            return False
        # a mark that stands once among the columns stands in the own one
        return all(len(marks.unique()) == len(marks) for _, right in self._pairs for marks in (right[right != _NONE],))

    @cached_property
    def square(self) -> bool:
        """Whether rows and columns belong together one to one."""
        return self.column is not None and len(self.row_owner) == len(self.column_owner)


_NONE = -1  # a mark that equals nothing


def _labels(encoded: Encoded, owner: Tensor) -> Tensor:
    """The label of the sample that each row belongs to; `_NONE` marks a sample without one, too."""
    return encoded.labels[torch.searchsorted(encoded.sample, owner)]


def key_of_owner(encoded: Encoded, view: str, owner: Tensor) -> Tensor:
    """Content key of the sample's first row in `view`, for every owner; `_NONE` where it has none there."""
    owners, keys = encoded.owners[view], encoded.keys[view]
    order = owners.argsort(stable=True)
    place = torch.searchsorted(owners[order], owner).clamp(max=len(order) - 1)
    found = order[place]
    return torch.where(owners[found] == owner, keys[found], torch.full_like(owner, _NONE))
