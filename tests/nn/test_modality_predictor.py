"""The predictor of an absent modality against its formula, and what its prompts may see."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.nn.heads import Unchanged
from zoo.nn.modality_predictor import ModalityPredictor
from zoo.nn.towers import States

WIDTH, DIM = 6, 5


def states(rows: int = 3, length: int = 4, masked: bool = True) -> States:
    torch.manual_seed(1)
    tokens = torch.randn(rows, length, WIDTH, dtype=torch.float64)
    mask = torch.ones(rows, length, dtype=torch.int64)
    if masked:
        mask[1, 2:] = 0
    return States(torch.randn(rows, WIDTH, dtype=torch.float64), tokens, mask if masked else None)


def predictor() -> ModalityPredictor:
    torch.manual_seed(0)
    return ModalityPredictor(WIDTH, DIM, hidden=7, prompts=2).double()


def slow(part: ModalityPredictor, given: States) -> Tensor:
    """Row by row, prompt by prompt, token by token."""
    rows = []
    for r in range(len(given.pooled)):
        real = range(given.tokens.shape[1])
        if given.mask is not None:
            real = [i for i in real if given.mask[r, i]]  # type: ignore[assignment]
        seen = [F.layer_norm(given.tokens[r, i], (WIDTH,), part.norm.weight, part.norm.bias) for i in real]
        read = torch.zeros(7, dtype=torch.float64)
        for prompt in part.prompts:
            weights = torch.stack([(part.keys.weight @ x) @ prompt / 7**0.5 for x in seen]).softmax(0)
            values = [part.values.weight @ x + part.values.bias for x in seen]
            read = read + sum(w * v for w, v in zip(weights, values, strict=True)) / len(part.prompts)
        pooled = F.layer_norm(given.pooled[r], (WIDTH,), part.norm.weight, part.norm.bias)
        rows.append(part.direct.weight @ pooled + part.down(F.gelu(part.up(read))))
    return torch.stack(rows)


@pytest.mark.parametrize("masked", [True, False])
def test_equals_its_formula(masked: bool) -> None:
    part, given = predictor(), states(masked=masked)
    torch.testing.assert_close(part(given), slow(part, given), rtol=1e-10, atol=1e-10)


def test_padding_is_not_seen_and_gets_no_gradient() -> None:
    part, given = predictor(), states()
    tokens = given.tokens.clone().requires_grad_()
    part(given._replace(tokens=tokens)).sum().backward()
    assert tokens.grad is not None and not tokens.grad[1, 2:].any() and tokens.grad[1, :2].any()
    changed = given.tokens.clone()
    changed[1, 2:] += 100
    torch.testing.assert_close(part(given._replace(tokens=changed)), part(given))


def test_without_tokens_the_pooled_state_is_the_only_one() -> None:
    part, given = predictor(), states(masked=False)
    alone = States(given.pooled, given.pooled[:, None])
    torch.testing.assert_close(part(alone), slow(part, alone))


def test_every_parameter_is_trained() -> None:
    part = predictor()
    part(states()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


def test_unchanged_is_the_pooled_state() -> None:
    pooled = torch.randn(3, 4)
    assert Unchanged()(pooled) is pooled and not list(Unchanged().parameters())
