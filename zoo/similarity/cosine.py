"""The similarity of points: the cosine of the means."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.similarity.similarity import Similarity, widened
from zoo.types import Embedding


class Cosine(nn.Module, Similarity):
    """The inner product of the vectors, which are of unit norm; what is known of their uncertainty does not count."""

    def forward(self, queries: Embedding, keys: Embedding) -> Tensor:
        """See `Similarity`."""
        left, right = widened(queries.vector), widened(keys.vector)
        with torch.autocast(left.device.type, enabled=False):
            return left @ right.T
