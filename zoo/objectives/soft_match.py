"""How much each cell is a match where samples were mixed: labels in [0, 1], tile by tile.

R rows, C columns, r rows of one tile.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from zoo.objectives.direction import Duplicates
from zoo.objectives.match import Match, keys_of_owner
from zoo.types import Encoded


class SoftMatch:
    """Cells of the view `rows` of `local` against the view `columns` of `everyone`.

    A row that is a mixture of two samples matches what either matches, in the shares of the mixture (`Encoded.mixed`).

    Args:
        local: rows of this rank.
        everyone: rows of all ranks.
        rows: name of a view.
        columns: name of a view.
        duplicates: what becomes of cells that are as right as the own one: "positive" makes them matches, "mask" takes them
            out, "keep" leaves them as they are: no matches.
        smoothing: s; labels m become s + (1 - 2 s) m.
    """

    def __init__(
        self, local: Encoded, everyone: Encoded, rows: str, columns: str, duplicates: Duplicates, smoothing: float = 0.0
    ) -> None:
        self.duplicates = duplicates
        self.smoothing = smoothing
        self._matches = [
            (Match(left, right, rows, columns), of_row, of_column)
            for left, of_row in _origins(local, rows)
            for right, of_column in _origins(everyone, columns)
        ]

    def labels(self, part: slice, dtype: torch.dtype = torch.float32) -> Tensor:
        """(r, C) in [0, 1]; -1 = the cell does not count."""
        total: Tensor | None = None
        hidden: Tensor | None = None
        for match, of_row, of_column in self._matches:
            own = match.own(part)
            same = own if self.duplicates == "keep" else match.same(part)
            weight = of_row[part, None].to(dtype) * of_column.to(dtype)
            term = weight * (same if self.duplicates == "positive" else own)
            total = term if total is None else total + term
            if self.duplicates == "mask":
                doubtful = same & ~own & (weight > 0)
                hidden = doubtful if hidden is None else hidden | doubtful
        assert total is not None  # every row has an origin
        labels = self.smoothing + (1 - 2 * self.smoothing) * total
        return labels if hidden is None else labels.masked_fill(hidden & (total == 0), -1.0)


def _origins(encoded: Encoded, name: str) -> list[tuple[Encoded, Tensor]]:
    """The samples that the rows of a view are made of, as if each row was that sample's, and their shares (R,)."""
    owners = encoded.owners[name]
    if name not in encoded.mixed or bool((encoded.mixed[name].share == 1).all()):
        return [(encoded, torch.ones_like(owners, dtype=torch.float32))]
    mixture = encoded.mixed[name]
    keys = keys_of_owner(encoded, name, mixture.partner)
    other = replace(encoded, owners=encoded.owners | {name: mixture.partner}, keys=encoded.keys | {name: keys})
    return [(encoded, mixture.share), (other, 1 - mixture.share)]
