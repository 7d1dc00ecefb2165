"""The two-way recurrent tower: against steps written out from the equations, padding, and as a graph of any length."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from zoo.export.verify import export_and_verify
from zoo.nn.recurrent import BiRnnText, VectorAttention
from zoo.types import Graph

CELLS = ["gru", "relu"]


def tower(cell: str, attention: bool = True) -> BiRnnText:
    torch.manual_seed(0)
    pooling = VectorAttention(10, 4) if attention else None
    return BiRnnText(20, 6, 5, cell, pooling)  # type: ignore[arg-type]


def texts(lengths: list[int], width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    ids = torch.randint(1, 20, (len(lengths), width), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


def step(cell: str, rnn: nn.Module, x: Tensor, h: Tensor, direction: str) -> Tensor:
    """One step, from torch's documented equations of GRU and RNN."""
    w, u = getattr(rnn, f"weight_ih_l0{direction}"), getattr(rnn, f"weight_hh_l0{direction}")
    a, b = w @ x + getattr(rnn, f"bias_ih_l0{direction}"), u @ h + getattr(rnn, f"bias_hh_l0{direction}")
    if cell == "relu":
        return (a + b).relu()
    (ar, az, an), (br, bz, bn) = a.chunk(3), b.chunk(3)
    reset, update = (ar + br).sigmoid(), (az + bz).sigmoid()
    return (1 - update) * (an + reset * bn).tanh() + update * h


@pytest.mark.parametrize("cell", CELLS)
def test_states_are_those_of_the_equations(cell: str) -> None:
    part = tower(cell)
    lengths = [4, 7, 1]
    ids, mask = texts(lengths, 7)
    states = part(ids, mask)
    for row, length in enumerate(lengths):
        vectors = part.embedding(ids[row, :length])
        for direction, order in (("", range(length)), ("_reverse", reversed(range(length)))):
            h = torch.zeros(5)
            half = slice(5, 10) if direction else slice(0, 5)
            for t in order:
                h = step(cell, part.rnn, vectors[t], h, direction)
                torch.testing.assert_close(states.tokens[row, t, half], h, atol=1e-6, rtol=1e-5)
        assert not states.tokens[row, length:].any()


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_padding_changes_nothing(cell: str, attention: bool) -> None:
    part = tower(cell, attention)
    lengths = [4, 7, 1]
    ids, mask = texts(lengths, 12)
    together = part(ids, mask)
    for row, length in enumerate(lengths):
        alone = part(ids[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(together.pooled[row], alone.pooled[0], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(together.tokens[row, :length], alone.tokens[0], atol=1e-6, rtol=1e-5)


def test_vector_attention_is_its_formula() -> None:
    part = VectorAttention(6, 3)
    hidden = torch.randn(2, 4, 6)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    found = part(hidden, mask, mask)
    for row, length in enumerate((4, 2)):
        for d in range(6):
            scores = [
                float(
                    (part.up.weight[d] @ torch.tanh(part.down.weight @ h + part.down.bias) + part.up.bias[d]).detach()
                )
                for h in hidden[row, :length]
            ]
            weights = torch.tensor(scores).softmax(0)
            torch.testing.assert_close(found[row, d], weights @ hidden[row, :length, d], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_every_weight_gets_a_gradient(cell: str) -> None:
    part = tower(cell)
    part(*texts([4, 7, 1], 7)).pooled.square().sum().backward()
    assert all(p.grad is not None for p in part.parameters())


class Pooled(nn.Module):
    def __init__(self, cell: str) -> None:
        super().__init__()
        self.tower = tower(cell)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        states = self.tower(input_ids, attention_mask)
        return states.pooled, states.tokens


@pytest.mark.parametrize("cell", CELLS)
def test_exports_for_any_length(tmp_path: Path, cell: str) -> None:
    examples = [
        dict(zip(("input_ids", "attention_mask"), texts(lengths, width), strict=True))
        for lengths, width in (([4, 9, 1], 9), ([3], 5), ([2, 12, 12, 7], 14))
    ]
    axes = {0: "batch", 1: "sequence"}
    names = ("pooled", "tokens")
    graph = Graph(
        "text",
        Pooled(cell),
        examples,
        {"input_ids": axes, "attention_mask": axes, "pooled": {0: "batch"}, "tokens": axes},
        names,
    )
    errors = export_and_verify([graph], tmp_path, tolerance=1e-5)
    assert set(errors) == {"text"}
