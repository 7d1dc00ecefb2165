"""Heads that give a mean and a variance per value. R rows, L tokens, D width of the tower, E width of the embedding."""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.nn.heads import Head
from zoo.nn.latent_heads import StatesHead, applied
from zoo.nn.limits import held
from zoo.nn.towers import States

_PAD = -10_000.0  # stands behind every real value when they are sorted
_SHARPNESS = 0.1  # the official temperature of the weights


class Gaussian(NamedTuple):
    """What a probabilistic head gives: mean (R, E), not yet normalised, and log_var (R, E), log of the variance.

    given (R, D), not yet normalised, and log_shape (R, E): see `zoo.types.Embedding`; None where nothing learns from them.
    """

    mean: Tensor
    log_var: Tensor
    given: Tensor | None = None
    log_shape: Tensor | None = None


class DistributionHead(StatesHead):
    """A head that gives `Gaussian`: an entry becomes probabilistic with it in the place of its head."""


class GaussianHead(DistributionHead):
    """Two heads side by side, one for the mean and one for the log-variance.

    Args:
        mean: of the mean, on the pooled state or on all states.
        log_var: of the log-variance, likewise.
        limits: the log-variance is held between these, so that no variance over- or underflows.
        given: hand on the pooled state, too, for an objective that reconstructs it (`MEME`).
    """

    def __init__(
        self,
        mean: Head | StatesHead,
        log_var: Head | StatesHead,
        limits: tuple[float, float] = (-20.0, 5.0),
        given: bool = False,
    ) -> None:
        super().__init__()
        self.mean: nn.Module = mean  # type: ignore[assignment]  # heads are modules
        self.log_var: nn.Module = log_var  # type: ignore[assignment]
        self.limits = limits
        self.given = given

    @property
    def needs_tokens(self) -> bool:
        """Whether one of the two does."""
        return any(isinstance(one, StatesHead) and one.needs_tokens for one in (self.mean, self.log_var))

    def forward(self, states: States) -> Gaussian:
        """See the class."""
        mean, log_var = applied(self.mean, states), applied(self.log_var, states)
        return Gaussian(mean, held(log_var, *self.limits), states.pooled if self.given else None)


class LogVariance(nn.Linear, Head):
    """Linear, starting near one small variance everywhere (ProLIP, arXiv:2410.18857: bias -10).

    Args:
        width: D. dim: E. start: the log-variance to start from.
    """

    def __init__(self, width: int, dim: int, start: float = -10.0) -> None:
        super().__init__(width, dim)
        nn.init.normal_(self.weight, std=width**-0.5 / 10)
        nn.init.constant_(self.bias, start)

    def forward(self, pooled: Tensor) -> Tensor:
        return F.linear(pooled, self.weight, self.bias)


class GeneralizedPooling(StatesHead):
    """Projected tokens, sorted per value and summed with learned weights of their ranks (GPO, arXiv:2011.04305).

    Formula:
        y_e = sum_k w_k(n) sort_desc(x_1e, ..., x_ne)_k, w(n) = softmax(score / 0.1), score = Linear(mean of both directions
        of a GRU over sinusoidal codes of the ranks 1 ... n)

    Weights depend on the number of tokens n alone: outside of training they come from a table that holds them for every n,
    and so the graph that is exported has no recurrence in it.

    Args:
        width: D. dim: E. max_length: most tokens. code, hidden: widths of the codes and of the GRU (official: 32 and 32).

    Raises:
        RecipeError: a row with more tokens than `max_length`.
    """

    table: Tensor

    def __init__(self, width: int, dim: int, max_length: int = 128, code: int = 32, hidden: int = 32) -> None:
        super().__init__()
        self.project = nn.Linear(width, dim)
        self.gru = nn.GRU(code, hidden, batch_first=True, bidirectional=True)
        self.score = nn.Linear(hidden, 1, bias=False)
        self.max_length = max_length
        self.register_buffer("codes", sinusoids(max_length, code), persistent=False)
        self.register_buffer("table", torch.zeros(max_length + 1, max_length), persistent=False)
        self.register_load_state_dict_post_hook(_after_loading)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> Self:
        """As of any module; leaving training writes the table anew, as loading does."""
        super().train(mode)
        if not mode and not self.table.is_meta:
            with torch.no_grad():
                self.table.copy_(self._weights(torch.arange(self.max_length + 1, device=self.table.device)))
        return self

    def forward(self, states: States) -> Tensor:
        """See the class."""
        tokens = self.project(states.tokens)
        length = tokens.shape[1]
        if not torch.compiler.is_compiling() and length > self.max_length:
            raise RecipeError(f"GeneralizedPooling has weights for {self.max_length} tokens, this row has {length}")
        if states.mask is None:
            counts = torch.full((len(tokens),), length, device=tokens.device)
        else:
            tokens = tokens.masked_fill(states.mask.unsqueeze(-1) == 0, _PAD)
            counts = states.mask.sum(1)
        ordered = tokens.sort(dim=1, descending=True).values
        weights = self._weights(counts) if self.training else self.table[counts]
        pooled: Tensor = (ordered * weights[:, :length, None].to(ordered.dtype)).sum(1)
        return pooled

    def _weights(self, counts: Tensor) -> Tensor:
        """(R, max_length) weights of the ranks for rows of so many tokens, 0 behind them."""
        different, which = counts.unique(return_inverse=True)
        lengths = different.clamp(min=1)
        codes = self.codes.expand(len(lengths), -1, -1)  # type: ignore[operator]  # a tensor
        packed = nn.utils.rnn.pack_padded_sequence(codes, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = nn.utils.rnn.pad_packed_sequence(
            self.gru(packed)[0], batch_first=True, total_length=self.max_length
        )
        forth, back = states.chunk(2, dim=-1)
        scores = self.score((forth + back) / 2).squeeze(-1) / _SHARPNESS
        behind = torch.arange(self.max_length, device=counts.device) >= lengths[:, None]
        weights: Tensor = scores.masked_fill(behind, -torch.inf).softmax(1)[which]
        return weights


def _after_loading(pooling: nn.Module, _: object) -> None:
    pooling.train(pooling.training)


def sinusoids(length: int, width: int) -> Tensor:
    """(length, width) codes of positions: sines in the even columns, cosines in the odd ones (arXiv:1706.03762)."""
    position = torch.arange(length, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * -(math.log(10_000.0) / width))
    codes = torch.zeros(length, width)
    codes[:, 0::2], codes[:, 1::2] = (position * rate).sin(), (position * rate).cos()
    return codes
