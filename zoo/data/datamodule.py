"""The one LightningDataModule: training sources and evaluation tasks in, batches out."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from typing import Literal

from lightning.pytorch import LightningDataModule, Trainer

from zoo.data.batches import Maker, SourceBatches, TaskBatches, TrainingBatches, UsableBatches, even_batches
from zoo.data.loader import BatchLoader, PredictionLoader, TrainingLoader
from zoo.data.sampler import HomogeneousBatches
from zoo.data.smaller_tasks import smaller
from zoo.data.source import Augment, Processor, Source, TaskSource
from zoo.errors import RecipeError, SampleError, UnknownNameError, ZooWarning
from zoo.types import RetrievalTask, Sample

Stage = Literal["val", "test"]


class EmbeddingData(LightningDataModule):
    """Batches for any architecture: samples are drawn and augmented here, and collated by the module's own processor.

    The order of the training samples and all their random variation are functions of `seed` and of the number of the
    batch, not of workers or of earlier draws: a run resumed from a checkpoint goes on at the exact next sample.

    Args:
        train: training sources. One with an attribute `parts` (a folder of data sets) stands for those.
        val: what is measured while fitting and by `zoo validate`.
        test: what is measured in the end and by `zoo test`.
        predict: what `zoo predict` embeds; None = the items of `test`.
        batch_size: training samples per process.
        eval_batch_size: items per process.
        weights: share of the batches per training source, as a list or by name; None = by size.
        homogeneous: samples of a batch that come from one source together; None = all of them.
        augment: random changes of training samples, in this order.
        num_workers: processes that prepare batches; 0 = the training process itself.
        seed: of order and augmentation.
        on_bad_sample: "raise" stops at a training sample that can't be used; "skip" warns and puts another one in its
            place. Evaluation always stops: a metric over fewer items is another metric.
        bad_sample_limit: with "skip", stop when more than this share of an epoch is bad.

    Raises:
        RecipeError: nothing to do for the stage; sizes or weights that do not fit; two tasks of one name.
        SampleError: a sample that can't be used; names it.
    """

    def __init__(
        self,
        train: list[Source] | None = None,
        val: list[TaskSource] | None = None,
        test: list[TaskSource] | None = None,
        predict: list[Source | TaskSource] | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 128,
        weights: list[float] | dict[str, float] | None = None,
        homogeneous: int | None = None,
        augment: list[Augment] | None = None,
        num_workers: int = 0,
        seed: int = 0,
        on_bad_sample: Literal["raise", "skip"] = "raise",
        bad_sample_limit: float = 0.1,
    ) -> None:
        super().__init__()
        self.train: list[Source] = [part for source in train or [] for part in getattr(source, "parts", [source])]
        self.val, self.test, self.predict = val or [], test or [], predict
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.weights, self.homogeneous, self.augment = weights, homogeneous, augment or []
        self.num_workers, self.seed = num_workers, seed
        self.on_bad_sample, self.bad_sample_limit = on_bad_sample, bad_sample_limit
        self._tasks: dict[str, list[RetrievalTask]] = {}
        self._smaller: dict[str, tuple[Trainer, list[RetrievalTask]]] = {}
        if num_workers < 0:
            raise RecipeError(f"num_workers is {num_workers}; it is at least 0, which prepares batches in this process")
        if eval_batch_size < 1:
            raise RecipeError(f"eval_batch_size is {eval_batch_size}; it is at least 1")

    def tasks(self, stage: Stage) -> list[RetrievalTask]:
        """The evaluation tasks of a stage, in the order of its dataloaders. Where the trainer limits the batches of a stage
        (`limit_val_batches`, `limit_test_batches`, `overfit_batches`), they are smaller once there are dataloaders.
        """
        if stage not in ("val", "test"):
            raise UnknownNameError("stage", stage, ("val", "test"), "(there are val and test)")
        if stage not in self._tasks:
            self._tasks[stage] = _checked([task for source in getattr(self, stage) for task in source.tasks()], stage)
        limited_by, smaller_ones = self._smaller.get(stage, (None, []))
        return smaller_ones if limited_by is not None and limited_by is self.trainer else self._tasks[stage]

    def _limited(self, stage: Stage) -> list[RetrievalTask]:
        """The tasks of a stage; if the trainer limits its batches, of that many items. Ranking needs a task as a whole:
        the trainer must cut nothing off, so its limit is lifted.
        """
        trainer, option = self._trainer, f"limit_{stage}_batches"
        limit: int | float = getattr(trainer, option)
        unlimited = limit == 0 or (isinstance(limit, float) and limit == 1.0)  # 0: nothing is measured at all
        if unlimited or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return self.tasks(stage)
        batch = self.eval_batch_size * trainer.world_size
        found = []
        for task in self.tasks(stage):
            count = len(task.queries) + len(task.candidates)
            found.append(smaller(task, int(limit * count) if isinstance(limit, float) else limit * batch))
            if found[-1] is not task:
                reason = "overfit_batches" if stage == "val" and trainer.overfit_batches else option  # type: ignore[attr-defined]
                warnings.warn(
                    ZooWarning(
                        f"{reason}: task '{task.name}' is measured on {len(found[-1].queries):,} of {len(task.queries):,} "
                        f"queries and {len(found[-1].candidates):,} of {len(task.candidates):,} candidates"
                    ),
                    stacklevel=2,
                )
        self._smaller[stage] = trainer, found
        setattr(trainer, option, 1.0)
        return found

    def try_out(self, processor: Processor) -> None:
        """Read one record of every training source and two items of every task, so that what can't be read is said before
        the first step. Raises what reading raises; a training sample that `on_bad_sample` would skip is no reason to.
        """
        for source in filter(len, self.train):  # an empty one is refused where its batches are made
            try:
                processor([source.draw(0, random.Random(0))])
            except SampleError:
                if self.on_bad_sample == "raise":
                    raise
        for stage in ("val", "test"):
            for task in self.tasks(stage):
                processor([Sample(f"{task.name}: query 0", {"query": task.queries[0]})])
                processor([Sample(f"{task.name}: candidate 0", {"target": task.candidates[0]})])
        self._tasks.pop("test", None)  # not held while training

    @property
    def processor(self) -> Processor:
        """The processor of the module that is trained or measured."""
        processor = getattr(self._trainer.lightning_module, "processor", None)
        if processor is None:
            raise RecipeError(f"{type(self._trainer.lightning_module).__name__} has no processor to make batches with")
        return processor  # type: ignore[no-any-return]

    @property
    def _trainer(self) -> Trainer:
        if self.trainer is None:
            raise RecipeError("EmbeddingData makes batches for a Trainer: use trainer.fit(module, datamodule=data)")
        return self.trainer

    def train_dataloader(self) -> TrainingLoader:
        """Homogeneous, duplicate-aware batches; goes on where a restored run stands."""
        if not self.train:
            raise RecipeError("there is nothing to train on: data.init_args.train is empty")
        keys = HomogeneousBatches(
            self.train,
            self.batch_size,
            self.seed,
            self.weights,
            self.homogeneous,
            rank=self._trainer.global_rank,
            world_size=self._trainer.world_size,
        )
        if keys.groups_per_batch > 1:
            _check_views(self.train)
        maker = TrainingBatches(self.train, self.augment, self.processor, self.on_bad_sample)
        return TrainingLoader(maker, keys, self.num_workers, self._position, self.bad_sample_limit)

    def _position(self) -> tuple[int, int]:
        """Name of the epoch, and batches of it that are done, when the next batch is about to be fetched.

        `current.ready` is the number that Lightning is about to give to that batch. An epoch is named by the number of
        batches before it (`total.processed` counts those of the whole run), not by Lightning's count of epochs, which
        is another one after some restarts.
        """
        progress = self._trainer.fit_loop.epoch_loop.batch_progress
        start = progress.current.ready
        if self._trainer.overfit_batches:  # type: ignore[attr-defined]  # the same few batches again and again
            return 0, start
        return progress.total.processed - start, start  # type: ignore[attr-defined]

    def val_dataloader(self) -> list[BatchLoader]:
        """One loader per validation task."""
        if not self.tasks("val") and self._trainer.state.fn == "validate":
            raise RecipeError("there is nothing to validate on: data.init_args.val is empty")
        warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")  # to fit without is fine
        return [self._task_loader(task) for task in self._limited("val")]

    def test_dataloader(self) -> list[BatchLoader]:
        """One loader per test task."""
        if not self.tasks("test"):
            raise RecipeError("there is nothing to test: data.init_args.test is empty")
        return [self._task_loader(task) for task in self._limited("test")]

    def predict_dataloader(self) -> list[BatchLoader]:
        """One loader per source and per task of `predict`: all views of records, or queries and candidates. Items that can't
        be used are skipped and named: vectors are no figure that depends on all of them.
        """
        if self.predict is None and not self.tasks("test"):
            raise RecipeError("there is nothing to test: data.init_args.test is empty")
        batches = []
        for source in self._limited("test") if self.predict is None else self.predict:
            if isinstance(source, RetrievalTask):
                batches.append(self._task_batches(source))
            elif isinstance(source, TaskSource):
                batches += [self._task_batches(task) for task in _checked(source.tasks(), "predict")]
            else:
                batches.append(self._source_batches(source))
        if not batches:
            raise RecipeError("there is nothing to embed: data.init_args.predict is empty")
        return [PredictionLoader(UsableBatches(maker), keys, self.num_workers) for maker, keys in batches]

    def _source_batches(self, source: Source) -> tuple[Maker, list[list[int]]]:
        keys = even_batches(range(len(source)), self.eval_batch_size, self._trainer.world_size)
        return SourceBatches(source, self.processor), keys[self._trainer.global_rank :: self._trainer.world_size]

    def _task_loader(self, task: RetrievalTask) -> BatchLoader:
        return BatchLoader(*self._task_batches(task), self.num_workers)

    def _task_batches(self, task: RetrievalTask) -> tuple[Maker, list[list[int]]]:
        maker = TaskBatches(task, self.processor)
        return maker, maker.keys(self.eval_batch_size, self._trainer.global_rank, self._trainer.world_size)


def _checked(tasks: list[RetrievalTask], stage: str) -> list[RetrievalTask]:
    """The tasks, if they can be measured and told apart."""
    names = Counter(task.name for task in tasks)
    for task in tasks:
        if names[task.name] > 1:
            raise RecipeError(
                f"{names[task.name]} tasks of data.init_args.{stage} are called '{task.name}'; rename them"
            )
        if not task.queries or not task.candidates:
            raise RecipeError(
                f"task '{task.name}' has {len(task.queries)} queries and {len(task.candidates)} candidates"
            )
    return tasks


def _check_views(sources: list[Source]) -> None:
    """Refuse sources that can't share a batch. Draws one record of each."""
    views = {source.name: list(source.draw(0, random.Random(0)).views) for source in sources}
    first = sources[0].name
    for name, found in views.items():
        if found != views[first]:
            raise RecipeError(
                f"source '{name}' has the views {found}, '{first}' has {views[first]}; with `homogeneous` they share "
                "batches and need the same views in the same order"
            )
