"""Two processes train like one on the joined batch, for equal and for unequal shares."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from zoo.distributed import group_of
from zoo.errors import RecipeError
from zoo.module import EmbeddingModule
from zoo.objectives.infonce import InfoNCE
from zoo.objectives.siglip import SigLIP
from zoo.types import Batch, Embedding, Inputs

WIDTH = 6


class Splitter:
    """The part of a processor that chunks need."""

    def split(self, inputs: Inputs, size: int) -> list[Inputs]:
        return [{"x": part} for part in inputs["x"].split(size)]


class Towers(EmbeddingModule):
    """One linear layer; a learned temperature."""

    def __init__(self, objective: str = "infonce", gather_group: int | None = None, chunk: int | None = None) -> None:
        chosen = InfoNCE(0.1, learn="linear", symmetric=True) if objective == "infonce" else SigLIP(0.1, -2.0)
        super().__init__(processor=Splitter(), objective=chosen, gather_group=gather_group, chunk_size=chunk)
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
    (loss * module._group_size).backward()
    return loss.detach(), torch.cat([p.grad.flatten().double() for p in module.parameters()])


def worker(rank: int, shares: list[tuple[int, int]], folder: Path, objective: str, group: int | None) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(shares))
    module = Towers(objective, group)
    loss, gradient = gradients(module, shares, rank)
    dist.all_reduce(loss)
    dist.all_reduce(gradient)
    if rank == 0:
        torch.save({"loss": loss, "gradient": gradient / len(shares)}, folder / "result.pt")
    dist.destroy_process_group()


def spawned(shares: list[tuple[int, int]], folder: Path, objective: str, group: int | None = None) -> dict:
    mp.spawn(worker, args=(shares, folder, objective, group), nprocs=len(shares))
    return torch.load(folder / "result.pt", weights_only=True)


@pytest.mark.parametrize("objective", ["infonce", "siglip"])
@pytest.mark.parametrize("shares", [[(0, 5), (5, 10)], [(0, 7), (7, 10)]], ids=["equal", "unequal"])
def test_two_processes_equal_one(shares: list[tuple[int, int]], objective: str, tmp_path: Path) -> None:
    result = spawned(shares, tmp_path, objective)
    loss, gradient = gradients(Towers(objective), [(0, 10)], 0)
    assert result["loss"].item() == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(result["gradient"], gradient, rtol=1e-5, atol=1e-7)
    assert gradient.abs().max() > 1e-3


class Step(nn.Module):
    """What data-parallel training wraps: batch -> the loss whose gradients it averages."""

    def __init__(self, module: Towers) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> torch.Tensor:
        local = self.module._encoded(batch)
        return self.module.objective(local, self.module._gathered(local))["loss"] * self.module._group_size


def chunked_worker(rank: int, shares: list[tuple[int, int]], folder: Path, chunk: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(shares))
    module = Towers(chunk=chunk)
    parallel = nn.parallel.DistributedDataParallel(Step(module))  # kept: without it nobody averages
    parallel(batch(*shares[rank])).backward()
    if rank == 0:
        gradient = torch.cat([p.grad.flatten().double() for p in module.parameters()])
        torch.save({"gradient": gradient}, folder / "result.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("shares", [[(0, 5), (5, 10)], [(0, 7), (7, 10)]], ids=["equal", "unequal"])
def test_chunks_in_two_processes_equal_one_process_without(shares: list[tuple[int, int]], tmp_path: Path) -> None:
    """Two things meet in the backward pass: chunks are encoded again, and gradients are averaged as they get ready."""
    mp.spawn(chunked_worker, args=(shares, tmp_path, 2), nprocs=2)
    result = torch.load(tmp_path / "result.pt", weights_only=True)
    _, gradient = gradients(Towers(), [(0, 10)], 0)
    torch.testing.assert_close(result["gradient"], gradient, rtol=1e-5, atol=1e-7)


FOUR = [(0, 3), (3, 6), (6, 8), (8, 10)]


def test_four_processes_equal_one(tmp_path: Path) -> None:
    result = spawned(FOUR, tmp_path, "infonce")
    loss, gradient = gradients(Towers(), [(0, 10)], 0)
    assert result["loss"].item() == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(result["gradient"], gradient, rtol=1e-5, atol=1e-7)


def test_groups_are_the_mean_of_their_own_batches(tmp_path: Path) -> None:
    result = spawned(FOUR, tmp_path, "infonce", group=2)
    first, second = (gradients(Towers(), [half], 0) for half in ((0, 6), (6, 10)))
    assert result["loss"].item() / 2 == pytest.approx((first[0] + second[0]).item() / 2, rel=1e-6)
    torch.testing.assert_close(result["gradient"], (first[1] + second[1]) / 2, rtol=1e-5, atol=1e-7)


def test_groups_that_do_not_divide_the_processes_are_refused() -> None:
    with pytest.raises(RecipeError, match="groups of 3"):
        group_of(3)
