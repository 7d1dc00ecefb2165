"""The state of the first token."""

from __future__ import annotations

import torch

from zoo.nn.pooling import FirstToken


def test_is_the_first_whatever_follows() -> None:
    hidden, mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert torch.equal(FirstToken()(hidden, mask, mask), hidden[:, 0])
