"""Whether probabilities mean what they say: of all answers given with 70 %, 70 % should be right.

N answers, B bins of equal width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.errors import SampleError


@dataclass(frozen=True, slots=True)
class Reliability:
    """Of the bins that are not empty, (B,) float64 each: mean probability, share that was right, number of answers."""

    confidence: Tensor
    accuracy: Tensor
    count: Tensor

    def error(self) -> float:
        """Expected calibration error: |accuracy - confidence|, weighted by the number of answers (Naeini et al. 2015)."""
        return float(((self.accuracy - self.confidence).abs() * self.count).sum() / self.count.sum())


class Calibration:
    """Collects answers block by block, in memory that does not grow with them.

    Args:
        bins: of equal width between 0 and 1; 15 is usual (Guo et al., arXiv:1706.04599).
    """

    def __init__(self, bins: int = 15) -> None:
        if bins < 1:
            raise SampleError(f"calibration needs a bin at least, not {bins}")
        self._sums = torch.zeros(3, bins, dtype=torch.float64)  # of probabilities, of right answers, of answers

    def add(self, probabilities: Tensor, right: Tensor) -> None:
        """Further answers, both of any one shape. Raises SampleError for what is no probability."""
        given, right = probabilities.detach().flatten().cpu().double(), right.detach().flatten().cpu().double()
        if given.shape != right.shape:
            raise SampleError(f"{len(given)} probabilities, but {len(right)} answers are known to be right or wrong")
        if bad := (~((given >= 0) & (given <= 1))).nonzero().flatten().tolist():
            raise SampleError(f"entry {bad[0]} is {float(given[bad[0]])}, which is no probability; give exp(log p)")
        bins = self._sums.shape[1]
        place = (given * bins).long().clamp(max=bins - 1)
        values = torch.stack([given, right, torch.ones_like(given)])
        self._sums.index_add_(1, place, values)

    def result(self) -> Reliability:
        """What was collected. Raises SampleError if that is nothing."""
        kept = self._sums[2] > 0
        if not bool(kept.any()):
            raise SampleError("there are no answers to calibrate")
        given, right, count = self._sums[:, kept]
        return Reliability(given / count, right / count, count)
