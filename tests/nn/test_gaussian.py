"""Probabilistic heads against loops written from the formulas, and through a whole entry."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures.test_projector import projector
from torch import Tensor, nn

import zoo.testing
from zoo.errors import RecipeError
from zoo.nn.gaussian import GaussianHead, GeneralizedPooling, LogVariance
from zoo.nn.heads import Projection
from zoo.nn.parts import Part, summed
from zoo.nn.towers import States
from zoo.types import Item, Sample


def states(rows: int = 3, length: int = 5, width: int = 4, seed: int = 0) -> States:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(rows, length, width, generator=generator)
    mask = (torch.arange(length) < torch.tensor([[length], [2], [1]])[:rows]).long()
    return States(tokens.mean(1), tokens, mask)


def slow_pooling(head: GeneralizedPooling, row: Tensor) -> Tensor:
    """One row of real tokens (n, D), position by position."""
    projected = head.project(row)
    hidden, _ = head.gru(head.codes[None, : len(row)])
    half = hidden.shape[-1] // 2
    scores = torch.stack([head.score((h[:half] + h[half:]) / 2)[0] / 0.1 for h in hidden[0]])
    weights = scores.exp() / scores.exp().sum()
    out = torch.zeros(projected.shape[1])
    for channel in range(projected.shape[1]):
        for weight, value in zip(weights, sorted(projected[:, channel], reverse=True), strict=True):
            out[channel] += weight * value
    return out


@pytest.mark.parametrize("training", [True, False])
def test_generalized_pooling_is_the_loop(training: bool) -> None:
    torch.manual_seed(0)
    head = GeneralizedPooling(4, 6, max_length=9).train(training)
    given = states()
    expected = torch.stack(
        [slow_pooling(head, row[: int(n)]) for row, n in zip(given.tokens, given.mask.sum(1), strict=True)]
    )
    torch.testing.assert_close(head(given), expected, atol=1e-5, rtol=1e-5)
    unmasked = States(given.pooled, given.tokens)
    torch.testing.assert_close(head(unmasked)[0], slow_pooling(head, given.tokens[0]), atol=1e-5, rtol=1e-5)


def test_the_table_follows_the_weights() -> None:
    head = GeneralizedPooling(4, 6, max_length=9).eval()
    with torch.no_grad():
        head.score.weight.mul_(-3).add_(0.5)
    given = states()
    in_training = head.train()(given)
    torch.testing.assert_close(head.eval()(given), in_training)
    with pytest.raises(RecipeError, match="weights for 9 tokens, this row has 12"):
        head(states(length=12))


def test_the_table_follows_weights_that_are_loaded() -> None:
    """In evaluation mode, as `zoo.load` and a server do it; alone or as a part of a model."""
    torch.manual_seed(0)
    trained, given = GeneralizedPooling(4, 6, max_length=9), States(torch.zeros(2, 4), torch.randn(2, 7, 4))
    nn.init.normal_(trained.score.weight)
    wanted = trained.train()(given)
    head = GeneralizedPooling(4, 6, max_length=9).eval()
    head.load_state_dict(trained.state_dict())
    torch.testing.assert_close(head(given), wanted)
    whole = nn.ModuleList([GeneralizedPooling(4, 6, max_length=9)]).eval()
    whole.load_state_dict(nn.ModuleList([trained]).state_dict())
    assert not whole[0].training
    torch.testing.assert_close(whole[0](given), wanted)


def test_variance_starts_small_and_is_held_within_limits() -> None:
    head = GaussianHead(Projection(4, 3), LogVariance(4, 3))
    found = head(states())
    assert found.mean.shape == found.log_var.shape == (3, 3)
    assert (found.log_var + 10).abs().max() < 1
    wild = GaussianHead(Projection(4, 3), LogVariance(4, 3, start=50.0))
    assert wild(states()).log_var.unique().tolist() == [5.0]


def test_a_row_of_two_parts_adds_up_variances() -> None:
    """Var((a + b) / |a + b|) for independent a and b, the norm held fixed."""
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    parts = [Part(torch.tensor([0]), v, torch.full((1, 2), value).log()) for v, value in ((a, 0.2), (b, 0.6))]
    found = summed(parts, 1)
    torch.testing.assert_close(found.vector, (a + b) / 2**0.5)
    torch.testing.assert_close(found.log_var.exp(), torch.full((1, 2), 0.8 / 2))
    alone = summed(parts[:1], 1)
    torch.testing.assert_close(alone.log_var.exp(), torch.full((1, 2), 0.2))
    assert summed([parts[0], Part(torch.tensor([0]), b)], 1).log_var is None


def test_an_entry_becomes_probabilistic_by_its_heads(tmp_path: Path) -> None:
    """No class of its own: swap the heads, and both outputs are exported."""
    heads = {
        "image": GaussianHead(GeneralizedPooling(16, 8, max_length=16), LogVariance(16, 8)),
        "text": GaussianHead(GeneralizedPooling(12, 8, max_length=32), LogVariance(12, 8)),
    }
    module = projector(heads=heads, tokens=["image", "text"])
    inputs = module.processor([Sample("x", {"query": Item(text="a cat")}), Sample("y", {"query": Item(text="red")})])
    found = module.eval().encode(inputs.views["query"])
    assert found.log_var is not None and found.log_var.shape == found.vector.shape == (2, 8)
    zoo.testing.check_embedding(module)
    zoo.testing.check_batch_invariance(module)
    assert [graph.outputs for graph in module.export_graphs()] == [("embeddings", "log_var")] * 2
    zoo.testing.check_export(module, tmp_path)
