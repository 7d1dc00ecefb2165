"""CSD as an inner product, so that any index of inner products (faiss, hnswlib, a data base) ranks exactly as CSD does.

The variance of the query is the same for all items, so it does not count in the ranking:

    -CSD(q, g) + |mu_q|^2 + trace_q = 2 mu_q.mu_g - (|mu_g|^2 + trace_g) = [2 mu_q, -1] . [mu_g, |mu_g|^2 + trace_g]

One coordinate more than the embedding has. An index that compares by cosine would not do: items differ in norm, which is
just what tells the uncertain ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.similarity.similarity import gaussian
from zoo.types import Embedding


def query_vectors(queries: Embedding) -> Tensor:
    """(R, E + 1): what to search with. Only the means count."""
    mean, _ = gaussian(queries)
    return torch.cat([2 * mean, -torch.ones_like(mean[:, :1])], dim=1)


def item_vectors(items: Embedding) -> Tensor:
    """(C, E + 1): what to store."""
    mean, log_var = gaussian(items)
    return torch.cat([mean, _spread(mean, log_var)], dim=1)


def scores(products: Tensor, queries: Embedding) -> Tensor:
    """-CSD (R, k) from the inner products (R, k) that an index returned for each query."""
    mean, log_var = gaussian(queries)
    return products.to(mean) - _spread(mean, log_var)


def _spread(mean: Tensor, log_var: Tensor) -> Tensor:
    return mean.square().sum(1, keepdim=True) + log_var.exp().sum(1, keepdim=True)
