"""Masked words against a loop over texts and words, written from the formulas of its blocks; several ranks; extremes."""

from __future__ import annotations

import math

import pytest
import torch
from encoded_rows import WIDTH, check_ranks, close, encoded, leaves, outcome, trained
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.objectives.combined import Weighted
from zoo.objectives.infonce import InfoNCE
from zoo.objectives.masked_words import MaskedWords
from zoo.types import Embedding, Encoded

VOCABULARY, HEADS = 11, 2


def rows(samples: int = 6, each: int = 1, masked: tuple[int, ...] = (4, 1, 2)) -> Encoded:
    """Pictures of 3 tokens, and masked texts of 4 tokens of some samples, in any order; a third of both is padded."""
    batch = encoded(samples, each, tokens=(3, 2))
    batch.weights = torch.linspace(1, 2, samples)
    text = encoded(len(masked), tokens=(4, 0), seed=50).views["query"]
    text.words = torch.full((len(masked), 4), -1)
    text.words[0, :2], text.words[1, 3] = torch.tensor([7, 0]), 3  # the last text has no hidden word
    batch.views["target_masked"] = text
    batch.owners["target_masked"] = torch.tensor(masked)
    batch.keys["target_masked"] = torch.arange(500, 500 + len(masked))
    return batch


def make(layers: int = 2) -> MaskedWords:
    torch.manual_seed(3)
    objective = MaskedWords(WIDTH, VOCABULARY, layers, HEADS).double()
    with torch.no_grad():  # nothing at its start value: zeros and ones hide mistakes
        for parameter in objective.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return objective


def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias


def attention(queries: Tensor, keys: Tensor, part: nn.MultiheadAttention) -> Tensor:
    """One row at a time: (L, E) looks at (M, E), all of which are real."""
    q, k, v = (x @ w.T + b for x, w, b in zip(
        (queries, keys, keys), part.in_proj_weight.chunk(3), part.in_proj_bias.chunk(3), strict=True
    ))  # fmt: skip
    size, found = WIDTH // HEADS, []
    for head in range(HEADS):
        some = slice(head * size, (head + 1) * size)
        weights = (q[:, some] @ k[:, some].T / math.sqrt(size)).exp()
        found.append(weights / weights.sum(1, keepdim=True) @ v[:, some])
    out: Tensor = torch.cat(found, 1) @ part.out_proj.weight.T + part.out_proj.bias
    return out


def loop(batch: Encoded, objective: MaskedWords) -> Tensor:
    text, picture = batch.views["target_masked"], batch.views["query"]
    losses = []
    for i, owner in enumerate(batch.owners["target_masked"].tolist()):
        for j, other in enumerate(batch.owners["query"].tolist()):
            if owner != other:
                continue
            real = text.mask[i] > 0
            x, seen = text.tokens[i][real], picture.tokens[j][picture.mask[j] > 0]
            for block in objective.blocks:
                y = norm(x, block.norm1)
                x = x + attention(y, y, block.self_attn)
                x = x + attention(norm(x, block.norm2), seen, block.multihead_attn)
                y = norm(x, block.norm3) @ block.linear1.weight.T + block.linear1.bias
                y = y / 2 * (1 + torch.erf(y / math.sqrt(2)))
                x = x + y @ block.linear2.weight.T + block.linear2.bias
            logits = norm(x, objective.norm) @ objective.classify.weight.T + objective.classify.bias
            for row, word in zip(logits, text.words[i][real].tolist(), strict=True):
                if word >= 0:
                    losses.append(-batch.weights[owner] * (row[word] - row.exp().sum().log()))
    return sum(losses) / len(losses)  # type: ignore[return-value]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("masked", [(4, 1, 2), (0, 3, 5)])
