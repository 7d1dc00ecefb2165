"""What every similarity looks like, and how it reads distributions from embeddings.

R queries, C keys, E width. An embedding that is a distribution is a Gaussian with a diagonal covariance: `vector` is its
mean, `log_var` is log sigma^2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from zoo.errors import RecipeError
from zoo.types import Embedding

LIMIT = 60.0
"""Log variances are held within +- this, so that e^LIMIT, times a scale and summed over E, still is a number in fp32."""


class Similarity(Protocol):
    """Queries (R rows) and keys (C rows) -> scores (R, C), fp32 or fp64; larger = more alike."""

    def forward(self, queries: Embedding, keys: Embedding) -> Tensor:
        """See the class."""
        ...

    if (
        TYPE_CHECKING
    ):  # jsonargparse takes a protocol that has `__call__` for a factory; modules are called all the same

        def __call__(self, queries: Embedding, keys: Embedding) -> Tensor: ...


def gaussian(embedding: Embedding) -> tuple[Tensor, Tensor]:
    """Mean and log variance, both (R, E), in fp32 or fp64; the log variance within +-`LIMIT`.

    Raises RecipeError if the embedding is a point.
    """
    if embedding.log_var is None:
        raise RecipeError(
            "the embeddings have no log_var, so there is no distribution to compare: give the model a head that predicts "
            "one, or compare vectors (zoo.similarity.cosine.Cosine)"
        )
    return widened(embedding.vector), widened(embedding.log_var).clamp(-LIMIT, LIMIT)


def widened(values: Tensor) -> Tensor:
    """Half precision raised to fp32: a bf16 product of two means is off by 4e-3, of the size of a trained variance."""
    return values if values.dtype == torch.float64 else values.float()
