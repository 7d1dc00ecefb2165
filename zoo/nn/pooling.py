"""From the hidden states of a sequence to one vector. R rows, T tokens, D width."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn


class Pooling(Protocol):
    """Hidden states (R, T, D), mask (R, T) with 1 for real tokens, ids (R, T) -> (R, D)."""

    def forward(self, hidden: Tensor, mask: Tensor, input_ids: Tensor) -> Tensor:
        """See the class."""
        ...

    if (
        TYPE_CHECKING
    ):  # jsonargparse takes a protocol that has `__call__` for a factory; modules are called all the same

        def __call__(self, hidden: Tensor, mask: Tensor, input_ids: Tensor) -> Tensor: ...


class LastToken(nn.Module, Pooling):
    """The state of the last real token, whichever side the padding is on (VLM2Vec, E5-V, GME)."""

    def forward(self, hidden: Tensor, mask: Tensor, input_ids: Tensor) -> Tensor:
        last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]


class FirstToken(nn.Module, Pooling):
    """The state of the first token, such as BERT's [CLS] (ALIGN, LiT); the processor's caption needs it as `bos`."""

    def forward(self, hidden: Tensor, mask: Tensor, input_ids: Tensor) -> Tensor:
        return hidden[:, 0]


class MeanPooling(nn.Module, Pooling):
    """The mean over real tokens (ABC, MoCa).

    Args:
        silent_token: a token that counts in the divisor but adds nothing. ABC's released code drops token 0 from the sum
            only (it takes it for padding; in Qwen's vocabulary it is "!"): 0 reproduces its vectors for batches of one.
            None = exact mean.
    """

    def __init__(self, silent_token: int | None = None) -> None:
        super().__init__()
        self.silent_token = silent_token

    def forward(self, hidden: Tensor, mask: Tensor, input_ids: Tensor) -> Tensor:
        summed = mask if self.silent_token is None else mask * (input_ids != self.silent_token)
        wide = torch.promote_types(hidden.dtype, torch.float32)  # the sum of a long text is beyond float16
        total = (hidden * summed.unsqueeze(-1).to(hidden.dtype)).sum(dim=1, dtype=wide)
        return (total / mask.sum(dim=1, keepdim=True).clamp(min=1)).to(hidden.dtype)
