"""One direction of a contrastive loss: what the core needs to know of two views of encoded rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.objectives.adjust import Adjustment
from zoo.objectives.contrastive import SoftmaxLosses, softmax_losses
from zoo.objectives.match import Match
from zoo.objectives.objective import view
from zoo.types import Encoded

Duplicates = Literal["mask", "positive", "keep"]


class Direction:
    """Rows of one view of this rank against the columns of another view of all ranks, as the core takes them."""

    def __init__(
        self, local: Encoded, everyone: Encoded, rows: str, columns: str, duplicates: Duplicates = "mask"
    ) -> None:
        self.rows, self.columns = view(local, rows).vector, view(everyone, columns).vector
        self.local, self.everyone = local, everyone
        self.row_view, self.column_view = rows, columns
        self.match = Match(local, everyone, rows, columns)
        self.duplicates = duplicates
        self._extra: list[Callable[[slice], Tensor]] = []  # of further columns: which cells of a tile are taken out

    def extend(self, name: str, own_only: bool) -> None:
        """Further columns that are nobody's targets: the rows of view `name`.

        Each stands against the rows of its own sample only, or against all.
        """
        self.columns = torch.cat([self.columns, view(self.everyone, name).vector])
        self._extra.append(lambda part: self._hidden_negatives(part, name, own_only))

    def extend_own_side(self) -> None:
        """Further columns: the rows of the row's own view, without the row itself and what is as right as it."""
        self.columns = torch.cat([self.columns, view(self.everyone, self.row_view).vector])
        match = Match(self.local, self.everyone, self.row_view, self.row_view, also=self.column_view)
        self._extra.append(match.own if self.duplicates == "keep" else match.same)

    @property
    def mutual(self) -> bool:
        """Whether the cells mean the same seen from the columns, one row to one column."""
        return self.match.square and not self._extra and (self.match.distinct or self.duplicates != "positive")

    def losses(
        self, scale: Tensor, adjust: Sequence[Adjustment] = (), smoothing: float = 0.0, both: bool = False
    ) -> SoftmaxLosses:
        """Cross-entropy of the rows; `both`: of the columns, too."""
        several = self.duplicates == "positive" and not self.match.distinct
        target = self.match.column if self.match.column is not None and not several else self._targets
        hides = bool(self._extra) or (self.duplicates == "mask" and not self.match.distinct)
        hook = (lambda logits, part: self._adjusted(logits, part, scale, adjust)) if hides or adjust else None
        return softmax_losses(self.rows, self.columns, scale, target, hook, smoothing, both)

    def _targets(self, part: slice) -> Tensor:
        """Own cells, or all that are as right, of equal weight."""
        target = self._right(part).to(self.rows.dtype if self.rows.dtype == torch.float64 else torch.float32)
        target /= target.sum(1, keepdim=True)
        return F.pad(target, (0, len(self.columns) - target.shape[1]))

    def _adjusted(self, logits: Tensor, part: slice, scale: Tensor, adjust: Sequence[Adjustment]) -> Tensor:
        right = F.pad(self._right(part), (0, len(self.columns) - len(self.match.column_owner)))
        logits = logits.masked_fill(self._hidden(part), -torch.inf)
        for change in adjust:
            logits = change(logits, right, scale.detach())
        return logits

    def _right(self, part: slice) -> Tensor:
        """(r, columns of the other view) bool: the cells that are targets."""
        return self.match.same(part) if self.duplicates == "positive" else self.match.own(part)

    def _hidden(self, part: slice) -> Tensor:
        """(r, C) cells that are taken out."""
        hidden = torch.zeros_like(self.match.own(part))
        if self.duplicates == "mask":
            hidden = self.match.same(part) & ~self.match.own(part)
        return torch.cat([hidden, *(taken_out(part) for taken_out in self._extra)], dim=1)

    def _hidden_negatives(self, part: slice, name: str, own_only: bool) -> Tensor:
        owner = self.match.row_owner[part, None]
        extra = torch.zeros(len(owner), len(self.everyone.owners[name]), dtype=torch.bool, device=owner.device)
        if own_only:
            extra = owner != self.everyone.owners[name][None, :]
        if self.duplicates != "keep":  # a mined negative can be the positive itself
            extra = extra | self.match.equals_target(part, self.everyone.keys[name])
        return extra
