"""Embeddings of past steps, kept as further columns (MoCo's queue, arXiv:1911.05722)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.types import Encoded

UNKNOWN = -1  # the label or the sample of a row of which no more than its content is known


class MomentumQueue(nn.Module):
    """The last `size` rows of one view, saved with the weights: vectors, content keys, labels and numbers of their samples.

    Every process puts in the rows that its loss sees: all hold the same, or with `gather_group` each group holds its own.
    A checkpoint has what the first process holds. Where several batches make one optimizer step, each is put in.

    Args:
        size: rows.
        dim: E.
    """

    not_broadcast = ("vectors", "keys", "labels", "samples", "pointer", "filled")
    vectors: Tensor
    keys: Tensor
    labels: Tensor
    samples: Tensor
    pointer: Tensor
    filled: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(size, dim))
        self.register_buffer("keys", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("labels", torch.full((size,), UNKNOWN))
        self.register_buffer("samples", torch.full((size,), UNKNOWN))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def held(self) -> tuple[Tensor, Tensor]:
        """Copies of what is in: vectors (K, E) and keys (K,)."""
        count = int(self.filled)
        return self.vectors[:count].clone(), self.keys[:count].clone()

    @torch.no_grad()
    def put(self, vectors: Tensor, keys: Tensor, labels: Tensor | None = None, samples: Tensor | None = None) -> None:
        """Add rows (R, E) in the place of the oldest ones, with keys, labels and numbers of their samples, (R,) each."""
        size = len(self.vectors)
        if not size:
            return
        place = (self.pointer + torch.arange(min(size, len(keys)), device=self.pointer.device)) % size
        for held, given in ((self.labels, labels), (self.samples, samples), (self.keys, keys)):
            held[place] = UNKNOWN if given is None else given[-size:]
        self.vectors[place] = vectors[-size:].to(self.vectors.dtype)
        self.pointer.copy_((self.pointer + len(place)) % size)
        self.filled.copy_((self.filled + len(place)).clamp(max=size))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Queues that were saved when they held vectors and keys alone are read, too."""
        for name in ("labels", "samples"):
            state_dict.setdefault(f"{prefix}{name}", torch.full_like(self.labels, UNKNOWN))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def next_sample(queues: Mapping[str, MomentumQueue]) -> int:
    """The first number that no sample in the queues has."""
    return 1 + max((int(queue.samples.max()) for queue in queues.values() if len(queue.samples)), default=UNKNOWN)


def past(queues: Mapping[str, MomentumQueue]) -> Encoded:
    """What the queues of some views know of past samples, without vectors; no owner is one of a present sample."""
    owners, keys, labels = {}, {}, []
    for number, (name, queue) in enumerate(queues.items()):
        count = int(queue.filled)
        samples = queue.samples[:count]
        alone = -2 - number - len(queues) * torch.arange(count, device=samples.device)
        owners[name] = torch.where(samples == UNKNOWN, alone, samples) - _LONG_AGO
        keys[name] = queue.keys[:count].clone()
        labels.append(queue.labels[:count])
    sample, place = torch.cat(list(owners.values())).unique(return_inverse=True)
    of_sample = torch.full_like(sample, UNKNOWN).scatter_(0, place, torch.cat(labels))
    return Encoded({}, owners, keys, of_sample, torch.ones_like(sample, dtype=torch.float32), sample)


_LONG_AGO = 2**61
