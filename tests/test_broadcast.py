"""What data-parallel training sends around in every step, measured in two processes through the real trainer."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.utils.data import DataLoader

from zoo.module import EmbeddingModule
from zoo.nn.word_embeddings import WordEmbeddings
from zoo.objectives.soft_targets import MomentumDistillation
from zoo.types import Batch, Embedding, Inputs

ROWS, WIDTH, STEPS = 4, 3, 3


class Tower(EmbeddingModule):
    """One layer behind a batch norm, with a queue, and words that nothing looks at."""

    def __init__(self, gather_group: int | None) -> None:
        objective = MomentumDistillation(WIDTH, 1000)
        super().__init__(processor=None, objective=objective, gather_group=gather_group)  # type: ignore[arg-type]
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH))
        self.words = WordEmbeddings(500, 7)

    def encode(self, inputs: Inputs) -> Embedding:
        return Embedding(nn.functional.normalize(self.layers(inputs["x"]), dim=-1))


def batches(rank: int) -> list[Batch]:
    """Of one process; the keys of the targets are 1000, 1001, ... with rank 0 and 2000, ... with rank 1."""
    owner, drawn = torch.arange(ROWS), torch.randn(STEPS, 2, ROWS, WIDTH, generator=torch.Generator().manual_seed(rank))
    return [
        Batch(
            views={"query": {"x": drawn[step, 0]}, "target": {"x": drawn[step, 1]}},
            owners={"query": owner, "target": owner},
            keys={name: owner + ROWS * step + 1000 * (rank + 1) for name in ("query", "target")},
            labels=torch.full((ROWS,), -1),
            weights=torch.ones(ROWS),
            ids=[str(i) for i in range(ROWS)],
            sources=[""] * ROWS,
        )
        for step in range(STEPS)
    ]


def worker(rank: int, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= place | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    sent: list[int] = []
    broadcast = dist._broadcast_coalesced

    def counted(group: Any, tensors: list[torch.Tensor], *arguments: Any) -> None:
        sent.append(sum(tensor.numel() for tensor in tensors))
        broadcast(group, tensors, *arguments)

    dist._broadcast_coalesced = counted
    keys = {}
    for gather_group in (1, 2):
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            devices=2,
            strategy="ddp",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        module = Tower(gather_group)
        trainer.fit(module, DataLoader(batches(rank), batch_size=None))
        keys[gather_group] = module.objective.queues["target"].held()[1].tolist()
    torch.save({"sent": sent, "keys": keys}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_each_process_keeps_its_queue_and_nothing_large_is_sent(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, args=(tmp_path, port), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    each = [[one.keys["target"].tolist() for one in batches(rank)] for rank in range(2)]
    joined = [key for pair in zip(*each, strict=True) for keys in pair for key in keys]
    for rank, one in enumerate(found):
        assert one["keys"] == {1: [key for keys in each[rank] for key in keys], 2: joined}
        # the parameters at the start; in every step mean, variance and count of the batch norm, and the step of the ramp.
        # A queue has 3,000 values, and the words have 3,500
        assert one["sent"].count(2 * WIDTH + 2) == 2 * STEPS and max(one["sent"]) < 50
