"""Ranks by rounded scores first: exact scores only of the few candidates that are too close to a relevant one to tell.

Shapes: C candidates, of which U are distinct, E width; b queries of a block, R relevant candidates of a query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from zoo.metrics.counting import FEW, compared
from zoo.metrics.rounded import Rounded, pays, thresholds

_OPEN = 512  # one in so many scores may be undecided: more take longer than fp32 products would (ours, 2 CPU cores)
_LOOKED_AT = (
    1 << 16
)  # for so many scores one relevant candidate may have any: each is a round of the loop (ours, likewise)


@dataclass(frozen=True, slots=True)
class RoundedRanks:
    """What ranking against one set of candidates needs. Where these hold duplicates, `copies` (U,) says how many."""

    distinct: Tensor
    first_of: Tensor
    copies: Tensor
    offered: Rounded

    @classmethod
    def of(cls, candidates: Tensor, distinct: Tensor, first_of: Tensor, queries: int, relevant: int) -> Self | None:
        """None where fp32 is as fast: few queries, no such matrix units, relevant candidates too many to be compared singly.

        Args:
            candidates: (C, E) fp32.
            distinct: (U, E), the distinct ones.
            first_of: (C,), which of them each is.
            queries: how many will be ranked.
            relevant: R.
        """
        if relevant > FEW or not pays(queries, candidates):
            return None
        return cls(distinct, first_of, first_of.bincount(minlength=len(distinct)), Rounded.of(candidates))

    def places(self, queries: Tensor, columns: Tensor, inside: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """The fields of `Ranks` for the relevant candidates `columns` (b, R), `inside` of which are real.

        None where too many scores are undecided.
        """
        asked = Rounded.of(queries)
        which = self.first_of[columns]
        own = _products(queries[:, None], self.distinct[which]).masked_fill(~inside, torch.nan)
        low, high = thresholds(own, asked.error(self.offered)[:, None])
        scores = asked.values @ self.offered.values.T
        above = compared(scores, high, torch.gt)
        undecided = compared(scores, low, torch.ge) - above
        tied = self.copies[which] * inside  # which are among the undecided
        if int((undecided - tied).sum()) > scores.numel() // _OPEN:
            return None
        rounds = (undecided > tied).nonzero()
        if len(rounds) > max(1, scores.numel() // _LOOKED_AT):
            return None
        for row, column in rounds.tolist():
            close = ((scores[row] >= low[row, column]) & (scores[row] <= high[row, column])).nonzero().squeeze(1)
            others = self.first_of[close]
            others = others[others != which[row, column]]
            found = _products(queries[row], self.distinct[others])
            above[row, column] += (found > own[row, column]).sum()
            tied[row, column] += (found == own[row, column]).sum()
        same = (own[:, :, None] == own[:, None]) | (which[:, :, None] == which[:, None])
        return above, tied, (same & inside[:, None] & inside[:, :, None]).sum(2), inside


def _products(queries: Tensor, candidates: Tensor) -> Tensor:
    """Dot products of rows, each summed in the same order wherever it stands."""
    return (queries * candidates).sum(-1)
