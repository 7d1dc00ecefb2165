"""The one LightningDataModule: training sources and evaluation tasks in, batches out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from zoo.data.sampler import Draw, HomogeneousBatches
from zoo.data.source import Augment, Processor, Source, TaskSource
from zoo.errors import RecipeError
from zoo.types import Batch, Item, RetrievalTask, Sample

Stage = Literal["val", "test"]


class EmbeddingData(LightningDataModule):
    """Batches for any architecture: samples are drawn and augmented here, and collated by the module's own processor.

    The order of the training samples and all their random variation are functions of (`seed`, number of the batch), not of
    workers or of earlier draws: a run resumed from a checkpoint goes on at the exact next sample.

    Args:
        train: training sources. val, test: what is measured.
        batch_size: training samples per process. eval_batch_size: items per process.
        weights: share of the batches per training source; None = by size.
        augment: random changes of training samples, in this order.
        num_workers: processes that prepare batches; 0 = the training process itself.
    """

    def __init__(
        self,
        train: list[Source] | None = None,
        val: list[TaskSource] | None = None,
        test: list[TaskSource] | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 128,
        weights: list[float] | None = None,
        augment: list[Augment] | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.train, self.val, self.test = train or [], val or [], test or []
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.weights, self.augment = weights, augment or []
        self.num_workers, self.seed = num_workers, seed
        self._tasks: dict[str, list[RetrievalTask]] = {}

    def tasks(self, stage: Stage) -> list[RetrievalTask]:
        """The evaluation tasks of a stage, in the order of its dataloaders."""
        if stage not in self._tasks:
            sources = self.val if stage == "val" else self.test
            self._tasks[stage] = [task for source in sources for task in source.tasks()]
        return self._tasks[stage]

    @property
    def processor(self) -> Processor:
        """The module's processor."""
        assert self.trainer is not None and self.trainer.lightning_module is not None
        return self.trainer.lightning_module.processor  # type: ignore[return-value]

    def train_dataloader(self) -> DataLoader[Batch]:
        """Homogeneous, duplicate-aware batches; resumes by itself (see `HomogeneousBatches`)."""
        if not self.train:
            raise RecipeError("there is nothing to train on: data.init_args.train is empty")
        assert self.trainer is not None
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        batches = HomogeneousBatches(
            self.train,
            self.batch_size,
            self.seed,
            self.weights,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            # `processed`, not `completed`: a checkpoint is written between the two
            position=lambda: progress.total.processed,
        )
        return DataLoader(
            _Draws(self.train, self.augment),  # type: ignore[arg-type]
            batch_sampler=batches,
            collate_fn=self.processor,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """One loader per validation task."""
        return [self._task_loader(task) for task in self.tasks("val")]

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """One loader per test task."""
        tasks = self.tasks("test")
        if not tasks:
            raise RecipeError("there is nothing to test: data.init_args.test is empty")
        return [self._task_loader(task) for task in tasks]

    def predict_dataloader(self) -> list[DataLoader[Batch]]:
        """The items of the test tasks."""
        return self.test_dataloader()

    def _task_loader(self, task: RetrievalTask) -> DataLoader[Batch]:
        assert self.trainer is not None
        batches = _view_batches(task, self.eval_batch_size)
        # every process takes every world_size-th batch; callbacks gather by id, so nothing has to be padded
        mine = batches[self.trainer.global_rank :: self.trainer.world_size]
        return DataLoader(
            _TaskItems(task),
            batch_sampler=mine,
            collate_fn=self.processor,
            num_workers=self.num_workers,
        )


class _Draws(Dataset[Sample]):
    """`Draw` -> Sample."""

    def __init__(self, sources: Sequence[Source], augment: Sequence[Augment]) -> None:
        self.sources, self.augment = sources, augment

    def __getitem__(self, draw: Draw) -> Sample:  # type: ignore[override]
        rng = random.Random(draw.seed)
        sample = self.sources[draw.source].draw(draw.index, rng)
        for change in self.augment:
            sample = change(sample, rng)
        return sample


class _TaskItems(Dataset[Sample]):
    """Queries, then candidates of a task, each as a sample of one view."""

    def __init__(self, task: RetrievalTask) -> None:
        self.task = task

    def __getitem__(self, index: int) -> Sample:
        queries = len(self.task.queries)
        if index < queries:
            return Sample(f"q:{index}", {"query": self.task.queries[index]}, source=self.task.name)
        index -= queries
        return Sample(f"c:{index}", {"target": self.task.candidates[index]}, source=self.task.name)

    def __len__(self) -> int:
        return len(self.task.queries) + len(self.task.candidates)


def _view_batches(task: RetrievalTask, size: int) -> list[list[int]]:
    """Indexes into `_TaskItems`, each batch of one view, items of like length together (less padding)."""
    queries = len(task.queries)
    batches = []
    for items, offset in ((task.queries, 0), (task.candidates, queries)):
        order = sorted(range(len(items)), key=lambda i: _length(items[i]))
        batches += [[offset + i for i in order[n : n + size]] for n in range(0, len(order), size)]
    return batches


def _length(item: Item) -> tuple[int, int]:
    return len(item.images), len(item.text or "") + len(item.instruction or "")


