"""The contrastive core: rows of queries against rows of keys, a mask per cell, then a log-sum-exp."""

from __future__ import annotations

import torch
from torch import Tensor


def row_cross_entropy(logits: Tensor, positive: Tensor, kept: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of every row, (R,), over the columns that are kept.

    Args:
        logits: (R, C) fp32.
        positive: (R, C) bool, at least one per row; several are averaged (each against all kept columns).
        kept: (R, C) bool, False takes a column out of the row altogether. Positives must be kept.
        smoothing: this share of the target is spread evenly over the kept columns (positives included, as in
            torch.nn.functional.cross_entropy).
    """
    log_probability = logits - logits.masked_fill(~kept, -torch.inf).logsumexp(dim=1, keepdim=True)
    # masked cells may hold anything, so they are replaced before they meet a weight of zero
    log_probability = torch.where(kept, log_probability, 0.0)
    losses = -(log_probability * positive).sum(dim=1) / positive.sum(dim=1)
    if smoothing:
        even = -log_probability.sum(dim=1) / kept.sum(dim=1)
        losses = (1 - smoothing) * losses + smoothing * even
    return losses


def at_least_fp32(vectors: Tensor) -> Tensor:
    """Half precision raised to fp32: near 0.5 a bf16 cosine is off by up to .004, .2 in logits at temperature .02."""
    return vectors if vectors.dtype == torch.float64 else vectors.float()
