"""Two processes train like one on the joined batch, for equal and for unequal shares."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from zoo.module import EmbeddingModule
from zoo.objectives.infonce import InfoNCE
from zoo.types import Batch, Embedding, Inputs

WIDTH = 6


class Towers(EmbeddingModule):
    """One linear layer; a learned temperature."""

    def __init__(self) -> None:
        super().__init__(processor=None, objective=InfoNCE(0.1, learn="linear", symmetric=True))
        torch.manual_seed(0)
        self.layer = nn.Linear(WIDTH, 4, dtype=torch.float64)

    def encode(self, inputs: Inputs) -> Embedding:
        return Embedding(nn.functional.normalize(self.layer(inputs["x"]), dim=-1))


def batch(start: int, stop: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    everything = torch.randn(3, 10, WIDTH, generator=generator, dtype=torch.float64)
    count = stop - start
    keys = torch.arange(10) % 9  # samples 0 and 9 are duplicates, on different ranks
    return Batch(
        views={
            "query": {"x": everything[0, start:stop]},
            "target": {"x": everything[1, start:stop]},
            "negatives": {
                "x": everything[2].repeat_interleave(2, 0)[2 * start : 2 * stop]
                * torch.arange(2 * start, 2 * stop)[:, None]
            },
        },
        owners={
            "query": torch.arange(count),
            "target": torch.arange(count),
            "negatives": torch.arange(count).repeat_interleave(2),
        },
        keys={
            "query": keys[start:stop],
            "target": keys[start:stop] + 50,
            "negatives": torch.arange(2 * start, 2 * stop) + 100,
        },
        labels=torch.full((count,), -1),
        weights=torch.linspace(1, 2, 10)[start:stop],
        ids=[str(i) for i in range(start, stop)],
        sources=[""] * count,
    )


def gradients(module: Towers, shares: list[tuple[int, int]], rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss share and gradient as data-parallel training computes it before averaging."""
    local = module._encoded(batch(*shares[rank]))
    everyone = module._gathered(local)
    loss = module.objective(local, everyone)["loss"]
    (loss * len(shares)).backward()
    return loss.detach(), torch.cat([p.grad.flatten().double() for p in module.parameters()])


def worker(rank: int, shares: list[tuple[int, int]], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(shares))
    module = Towers()
    module._fabric = None
    type(module).global_rank = property(lambda self: dist.get_rank())
    loss, gradient = gradients(module, shares, rank)
    dist.all_reduce(loss)
    dist.all_reduce(gradient)
    if rank == 0:
        torch.save({"loss": loss, "gradient": gradient / len(shares)}, folder / "result.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("shares", [[(0, 5), (5, 10)], [(0, 7), (7, 10)]], ids=["equal", "unequal"])
def test_two_processes_equal_one(shares: list[tuple[int, int]], tmp_path: Path) -> None:
    mp.spawn(worker, args=(shares, tmp_path), nprocs=2)
    result = torch.load(tmp_path / "result.pt", weights_only=True)
    loss, gradient = gradients(Towers(), [(0, 10)], 0)
    assert result["loss"].item() == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(result["gradient"], gradient, rtol=1e-5, atol=1e-7)
    assert gradient.abs().max() > 1e-3
