"""Pooling against a loop over rows, with padding on either side."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.nn.latent_heads import masked_mean
from zoo.nn.pooling import LastToken, MeanPooling

LENGTHS = [4, 1, 6]


def batch(side: str) -> tuple[Tensor, Tensor, Tensor]:
    """Random states, mask and ids; padding holds large states and id 0, which real tokens may have too."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 6, 5, generator=generator)
    ids = torch.randint(0, 3, (3, 6), generator=generator)
    mask = torch.zeros(3, 6, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        mask[row, 6 - length :] = 1
        if side == "right":
            mask[row] = mask[row].flip(0)
    hidden[mask == 0] = 1e6
    return hidden, mask, torch.where(mask > 0, ids, 0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_last_token(side: str) -> None:
    hidden, mask, ids = batch(side)
    expected = torch.stack([row[m > 0][-1] for row, m in zip(hidden, mask, strict=True)])
    assert torch.equal(LastToken()(hidden, mask, ids), expected)


def test_last_token_with_both_sides_in_one_batch() -> None:
    """Official VLM2Vec code looks at the last column of the batch to find the side, which fails here."""
    (left, left_mask, ids), (right, right_mask, _) = batch("left"), batch("right")
    pooled = LastToken()(torch.cat([left, right]), torch.cat([left_mask, right_mask]), torch.cat([ids, ids]))
    assert torch.equal(pooled, torch.cat([LastToken()(left, left_mask, ids), LastToken()(right, right_mask, ids)]))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("silent", [None, 0, 2])
def test_mean(side: str, silent: int | None) -> None:
    hidden, mask, ids = batch(side)
    expected = []
    for row, m, i in zip(hidden, mask, ids, strict=True):
        added = [state for state, real, token in zip(row, m, i, strict=True) if real and token.item() != silent]
        expected.append(sum(added, torch.zeros(5)) / int(m.sum()))
    torch.testing.assert_close(MeanPooling(silent)(hidden, mask, ids), torch.stack(expected))


@pytest.mark.parametrize("count", [3, 4097])
@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_mean_in_half_precision(precision: torch.dtype, count: int) -> None:
    """The sum is beyond float16's 65,504, and 4,097 is no number of it; the mean is neither."""
    hidden = (torch.rand(2, count, 5, generator=torch.Generator().manual_seed(0)) * 100 + 30_000).to(precision)
    mask = torch.ones(2, count, dtype=torch.long)
    mask[1, count // 2 :] = 0
    exact = torch.stack([hidden[0].double().mean(0), hidden[1, : count // 2].double().mean(0)])
    for found in (MeanPooling()(hidden, mask, mask), masked_mean(hidden, mask)):
        assert found.dtype == precision
        torch.testing.assert_close(found.double(), exact, rtol=torch.finfo(precision).eps, atol=0)
    both = MeanPooling()(hidden.double(), mask, mask)
    assert both.dtype == torch.float64
    torch.testing.assert_close(both, exact, rtol=1e-12, atol=0)


def test_silent_token_is_the_official_mean_of_a_batch_of_one() -> None:
    """mean over the length of mask * states, mask = ids != 0 (ABC's code, where padding is the only thing it means)."""
    hidden, _, ids = batch("right")
    hidden = hidden[2:]  # the row without padding
    official = ((ids[2:] != 0).unsqueeze(-1) * hidden).mean(dim=1)
    mask = torch.ones(1, 6, dtype=torch.long)
    assert (ids[2] == 0).any()
    torch.testing.assert_close(MeanPooling(0)(hidden, mask, ids[2:]), official)
    assert (MeanPooling()(hidden, mask, ids[2:]) - official).abs().max() > 1e-2


def test_half_precision_keeps_its_type() -> None:
    hidden, mask, ids = batch("left")
    hidden = hidden.masked_fill((mask == 0).unsqueeze(-1), 0)
    for pooling in (LastToken(), MeanPooling()):
        assert pooling(hidden.bfloat16(), mask, ids).dtype == torch.bfloat16
