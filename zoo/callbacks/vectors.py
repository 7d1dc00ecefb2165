"""Vectors of numbered items, embedded on any number of processes and put in order again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from torch import Tensor

from zoo.data.batches import TaskBatches
from zoo.data.loader import BatchLoader
from zoo.data.processors.cached import CachedProcessor
from zoo.distributed import gather_objects
from zoo.errors import RecipeError, SampleError
from zoo.types import Embedding, Item, RetrievalTask

KINDS = {"q": "queries", "c": "candidates"}

Parts = list[tuple[Tensor, Tensor]]  # (R,) numbers and (R, E) fp32 vectors, on the CPU


def embed_items(
    trainer: Trainer, module: LightningModule, items: Sequence[Item], name: str, batch_size: int = 128
) -> Embedding:
    """The vectors (N, E) fp32 of items that belong to no dataloader, and their log-variances if there are any, on the CPU;
    all ranks share the work and get all.

    Items are read by the module's processor as queries and pass its `validation_step`, as in every evaluation. They need
    not be cached, where a run reads latents.

    Raises:
        RecipeError: the module has no processor.
        SampleError: an item that can't be used; names it.
    """
    processor = getattr(module, "processor", None)
    if processor is None:
        raise RecipeError(f"{type(module).__name__} has no processor to embed {name} with")
    if isinstance(processor, CachedProcessor):
        processor = processor.processor
    maker = TaskBatches(RetrievalTask(name, queries=items, candidates=(), relevant=()), processor)
    loader = BatchLoader(maker, maker.keys(batch_size, trainer.global_rank, trainer.world_size))
    means: Parts = []
    variances: Parts = []
    quiet = not trainer.is_global_zero or trainer.progress_bar_callback is None
    with Tqdm(total=len(loader), desc=f"embedding {name}", leave=False, disable=quiet, unit="batch") as bar:
        for number, batch in enumerate(loader):
            batch = trainer.strategy.batch_to_device(batch, module.device)
            with torch.no_grad(), trainer.precision_plugin.val_step_context():
                outputs: dict[str, Embedding] = module.validation_step(batch, number)  # type: ignore[assignment]
            (embedding,) = outputs.values()
            numbers = torch.tensor([parsed(one)[1] for one in batch.ids])
            means.append((numbers, embedding.vector.detach().float().cpu()))
            if embedding.log_var is not None:
                variances.append((numbers, embedding.log_var.detach().float().cpu()))
            bar.update()
    vectors, log_var = _gathered(means), _gathered(variances)
    return Embedding(
        ordered(vectors, "q", len(items), name), ordered(log_var, "q", len(items), name) if log_var else None
    )


def _gathered(parts: Parts) -> Parts:
    """The parts of all ranks."""
    return [part for share in gather_objects(parts) for part in share]


def parsed(name: str) -> tuple[str, int]:
    """`q:7` -> ("q", 7). Raises SampleError."""
    kind, _, number = name.partition(":")
    if kind not in KINDS or not number.isdecimal():
        raise SampleError(f"evaluation id '{name}' is neither 'q:<index>' nor 'c:<index>'")
    return kind, int(number)


def ordered(parts: Parts, kind: str, count: int, task: str) -> Tensor:
    """Every item's vector, in order. Raises SampleError if one is missing or is none of the task."""
    word = KINDS[kind]
    numbers = torch.cat([n for n, _ in parts]) if parts else torch.zeros(0, dtype=torch.int64)
    if len(numbers) and int(numbers.max()) >= count:
        raise SampleError(f"task '{task}': {kind}:{int(numbers.max())} was embedded, but there are {count} {word}")
    row_of = torch.full((count,), len(numbers)).scatter_reduce(0, numbers, torch.arange(len(numbers)), "amin")
    missing = (row_of == len(numbers)).nonzero().flatten().tolist()
    if missing:
        raise SampleError(
            f"task '{task}': {len(missing)} of {count} {word} were not embedded, first {kind}:{missing[0]}; ranking "
            "needs them all, so the dataloaders must give every item (EmbeddingData makes tasks smaller where "
            "limit_val_batches, limit_test_batches or overfit_batches ask for it)"
        )
    return torch.cat([v for _, v in parts])[row_of]
