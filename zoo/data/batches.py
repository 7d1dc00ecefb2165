"""From what a batch sampler gives to a `Batch`: the work that is done in worker processes."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from zoo.data.sampler import Draw
from zoo.data.source import Augment, Processor, Source
from zoo.errors import SampleError, ZooError
from zoo.types import Batch, RetrievalTask, Sample

ATTEMPTS = 100  # draws in a row that may be bad before a source is given up


@dataclass(slots=True)
class Made:
    """What becomes of one batch: the batch, or an error message; and what was left out on the way."""

    batch: Batch | None = None
    error: str = ""
    skipped: list[str] = field(default_factory=list)


class Maker(Protocol):
    """The keys that a batch sampler gives -> a batch. Picklable: it travels to the workers."""

    def __call__(self, keys: list[Any]) -> Made:
        """Never raises a ZooError: it is part of the result, and so arrives whole in the main process."""
        ...


class TrainingBatches:
    """Draws -> samples -> augmented samples -> batch.

    Args:
        sources: see `EmbeddingData`, as for the others.
        augment: random changes, in this order.
        processor: samples to tensors.
        on_bad_sample: "raise", or "skip": put another sample of the same source in its place. Which one depends on the
            seed of the draw alone.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        augment: Sequence[Augment],
        processor: Processor,
        on_bad_sample: Literal["raise", "skip"] = "raise",
    ) -> None:
        self.sources, self.augment, self.processor, self.skip = sources, augment, processor, on_bad_sample == "skip"

    def __call__(self, keys: list[Draw]) -> Made:
        """See `Maker`."""
        skipped: list[str] = []
        try:
            if not self.skip:
                return Made(self._all(keys))
            return Made(self._whole([self._usable(draw, skipped) for draw in keys], keys, skipped), skipped=skipped)
        except ZooError as error:
            return Made(error=str(error), skipped=skipped)

    def _all(self, keys: list[Draw]) -> Batch:
        try:
            return self.processor([self._sample(draw) for draw in keys])
        except SampleError as error:
            raise SampleError(f"{error} (data.init_args.on_bad_sample: skip trains on the others)") from error

    def _sample(self, draw: Draw) -> Sample:
        rng = random.Random(draw.seed)
        sample = self.sources[draw.source].draw(draw.index, rng)
        for change in self.augment:
            sample = change(sample, rng)
        return sample

    def _usable(self, draw: Draw, skipped: list[str]) -> Sample:
        try:
            return self._sample(draw)
        except SampleError as error:
            skipped.append(str(error))
            return self._replacement(draw, skipped)

    def _whole(self, samples: list[Sample], draws: list[Draw], skipped: list[str]) -> Batch:
        try:
            return self.processor(samples)
        except SampleError:
            for i, sample in enumerate(samples):  # most are refused here, where pictures are decoded
                try:
                    self.processor([sample])
                except SampleError as error:
                    skipped.append(str(error))
                    samples[i] = self._replacement(draws[i], skipped)
            return self.processor(samples)

    def _replacement(self, draw: Draw, skipped: list[str]) -> Sample:
        source = self.sources[draw.source]
        rng = random.Random(f"{draw.seed}/replacement")
        for _ in range(ATTEMPTS):
            try:
                sample = self._sample(Draw(draw.source, rng.randrange(len(source)), rng.getrandbits(62)))
                self.processor([sample])
                return sample
            except SampleError as error:
                skipped.append(str(error))
        raise SampleError(f"{ATTEMPTS} samples of source '{source.name}' in a row can't be used; last: {skipped[-1]}")


class TaskBatches:
    """Numbers of a task's items -> batch: queries first, then candidates, each a sample of one view."""

    def __init__(self, task: RetrievalTask, processor: Processor) -> None:
        self.task, self.processor = task, processor

    def __call__(self, keys: list[int]) -> Made:
        """See `Maker`."""
        try:
            return Made(self.processor([self._sample(number) for number in keys]))
        except ZooError as error:
            return Made(error=f"task '{self.task.name}': {error}")

    def _sample(self, number: int) -> Sample:
        queries = len(self.task.queries)
        if number < queries:
            return Sample(f"q:{number}", {"query": self.task.queries[number]}, source=self.task.name)
        number -= queries
        return Sample(f"c:{number}", {"target": self.task.candidates[number]}, source=self.task.name)

    def keys(self, size: int, rank: int, world_size: int) -> list[list[int]]:
        """The batches of a rank: of one view each, items of like length together (less padding), the longest first."""
        queries = len(self.task.queries)
        batches = []
        for items, offset in ((self.task.queries, 0), (self.task.candidates, queries)):
            lengths = [(len(i.images), len(i.text or "") + len(i.instruction or "")) for i in items]
            order = sorted(range(len(items)), key=lengths.__getitem__, reverse=True)
            batches += [
                [offset + i for i in batch] for batch in even_batches(order, size, world_size)[rank::world_size]
            ]
        return batches


class SourceBatches:
    """Records of a source -> batch, each always drawn with the same random numbers."""

    def __init__(self, source: Source, processor: Processor) -> None:
        self.source, self.processor = source, processor

    def __call__(self, keys: list[int]) -> Made:
        """See `Maker`."""
        try:
            return Made(self.processor([self.source.draw(i, random.Random(i)) for i in keys]))
        except ZooError as error:
            return Made(error=str(error))


class UsableBatches:
    """What another maker makes, without the keys that can't be used: these are named in `skipped`."""

    def __init__(self, maker: Maker) -> None:
        self.maker = maker

    def __call__(self, keys: list[Any]) -> Made:
        """See `Maker`; neither batch nor error where no key can be used."""
        made = self.maker(keys)
        if not made.error:
            return made
        errors = {position: self.maker([key]).error for position, key in enumerate(keys)}
        good = [key for position, key in enumerate(keys) if not errors[position]]
        whole = self.maker(good) if good else Made()
        return Made(whole.batch, whole.error, [error for error in errors.values() if error])


def even_batches(order: Sequence[int], size: int, world_size: int) -> list[list[int]]:
    """Cut into batches of at most `size`, as many for every rank: a collective operation must not wait for ever.

    Where there are fewer items than ranks, the first one is repeated (results are collected by id).
    """
    total = len(order)
    count = math.ceil(math.ceil(total / size) / world_size) * world_size
    batches = [list(order[total * k // count : total * (k + 1) // count]) for k in range(count)]
    return [batch or [order[0]] for batch in batches]
