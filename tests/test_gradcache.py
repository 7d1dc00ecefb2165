"""Chunked gradients where chunks are not encoded as the whole batch would be: with dropout, and in mixed precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.module import EmbeddingModule
from zoo.objectives.infonce import InfoNCE
from zoo.types import Batch, Embedding, Encoded, Inputs

COUNT, WIDTH = 7, 6


class Splitter:
    """The part of a processor that chunks need."""

    def split(self, inputs: Inputs, size: int) -> list[Inputs]:
        return [{"x": part} for part in inputs["x"].split(size)]


class Dropped(EmbeddingModule):
    """Two layers with dropout between them; notes the type in which each pass computed."""

    def __init__(self, chunk_size: int | None, dtype: torch.dtype = torch.float64) -> None:
        objective = InfoNCE(0.1, symmetric=True)
        super().__init__(processor=Splitter(), objective=objective, chunk_size=chunk_size)  # type: ignore[arg-type]
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(WIDTH, 16), nn.Dropout(0.5), nn.Linear(16, 8)).to(dtype)
        self.passes: list[tuple[int, torch.dtype]] = []

    def encode(self, inputs: Inputs) -> Embedding:
        states = self.layers(inputs["x"])
        self.passes.append((len(states), states.dtype))
        return Embedding(nn.functional.normalize(states.to(inputs["x"].dtype), dim=-1))


def batch(dtype: torch.dtype = torch.float64) -> Batch:
    generator = torch.Generator().manual_seed(1)
    query, target = torch.randn(2, COUNT, WIDTH, generator=generator).to(dtype)  # equal numbers in every type
    owner = torch.arange(COUNT)
    return Batch(
        views={"query": {"x": query}, "target": {"x": target}},
        owners={"query": owner, "target": owner},
        keys={"query": owner, "target": owner + 50},
        labels=torch.full((COUNT,), -1),
        weights=torch.ones(COUNT),
        ids=[str(i) for i in range(COUNT)],
        sources=[""] * COUNT,
    )


def gradient(module: Dropped, encoded: Encoded) -> Tensor:
    assert module.objective is not None
    module.objective(encoded, encoded)["loss"].backward()
    return torch.cat([p.grad.flatten() for p in module.layers.parameters() if p.grad is not None])


def kept_in_memory(module: Dropped, data: Batch, size: int) -> Encoded:
    """The same chunks in the same order, encoded once with their graphs kept: they draw the same random numbers."""
    views = {
        name: Embedding(torch.cat([module.encode(part).vector for part in module.processor.split(inputs, size)]))
        for name, inputs in data.views.items()
    }
    return Encoded(views, data.owners, data.keys, data.labels, data.weights, torch.arange(COUNT))


@pytest.mark.parametrize("size", [1, 3, COUNT])
def test_dropout_is_the_same_in_both_passes(size: int) -> None:
    """The gradient is that of the loss that was reported, whose random numbers the second pass replays."""
    chunked, whole = Dropped(size).train(), Dropped(None).train()
    torch.manual_seed(5)
    found = gradient(chunked, chunked._encoded(batch()))
    after = torch.rand(())
    torch.manual_seed(5)
    expected = gradient(whole, kept_in_memory(whole, batch(), size))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(after, torch.rand(())), "the second pass moves the random numbers of what follows"
    torch.manual_seed(6)
    other = Dropped(None).train()
    assert not torch.allclose(gradient(other, kept_in_memory(other, batch(), size)), expected, rtol=1e-2)


def test_both_passes_run_in_mixed_precision() -> None:
    """The second pass runs within `backward`, outside of the caller's autocast, and must take it up again."""
    results = {}
    for size in (None, 3):
        module = Dropped(size, torch.float32).eval()  # no dropout: the whole batch draws other numbers than its chunks
        with torch.autocast("cpu", torch.bfloat16):
            encoded = module._encoded(batch(torch.float32))
        results[size] = gradient(module, encoded)
        rows = [COUNT, COUNT] if size is None else [3, 3, 1] * 2
        assert [count for count, _ in module.passes[: len(rows)]] == rows
        assert sorted(count for count, _ in module.passes) == sorted(rows * (1 if size is None else 2))
        assert {dtype for _, dtype in module.passes} == {torch.bfloat16}
    error = (results[3] - results[None]).norm() / results[None].norm()
    assert error < 2e-2, f"chunks change the gradient by {error:.1e} of its norm"
    exact = Dropped(None).eval()
    right = gradient(exact, exact._encoded(batch()))
    for size, found in results.items():
        distance = (found - right).norm() / right.norm()
        assert distance < 5e-2, f"in bf16, chunks of {size}: the gradient is off by {distance:.1e} of its norm"


@pytest.mark.parametrize("size", [3, COUNT])
def test_batch_norms_are_refused_unless_frozen(size: int) -> None:
    """A chunk would be normed by itself, and the second pass would move the running statistics once more."""
    module = Dropped(size)
    module.layers = nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8)).double()
    module.train()
    with pytest.raises(RecipeError, match=r"through 1 batch norms they do \(the first: layers\.1\)"):
        module._encoded(batch())
    module.freeze_patterns = [r".*layers\.1\..*"]
    module.apply_freeze()
    found = gradient(module, module._encoded(batch()))
    module.zero_grad()
    module.chunk_size = None
    torch.testing.assert_close(found, gradient(module, module._encoded(batch())), rtol=1e-10, atol=1e-12)
    assert int(module.layers[1].num_batches_tracked) == 0  # type: ignore[arg-type]
