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

    In-batch negatives of another task are too easy, and equal targets are false negatives. So every group of
    `homogeneous` samples comes from one source, and the records of a source that share a `duplicate_key(index)` (an
    optional method of the source) are dealt out over all its batches of the epoch: none meet unless there are more of
    them than batches, and then they are spread evenly.

    An epoch uses every record once, less what does not fill a batch; which records are left out changes by epoch. With
    `weights` a source may be used in part, or several times over.

    The sampler has no state but `epoch` and `start` (see `seek`). All ranks draw the same global batch and take equal
    slices of it, so the union over the ranks depends on the global batch size alone.

    Args:
        sources: where the samples come from.
        batch_size: samples per rank.
        seed: decides the order, and with it everything random about the samples.
        weights: share of the batches per source, as a list or by name (1 where not named); None = by size.
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
        self._codes: list[Indexes | None] | None = None
        if not len(self):
            raise RecipeError(f"the training data has fewer samples than one batch of {batch_size * world_size}")

    def _groups_per_source(self, weights: Sequence[float]) -> list[int]:
        full = [len(source) // self.group_size for source in self.sources]
        for source, groups, weight in zip(self.sources, full, weights or [1.0] * len(full), strict=True):
            if weight and not groups:
                raise RecipeError(
                    f"source '{source.name}' has {len(source)} samples, fewer than the {self.group_size} of one source "
                    "that a batch takes (all processes together); lower batch_size or homogeneous"
                )
        if not weights:
            return full
        return [max(1, round(sum(full) * weight / sum(weights))) if weight else 0 for weight in weights]

    def __len__(self) -> int:
        """Batches of a whole epoch, also where the next pass starts in the middle of one."""
        return sum(self.groups) // self.groups_per_batch

    def seek(self, epoch: int, start: int = 0) -> None:
        """The next pass gives the batches of `epoch` from number `start` on. Any number can name an epoch."""
        self.epoch, self.start = epoch, start

    def settings(self) -> dict[str, Any]:
        """What decides the order, as plain values: equal settings give equal global batches."""
        return {
            "seed": self.seed,
            "samples per batch": self.group_size * self.groups_per_batch,
            "samples of one source": self.group_size,
            "records": {source.name: len(source) for source in self.sources},
            "shares": list(self.groups),
        }

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, start = self.epoch, self.start
        order = self._order(epoch)
        dealt = [self._deal(s, (order == s).sum(1), epoch) for s in range(len(self.sources))]
        for number, sources in enumerate(order):
            parts = [(s, *next(dealt[s])) for s in dict.fromkeys(sources.tolist())]
            if number >= start:
                yield [draw for s, turn, indexes in parts for draw in self._slice(epoch, s, turn, indexes)]

    def _order(self, epoch: int) -> Indexes:
        """(batches, groups per batch): the source of every group."""
        order = np.repeat(np.arange(len(self.sources)), self.groups)
        self._rng(epoch).shuffle(order)
        return order[: len(self) * self.groups_per_batch].reshape(len(self), self.groups_per_batch)

    def _deal(self, s: int, groups: Indexes, epoch: int) -> Iterator[tuple[int, Indexes]]:
        """For every batch with `groups` of source `s`: how often its records were used up before, and which it gets."""
        sizes = groups[groups > 0] * self.group_size
        codes = self._duplicate_codes()[s]
        turn = 0
        while len(sizes):
            fits = max(1, int(np.searchsorted(sizes.cumsum(), len(self.sources[s]), side="right")))
            rng = self._rng(epoch, s, turn)
            records = np.resize(rng.permutation(len(self.sources[s])), int(sizes[:fits].sum()))
            if codes is not None:
                records = _equal_together(records, codes[records], rng)
            yield from ((turn, part) for part in _dealt_out(records, sizes[:fits], rng))
            sizes, turn = sizes[fits:], turn + 1

    def _slice(self, epoch: int, s: int, turn: int, indexes: Indexes) -> Iterator[Draw]:
        """This rank's share of every group."""
        for index in (
            indexes.reshape(-1, self.group_size)[:, self.rank * self.share :][:, : self.share].ravel().tolist()
        ):
            yield Draw(s, index, _digest(self.seed, epoch, s, turn, index))

    def _duplicate_codes(self) -> list[Indexes | None]:
        """Per source: a number per record, equal where the duplicate key is; None without keys. Made once."""
        if self._codes is None:
            self._codes = [_codes(source) for source in self.sources]
        return self._codes

    def _rng(self, *names: int) -> np.random.Generator:
        return np.random.default_rng(_digest(self.seed, *names))


def _digest(*names: int) -> int:
    text = "/".join(map(str, names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _listed(weights: Sequence[float] | Mapping[str, float] | None, sources: Sequence[Source]) -> list[float]:
    """One weight per source; empty for none."""
    if weights is None:
        return []
    if isinstance(weights, Mapping):
        names = [source.name for source in sources]
        for name in weights:
            if name not in names:
                raise UnknownNameError("source in weights:", name, names, f"(there are {', '.join(names)})")
        weights = [weights.get(name, 1.0) for name in names]
    if len(weights) != len(sources) or min(weights) < 0 or sum(weights) <= 0:
        raise RecipeError(
            f"weights {list(weights)} do not fit {len(sources)} sources: one number each, none negative, not all zero"
        )
    return list(weights)


def _codes(source: Source) -> Indexes | None:
    key = getattr(source, "duplicate_key", None)
    if key is None:
        return None
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(key(index), len(known)) for index in range(len(source))], np.int64)


def _equal_together(records: Indexes, codes: Indexes, rng: np.random.Generator) -> Indexes:
    """The records with those of equal code next to one another, frequent codes first, otherwise in random order."""
    _, code, counts = np.unique(codes, return_inverse=True, return_counts=True)
    return records[np.lexsort((rng.permutation(len(counts))[code], -counts[code]))]


def _dealt_out(records: Indexes, sizes: Indexes, rng: np.random.Generator) -> list[Indexes]:
    """The records dealt round, like cards, to hands of these sizes; neighbours land in different hands."""
    hand = np.repeat(np.arange(len(sizes)), sizes)
    turn = np.concatenate([np.arange(size) for size in sizes])
    seat = rng.permutation(len(sizes))  # or frequent records would come early in every epoch
    hands = np.empty_like(records)
    hands[np.lexsort((seat[hand], turn))] = records
    return [rng.permutation(part) for part in np.split(hands, sizes.cumsum()[:-1])]
