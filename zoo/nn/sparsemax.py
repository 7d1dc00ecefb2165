"""Sparsemax: like softmax, but what is far behind gets exactly 0."""

from __future__ import annotations

import torch
from torch import Tensor


def sparsemax(scores: Tensor) -> Tensor:
    """The point of the probability simplex that is nearest to the scores along the last axis (arXiv:1602.02068).

    p_i = max(0, z_i - tau), tau such that they add up to 1 (Algorithm 1). Scores may be -inf, but not all of a row.

    Args:
        scores: (..., C). Half precision is raised to fp32: tau is a sum over up to thousands of scores.

    Returns:
        (..., C), not negative, sum 1. Its gradient is that of the projection.
    """
    scores = scores if scores.dtype == torch.float64 else scores.float()
    # what lies 1 or more behind the best one gets 0 whatever the others are: -inf may be -2
    shifted = (scores - scores.detach().amax(-1, keepdim=True)).clamp(min=-2.0)
    ordered = shifted.sort(dim=-1, descending=True).values
    sums = ordered.cumsum(-1)
    place = torch.arange(1, scores.shape[-1] + 1, dtype=scores.dtype, device=scores.device)
    kept = (1 + place * ordered > sums).sum(-1, keepdim=True)
    tau = (sums.gather(-1, kept - 1) - 1) / kept
    return (shifted - tau).clamp(min=0.0)
