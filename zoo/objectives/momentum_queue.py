"""Embeddings of past steps, kept as further columns (MoCo's queue, arXiv:1911.05722)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MomentumQueue(nn.Module):
    """The last `size` rows of one view: vectors and content keys, saved with the weights.

    Every process puts in the rows that its loss sees: all hold the same, or with `gather_group` each group holds its own.
    A checkpoint has what the first process holds. Where several batches make one optimizer step, each is put in.

    Args:
        size: rows.
        dim: E.
    """

    not_broadcast = ("vectors", "keys", "pointer", "filled")
    vectors: Tensor
    keys: Tensor
    pointer: Tensor
    filled: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(size, dim))
        self.register_buffer("keys", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def held(self) -> tuple[Tensor, Tensor]:
        """Copies of what is in: vectors (K, E) and keys (K,)."""
        count = int(self.filled)
        return self.vectors[:count].clone(), self.keys[:count].clone()

    @torch.no_grad()
    def put(self, vectors: Tensor, keys: Tensor) -> None:
        """Add rows (R, E) with keys (R,) in the place of the oldest ones."""
        size = len(self.vectors)
        vectors, keys = vectors[-size:], keys[-size:]
        place = (self.pointer + torch.arange(len(keys), device=self.pointer.device)) % size
        self.vectors[place], self.keys[place] = vectors.to(self.vectors.dtype), keys
        self.pointer.copy_((self.pointer + len(keys)) % size)
        self.filled.copy_((self.filled + len(keys)).clamp(max=size))
