"""Which samples make up a batch: a pure function of (seed, epoch, number of the batch), so a resumed run is exact."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from zoo.data.source import Source
from zoo.errors import RecipeError, UnknownNameError

Indexes = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample to make: record `index` of source number `source`; `seed` decides all that varies."""

    source: int
    index: int
    seed: int


class HomogeneousBatches(Sampler[list[Draw]]):
    """Batches whose samples come from one source each, with as few equal targets as the data allows.

    In-batch negatives of another task are too easy, and equal targets are false negatives. So every group of `homogeneous`
    samples comes from one source, and the records of a source that share a `duplicate_key(index)` (an optional method of
    the source) are dealt out over as many batches of the epoch as there are: none meet in a batch unless there are more of
    them than batches, and then they are spread evenly.

    An epoch uses every record once, less what does not fill a batch; which records are left out changes by epoch. With
    `weights` a source may be used in part, or several times over.

    The sampler has no state but `epoch` and `start` (see `seek`). All ranks draw the same global batch and take equal
    slices of it, so the union over the ranks depends on the global batch size alone.

    Args:
        sources: where the samples come from.
        batch_size: samples per rank.
        seed: decides the order, and with it everything random about the samples.
        weights: relative share of the batches per source, in their order or by name (1 where not named); None = by size.
        homogeneous: samples per rank that share their source; divides `batch_size`. None = the whole batch.
        rank: which slice to take.
        world_size: number of slices.

    Raises:
        RecipeError: sizes or weights that do not fit the sources.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        batch_size: int,
        seed: int = 0,
        weights: Sequence[float] | Mapping[str, float] | None = None,
        homogeneous: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or (homogeneous is not None and (homogeneous < 1 or batch_size % homogeneous)):
            raise RecipeError(f"batch_size {batch_size} is not a multiple of homogeneous {homogeneous}, or below 1")
        self.sources, self.seed, self.rank = list(sources), seed, rank
        self.share = homogeneous or batch_size
        self.group_size = self.share * world_size
        self.groups_per_batch = batch_size // self.share
        self.groups = self._groups_per_source(_listed(weights, self.sources))
        self.epoch, self.start = 0, 0
        self._codes: list[Indexes] | None = None
        if not len(self):
            raise RecipeError(f"the training data has fewer samples than one batch of {batch_size * world_size}")

    def _groups_per_source(self, weights: list[float] | None) -> list[int]:
        full = []
        for source in self.sources:
            full.append(len(source) // self.group_size)
            if not full[-1]:
                raise RecipeError(
                    f"source '{source.name}' has {len(source)} samples, fewer than the {self.group_size} of one source "
                    "that a batch takes (all processes together); lower batch_size or homogeneous"
                )
        if weights is None:
            return full
        return [max(1, round(sum(full) * weight / sum(weights))) if weight else 0 for weight in weights]

    def __len__(self) -> int:
        """Batches of a whole epoch, also where the next pass starts in the middle of one."""
        return sum(self.groups) // self.groups_per_batch

    def seek(self, epoch: int, start: int = 0) -> None:
        """The next pass gives the batches of `epoch` from number `start` on. Any number can name an epoch."""
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, start = self.epoch, self.start
        order = self._order(epoch)
        batches = [self._dealt(s, order, epoch) for s in range(len(self.sources))]
        for number in range(len(self)):
            # parts of one source come in the order in which its groups stand in `order`
            parts = [next(batches[s]) for s in dict.fromkeys(order[number])] if number >= start else []
            if number < start:
                for s in dict.fromkeys(order[number]):
                    next(batches[s])
                continue
            yield [draw for part in parts for draw in part]

    def _order(self, epoch: int) -> Indexes:
        """(batches, groups per batch): the source of every group."""
        order = np.repeat(np.arange(len(self.sources)), self.groups)
        self._rng(epoch, "order").shuffle(order)
        return order[: len(self) * self.groups_per_batch].reshape(len(self), self.groups_per_batch)

    def _rng(self, *names: object) -> np.random.Generator:
        return np.random.default_rng(_digest(self.seed, *names))
