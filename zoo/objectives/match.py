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

    `own` cells hold two views of one sample. `same` cells are as right as those: the column has the content of one of the
    row's own columns, the row has the content of one of the column's own rows, or their samples have one label; or they
    have equal content in a third view, `also`. Keys may be (R, K) where a row has K contents (see `SoftMatch`).
    """

    def __init__(self, local: Encoded, everyone: Encoded, rows: str, columns: str, also: str = "") -> None:
        self.row_owner, self.column_owner = local.owners[rows], everyone.owners[columns]
        self._contents = everyone.keys[columns]
        self._pairs = [
            (_labels(local, self.row_owner)[:, None], _labels(everyone, self.column_owner)[:, None]),
            (keys_of_owner(local, columns, self.row_owner), _table(self._contents)),
            (_table(local.keys[rows]), keys_of_owner(everyone, rows, self.column_owner)),
        ]
        self._marks = [(everyone.labels, everyone.sample)]
        self._marks += [(everyone.keys[name], everyone.owners[name]) for name in (rows, columns, also) if name]
        if also:
            owners = (local, self.row_owner), (everyone, self.column_owner)
            left, right = (keys_of_owner(encoded, also, owner) for encoded, owner in owners)
            self._pairs.append((left, right))

    def own(self, part: slice) -> Tensor:
        """(r, C) bool."""
        return self.row_owner[part, None] == self.column_owner[None, :]

    def same(self, part: slice) -> Tensor:
        """(r, C) bool, the own cells among them."""
        cells = self.own(part)
        for left, right in self._pairs:
            for mark in left[part].unbind(1):
                for other in right.unbind(1):
                    cells |= (mark[:, None] == other[None, :]) & (mark[:, None] != _NONE)
        return cells

    def equals_target(self, part: slice, keys: Tensor) -> Tensor:
        """(r, K) bool: which of the content keys (K,) are those of right columns, the own ones and what is as right."""
        cells = self.own(part) if self.distinct else self.same(part)
        contents, code = self._contents.unique(return_inverse=True)
        if not len(contents):
            return cells.new_zeros(len(cells), len(keys))
        right = cells.new_zeros(len(cells), len(contents), dtype=torch.float32).index_add_(1, code, cells.float()) > 0
        place = torch.searchsorted(contents, keys).clamp(max=len(contents) - 1)
        found: Tensor = right[:, place] & (contents[place] == keys)
        return found

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
        return not any(_shared(marks, owners) for marks, owners in self._marks)

    @cached_property
    def square(self) -> bool:
        """Whether rows and columns belong together one to one."""
        one_to_one = self.column is not None and len(self.row_owner) == len(self.column_owner)
        return one_to_one and len(self.row_owner.unique()) == len(self.row_owner)


_NONE = -1  # a mark that equals nothing


def _labels(encoded: Encoded, owner: Tensor) -> Tensor:
    """The label of the sample that each row belongs to; `_NONE` marks a sample without one, too."""
    return encoded.labels[torch.searchsorted(encoded.sample, owner)]


def _table(keys: Tensor) -> Tensor:
    return keys if keys.ndim == 2 else keys[:, None]


def _shared(marks: Tensor, owners: Tensor) -> bool:
    """Whether a mark (N,) stands at rows of two samples."""
    order = marks.argsort()
    marks, owners = marks[order], owners[order]
    return bool(((marks[1:] == marks[:-1]) & (owners[1:] != owners[:-1]) & (marks[1:] != _NONE)).any())


def keys_of_owner(encoded: Encoded, view: str, owner: Tensor) -> Tensor:
    """(N, K) content keys of all rows that a sample has in `view`, for every owner (N,); `_NONE` where it has fewer."""
    owners, keys = encoded.owners[view], encoded.keys[view]
    order = owners.argsort(stable=True)
    owners, keys = owners[order], keys[order]
    first = torch.searchsorted(owners, owner)
    counts = torch.searchsorted(owners, owner, right=True) - first
    most = int(counts.max()) if len(counts) else 0
    numbers = torch.arange(most, device=owner.device)
    found = keys[(first[:, None] + numbers).clamp(max=max(0, len(keys) - 1))]
    return found.masked_fill(numbers >= counts[:, None], _NONE)
