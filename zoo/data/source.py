"""What the data layer injects: where samples come from, how they vary, what is measured on them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from zoo.types import Batch, Inputs, Item, RetrievalTask, Sample


@runtime_checkable
class Source(Protocol):
    """Training records. `draw` must be a pure function of its two arguments: that makes a resumed run exact."""

    name: str

    def __len__(self) -> int: ...

    def draw(self, index: int, rng: random.Random) -> Sample:
        """Record `index`; `rng` decides what may vary (which caption, which language, which drawing)."""
        ...


@runtime_checkable
class Listed(Protocol):
    """A source that can say beforehand what it may draw; the latents of its items can then be cached."""

    name: str

    def items(self) -> Iterator[Item]:
        """Every item that `draw` may give, over all records and all `rng`, in the same order on every call. An item may come
        several times; records that can't be used, for which `draw` raises, are left out.
        """
        ...


@runtime_checkable
class Augment(Protocol):
    """A random change of a sample that keeps what it means."""

    def __call__(self, sample: Sample, rng: random.Random) -> Sample: ...


@runtime_checkable
class TaskSource(Protocol):
    """Evaluation tasks of one dataset."""

    def tasks(self) -> list[RetrievalTask]: ...


@runtime_checkable
class Processor(Protocol):
    """Samples to tensors: the same object in training, evaluation, serving and export; picklable, holds no weights."""

    def __call__(self, samples: list[Sample]) -> Batch: ...

    def split(self, inputs: Inputs, size: int) -> list[Inputs]:
        """Cut one view's inputs into chunks of at most `size` rows."""
        ...
