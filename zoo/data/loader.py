"""What Lightning iterates over: batches, made here or in worker processes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from zoo.data.batches import Made, Maker
from zoo.data.sampler import HomogeneousBatches
from zoo.errors import SampleError
from zoo.types import Batch

NAMED = 10  # bad samples that are named one by one in an epoch; the others are counted


class BadSampleWarning(UserWarning):
    """A training sample that can't be used and was replaced by another one."""


class OrderWarning(UserWarning):
    """A run goes on with training data in another order than it began with."""


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


class PredictionLoader(BatchLoader):
    """Batches of what can be used. `skipped` says why each of the rest could not.

    Args:
        maker: keys -> batch; names what it skips (`zoo.data.batches.UsableBatches`).
        keys: see `BatchLoader`, as for `num_workers`.
        num_workers: 0 = in this process.
    """

    def __init__(self, maker: Maker, keys: Any, num_workers: int = 0) -> None:
        super().__init__(maker, keys, num_workers)
        self.skipped: list[str] = []

    def __iter__(self) -> Iterator[Batch]:
        self.skipped = []
        for made in self.loader:
            self.skipped += made.skipped
            if made.batch is not None or made.error:
                yield _batch(made)


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
                f"{len(bad)} of {seen} training samples can't be used, more than bad_sample_limit = {self.limit} "
                f"allows; the last: {bad[-1]}"
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
                f"the training data is drawn in another order than before the restart ({'; '.join(changed)}): some "
                "samples of this epoch will come twice, others not at all",
                OrderWarning,
                stacklevel=2,
            )


class _ByBatch(Dataset[Made]):
    def __init__(self, maker: Maker) -> None:
        self.maker = maker

    def __getitems__(self, keys: list[Any]) -> Made:
        return self.maker(keys)


def _as_is(made: Any) -> Any:
    return made


def _batch(made: Made) -> Batch:
    if made.batch is None:
        raise SampleError(made.error)
    return made.batch
