"""What the data layer injects: where samples come from, how they vary, what is measured on them."""

from __future__ import annotations

import random
from typing import Protocol, runtime_checkable

from zoo.types import Batch, Inputs, RetrievalTask, Sample


@runtime_checkable
class Source(Protocol):
    """Training records. `draw` must be a pure function of its two arguments: that makes a resumed run exact."""

    name: str

    def __len__(self) -> int: ...

    def draw(self, index: int, rng: random.Random) -> Sample:
        """Record `index`; `rng` decides what may vary (which caption, which language, which drawing)."""
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
