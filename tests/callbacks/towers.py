"""Two linear towers and their data: what the callbacks need of a run, and nothing of the real models."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from zoo.types import Batch, Embedding, Item, RetrievalTask

WIDTH = 12
METRICS = ("recall@1", "recall@10", "mrr", "ndcg@10")


def features(count: int, seed: int) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def batch_of(rows: Tensor, ids: list[str], view: str) -> Batch:
    count = len(ids)
    return Batch(
        views={view: {"x": rows}},
        owners={view: torch.arange(count)},
        keys={view: torch.arange(count)},
        labels=torch.full((count,), -1),
        weights=torch.ones(count),
        ids=ids,
        sources=[""] * count,
    )


def picture(number: int) -> bytes:
    colour = (37 * number % 256, 91 * number % 256, 173 * number % 256, 255)
    image = Image.new("RGBA", (48, 40), (0, 0, 0, 0))
    image.paste(colour, (4, 4, 44, 36))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def task(
    name: str = "text_to_image[en]", queries: int = 23, candidates: int = 41, pools: bool = False
) -> RetrievalTask:
    return RetrievalTask(
        name=name,
        queries=[Item(text=f"thing <{i}>", instruction="find the picture") for i in range(queries)],
        candidates=[Item(images=(picture(i),)) for i in range(candidates)],
        relevant=[[i % candidates] for i in range(queries)],
        pools=[[i % candidates, *((i + 3 * j + 1) % candidates for j in range(8))] for i in range(queries)]
        if pools
        else None,
        metrics=METRICS,
    )


class Towers(LightningModule):
    """Query and candidate features are noisy copies of one another; training finds the map between them."""

    def __init__(self, kind: str = "linear") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.query, self.target = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8)

    def encode(self, view: str, x: Tensor) -> Embedding:
        tower = self.query if view == "query" else self.target
        vectors = torch.ones(len(x), 8) if self.kind == "constant" else tower(x)
        if self.kind == "nan":
            vectors = torch.full_like(vectors, torch.nan)
        return Embedding(nn.functional.normalize(vectors, dim=-1))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        query, target = (self.encode(view, batch.views[view]["x"]).vector for view in ("query", "target"))
        loss = nn.functional.cross_entropy(query @ target.T * 10, torch.arange(len(query)))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Embedding]:
        return {view: self.encode(view, inputs["x"]) for view, inputs in batch.views.items()}

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step / 20))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Continuing:
    """Indexes of the training batches; a resumed epoch goes on where it stopped."""

    def __init__(self, data: Pairs) -> None:
        self.data = data

    def __iter__(self) -> Iterator[int]:
        done = self.data.trainer.fit_loop.epoch_loop.batch_progress.total.processed
        return iter(range(done % len(self), len(self)))

    def __len__(self) -> int:
        return self.data.train_batches


class Pairs(LightningDataModule):
    """Evaluation tasks, split over the ranks batch by batch; `edit` may change their list of batches."""

    def __init__(self, tasks: list[RetrievalTask], edit: Any = None, train_batches: int = 10) -> None:
        super().__init__()
        self._tasks, self.edit, self.train_batches = tasks, edit, train_batches

    def tasks(self, stage: str) -> list[RetrievalTask]:
        assert stage in ("val", "test")
        return self._tasks

    def train_dataloader(self) -> DataLoader[Any]:
        batches = []
        for number in range(self.train_batches):
            rows = features(16, 100 + number)
            one = batch_of(rows, [str(i) for i in range(16)], "query")
            one.views["target"] = {"x": rows.flip(1) + 0.1 * features(16, 200 + number)}
            batches.append(one)
        return DataLoader(batches, batch_size=None, sampler=Continuing(self))

    def val_dataloader(self) -> list[DataLoader[Any]]:
        return [self._loader(number, one) for number, one in enumerate(self._tasks)]

    test_dataloader = val_dataloader

    def _loader(self, number: int, one: RetrievalTask) -> DataLoader[Any]:
        rows = features(max(len(one.queries), len(one.candidates)), number)
        batches = []
        for view, letter, items, x in (
            ("query", "q", one.queries, rows),
            ("target", "c", one.candidates, rows.flip(1) + 0.1 * features(len(rows), 50 + number)),
        ):
            for part in torch.randperm(len(items), generator=torch.Generator().manual_seed(1)).split(7):
                batches.append(batch_of(x[part], [f"{letter}:{i}" for i in part.tolist()], view))
        if self.edit is not None:
            batches = self.edit(batches)
        assert self.trainer is not None
        return DataLoader(batches[self.trainer.global_rank :: self.trainer.world_size], batch_size=None)


def trainer_of(folder: Path, *callbacks: Any, **arguments: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "default_root_dir": folder,
        "log_every_n_steps": 1,
    }
    return Trainer(callbacks=list(callbacks), **(settings | arguments))


def vectors_of(module: Towers, data: Pairs, number: int = 0) -> tuple[Tensor, Tensor]:
    """Queries and candidates of a task in its order, without the callback."""
    one = data._tasks[number]
    rows = features(max(len(one.queries), len(one.candidates)), number)
    with torch.no_grad():
        queries = module.encode("query", rows[: len(one.queries)]).vector
        candidates = module.encode("target", (rows.flip(1) + 0.1 * features(len(rows), 50 + number))).vector
    return queries, candidates[: len(one.candidates)]