def test_equals_the_loop(layers: int, masked: tuple[int, ...]) -> None:
    batch, objective = rows(masked=masked), make(layers)
    tensors = [*leaves(batch), *trained(objective)]
    found = outcome(objective(batch, batch)["loss"], tensors)
    close(found, outcome(loop(batch, objective), tensors))
    names = [name for name, _ in objective.named_parameters()]
    idle = [name for name, value in zip(names, found[-len(names) :], strict=True) if float(value.abs().max()) == 0]
    assert not idle, f"no gradient reaches {idle}"


def test_ranks() -> None:
    for cuts in ((4,), (2, 5), (3, 4)):  # the second and third leave ranks without a hidden word, or without a row
        check_ranks(make, rows(), cuts)


def test_gradcheck() -> None:
    batch, objective = rows(4, masked=(2, 0, 1)), make(1)

    def run(*parts: Tensor) -> Tensor:
        places = iter(parts)
        views = {
            name: Embedding(next(places), tokens=next(places), mask=e.mask, words=e.words)
            for name, e in batch.views.items()
        }
        moved = Encoded(views, batch.owners, batch.keys, batch.labels, batch.weights, batch.sample)
        return objective(moved, moved)["loss"]

    assert torch.autograd.gradcheck(run, tuple(leaves(batch)))


def test_analytic_values() -> None:
    batch, objective = rows(), make()
    batch.weights = torch.ones(6)
    with torch.no_grad():
        objective.classify.weight.zero_()
        objective.classify.bias.zero_()
    torch.testing.assert_close(objective(batch, batch)["loss"].item(), math.log(VOCABULARY))
    with torch.no_grad():
        objective.classify.bias[7] = 50.0  # one of three
    found = objective(batch, batch)
    assert found["loss"].item() == pytest.approx(2 / 3 * 50) and float(found["accuracy"]) == pytest.approx(1 / 3)


def test_padding_says_nothing() -> None:
    batch, objective = rows(), make()
    expected = objective(batch, batch)["loss"]
    for name, e in batch.views.items():
        batch.views[name].tokens = torch.where(e.mask[..., None] > 0, e.tokens, 1e3) if name != "target" else e.tokens
    torch.testing.assert_close(objective(batch, batch)["loss"], expected)


def test_nothing_hidden_costs_nothing() -> None:
    batch, objective = rows(), make()
    batch.views["target_masked"].words = torch.full((3, 4), -1)
    found = outcome(objective(batch, batch)["loss"], [*leaves(batch), *trained(objective)])
    assert all(float(value.abs().max()) == 0 for value in found)


def test_a_part_of_a_weighted_sum() -> None:
    batch, words = rows(), make()
    both = Weighted({"pairs": InfoNCE(0.1), "words": words}, {"words": 0.5}).double()
    found = both(batch, batch)
    torch.testing.assert_close(found["loss"], found["pairs"] + 0.5 * words(batch, batch)["loss"])
    assert "words/accuracy" in found


@pytest.mark.parametrize(
    ("view", "part", "message"),
    [
        ("target_masked", "words", r"'target_masked' has none.*`masking` of the model"),
        ("query", "tokens", "'query' has none: set `tokens: true`"),
        ("target_masked", "tokens", "'target_masked' has none: set `tokens: true`"),
    ],
)
def test_what_is_missing_is_named(view: str, part: str, message: str) -> None:
    batch = rows()
    setattr(batch.views[view], part, None)
    with pytest.raises(RecipeError, match=message):
        make()(batch, batch)


def test_no_masked_view() -> None:
    batch = encoded(tokens=(3, 2))
    with pytest.raises(RecipeError, match=r"view 'target_masked' \(masked views come from `masking` of the model\)"):
        make()(batch, batch)


def test_large_logits_stay_finite() -> None:
    batch, objective = rows(), make().float()
    for e in batch.views.values():
        e.vector, e.tokens = e.vector.float(), (e.tokens.detach() * 1e4).float().requires_grad_()
    with torch.no_grad():
        objective.classify.weight.mul_(1e4)
    tensors = [e.tokens for e in batch.views.values()]
    for value in outcome(objective(batch, batch)["loss"], tensors):
        assert torch.isfinite(value).all()
