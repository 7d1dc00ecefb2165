"""Tokens of texts that are longer on one rank than on another meet padded, with their gradient."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from zoo.distributed import row_counts
from zoo.module import _gather_embedding
from zoo.types import Embedding


def rows(rank: int) -> Embedding:
    count, length = ((2, 3), (3, 5))[rank]
    draw = torch.Generator().manual_seed(rank)
    tokens = torch.randn(count, length, 4, generator=draw, requires_grad=True)
    mask = torch.ones(count, length, dtype=torch.int64)
    mask[0, 2:] = 0
    words = torch.full((count, length), 7 + rank)
    return Embedding(torch.full((count, 4), float(rank)), tokens=tokens, mask=mask, words=words)


def pad(tensor: Tensor, length: int) -> Tensor:
    padded = tensor.new_zeros(len(tensor), length, *tensor.shape[2:])
    padded[:, : tensor.shape[1]] = tensor
    return padded


def worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    local = rows(rank)
    counts = row_counts(len(local.vector), local.vector.device, None)
    found = _gather_embedding(local, counts, None)
    (found.tokens.square() * found.mask.unsqueeze(-1)).sum().backward()
    torch.save((found.vector, found.tokens.detach(), found.mask, found.words, local.tokens.grad), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_shorter_rows_are_padded(tmp_path: Path) -> None:
    mp.spawn(worker, (tmp_path,), nprocs=2)
    both = [rows(0), rows(1)]
    for rank in range(2):
        vector, tokens, mask, words, gradient = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(vector, torch.cat([e.vector for e in both]))
        assert torch.equal(tokens, torch.cat([pad(e.tokens.detach(), 5) for e in both]))
        assert torch.equal(mask, torch.cat([pad(e.mask, 5) for e in both]))
        assert torch.equal(words, torch.tensor([[7, 7, 7, -1, -1]] * 2 + [[8] * 5] * 3))  # -1: not hidden
        local = both[rank]  # each rank's loss counts every row once
        torch.testing.assert_close(gradient, 2 * 2 * local.tokens.detach() * local.mask.unsqueeze(-1))
