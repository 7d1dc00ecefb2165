"""Batches made from samples, here or in worker processes: what Lightning iterates over."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from zoo.data.sampler import Draw, HomogeneousBatches
from zoo.data.source import Augment, Processor, Source
from zoo.errors import SampleError, ZooError
from zoo.types import Batch, RetrievalTask, Sample

ATTEMPTS = 100  # draws in a row that may be bad before a source is given up
NAMED = 10  # bad samples that are named one by one in an epoch; the others are counted


class BadSampleWarning(UserWarning):
    """A training sample that can't be used and was replaced by another one."""


class OrderWarning(UserWarning):
    """A run goes on with training data in another order than it began with."""


@dataclass(slots=True)
class Made:
    """What becomes of one batch: the batch, or an error message; and what was left out on the way."""

    batch: Batch | None = None
    error: str = ""
    skipped: list[str] = field(default_factory=list)


class Maker(Protocol):
    """The keys that a batch sampler gives -> a batch. Picklable: it travels to the workers."""

    def __call__(self, keys: list[Any]) -> Made: ...


class BatchLoader:
    """Batches in the order of `keys`, the same for any number of workers.

    An iterable of its own rather than a DataLoader: into those Lightning puts samplers of its choice. Errors of the zoo
    arrive as they were raised, without the traceback of the worker.

    Args:
        maker: keys -> batch.
        keys: a batch sampler, or the list of the keys of every batch.
        num_workers: 0 = in this process.
    """

    def __init__(self, maker: Maker, keys: Any, num_workers: int = 0) -> None:
        self.loader: DataLoader[Any] = DataLoader(
            _ByBatch(maker),
            batch_sampler=keys,
            collate_fn=_as_is,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),  # or every pass would take a number from the generator that dropout uses
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for made in self.loader:
            yield _batch(made)

    @property
    def _iterator(self) -> Any:
        """Lightning ends worker processes through this attribute of a DataLoader."""
        return self.loader._iterator

    @_iterator.setter
    def _iterator(self, value: Any) -> None:
        self.loader._iterator = value


class TrainingLoader(BatchLoader):
    """Batches of training samples, from the place where the run stands.

    Args:
        maker: draws -> batch.
        keys: which samples make up a batch.
        position: asked when the first batch of a pass is wanted: the number of the epoch, and of the batch in it.
            Not earlier, because Lightning may ask for the iterator before it has restored where the run stands.
        limit: SampleError when more than this share of the samples of a pass had to be replaced.
    """

    def __init__(
        self,
        maker: Maker,
        keys: HomogeneousBatches,
        num_workers: int,
        position: Callable[[], tuple[int, int]],
        limit: float,
    ) -> None:
        super().__init__(maker, keys, num_workers)
        self.keys, self.position, self.limit = keys, position, limit

    def __iter__(self) -> Iterator[Batch]:
        self.keys.seek(*self.position())
        seen, bad = 0, list[str]()
        try:
            for made in self.loader:
                batch = _batch(made)
                seen += len(batch.ids)
                self._note(made.skipped, bad, seen)
                yield batch
        finally:
            if bad:
                warnings.warn(f"{len(bad)} of {seen} training samples were bad and replaced", BadSampleWarning, 2)

    def _note(self, skipped: list[str], bad: list[str], seen: int) -> None:
        for message in skipped:
            bad.append(message)
            if len(bad) <= NAMED:
                more = "; further ones of this epoch are only counted" if len(bad) == NAMED else ""
                warnings.warn(f"bad training sample replaced: {message}{more}", BadSampleWarning, stacklevel=3)
        if len(bad) > self.limit * max(seen, 1000):
            raise SampleError(
                f"{len(bad)} of {seen} training samples can't be used, more than bad_sample_limit = {self.limit} allows; "
                f"the last: {bad[-1]}"
            )

    def state_dict(self) -> dict[str, Any]:
        """What decides the order. Lightning saves it, and takes the loader for one that goes on where it was."""
        return self.keys.settings()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Warn if the order is not the one that the run began with."""
        now = self.keys.settings()
        changed = [f"{name} was {state.get(name)}, is {now[name]}" for name in now if state.get(name) != now[name]]
        if changed:
            warnings.warn(
                f"the training data is drawn in another order than before the restart ({'; '.join(changed)}): some samples "
                "of this epoch will come twice, others not at all",
                OrderWarning,
                stacklevel=2,
            )


class TrainingBatches:
    """Draws -> samples -> augmented samples -> batch.

    Args:
        sources, augment, processor: see `EmbeddingData`.
        on_bad_sample: "raise", or "skip": put another sample of the same source in its place, which one is a function of
            the draw's seed.
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
                return Made(self.processor([self._sample(draw) for draw in keys]))
            return Made(self._whole([self._usable(draw, skipped) for draw in keys], keys, skipped), skipped=skipped)
        except ZooError as error:
            return Made(error=str(error), skipped=skipped)

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


def even_batches(order: Sequence[int], size: int, world_size: int) -> list[list[int]]:
    """Cut into batches of at most `size`, as many for every rank: a collective operation must not wait for ever.

    Where there are fewer items than ranks, the first one is repeated (results are collected by id).
    """
    total = len(order)
    count = math.ceil(math.ceil(total / size) / world_size) * world_size
    batches = [list(order[total * k // count : total * (k + 1) // count]) for k in range(count)]
    return [batch or [order[0]] for batch in batches]


class _ByBatch(Dataset[Made]):
    def __init__(self, maker: Maker) -> None:
        self.maker = maker

    def __getitems__(self, keys: list[Any]) -> Made:
        return self.maker(keys)


def _as_is(made: Made) -> Made:
    return made


def _batch(made: Made) -> Batch:
    if made.batch is None:
        raise SampleError(made.error)
    return made.batch
