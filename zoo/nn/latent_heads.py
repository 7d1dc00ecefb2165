"""Heads on the latents of frozen encoders. R rows, L tokens, D width of the latents, E width of the embedding."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.heads import Head
from zoo.nn.towers import States


class StatesHead(nn.Module):
    """A head that looks at all that an encoder gives, tokens among it: States -> (R, E), not yet normalised."""

    @property
    def needs_tokens(self) -> bool:
        """Whether token latents have to be kept for it."""
        return True

    def forward(self, states: States) -> Any:
        """See the class."""
        raise NotImplementedError


def applied(head: nn.Module, states: States) -> Any:
    """What a head gives: of all states, or of the pooled one."""
    return head(states if isinstance(head, StatesHead) else states.pooled)


class AtToken(StatesHead):
    """A head on the state of one token alone, such as ProLIP's [UNC], whose state says how uncertain the item is.

    Args:
        place: of the token, the first being 0. A `TimmImage` with `reg_tokens: 1` has its register token at 1, behind the
            class token; of a text, `bos` of the processor's caption is at 0.
        head: on its state.
    """

    def __init__(self, place: int, head: Head) -> None:
        super().__init__()
        self.place = place
        self.head: nn.Module = head  # type: ignore[assignment]  # heads are modules

    def forward(self, states: States) -> Tensor:
        out: Tensor = self.head(states.tokens[:, self.place])
        return out


class InvertedBottleneck(nn.Sequential, Head):
    """Residual blocks x + Dropout... W2 Dropout(GELU(W1 LN(x))), then LN and a linear map (FuseMix, arXiv:2312.10144).

    The layers and their names are those of the official code, so its heads load as they are.

    Args:
        width: D. dim: E. depth: blocks (official: 4). expansion: inner width / D (official: 4). dropout: official 0.6.
    """

    def __init__(self, width: int, dim: int, depth: int = 4, expansion: int = 4, dropout: float = 0.6) -> None:
        blocks = [_Residual(width, expansion * width, dropout) for _ in range(depth)]
        super().__init__(*blocks, nn.LayerNorm(width), nn.Linear(width, dim))

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, D) -> (R, E)."""
        for layer in self:
            pooled = layer(pooled)
        return pooled


class _Residual(nn.Module):
    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(width)
        self.fn = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.fn(self.ln(x))
        return out


class StarMlp(nn.Module, Head):
    """g(ReLU6(f1 LN(x)) * f2 LN(x)), f1 and f2 clamped (SAIL, arXiv:2412.04616; official code).

    Args:
        width: D. dim: E (official: 1024). expansion: inner width / D (official: 8). clamp: largest value of f1 and f2
            (official: 1e3).
    """

    def __init__(self, width: int, dim: int, expansion: int = 8, clamp: float = 1e3) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.f1, self.f2 = nn.Linear(width, expansion * width), nn.Linear(width, expansion * width)
        self.g = nn.Linear(expansion * width, dim)
        self.clamp = clamp

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, D) -> (R, E)."""
        x = self.norm(pooled)
        first, second = (f(x).clamp(-self.clamp, self.clamp) for f in (self.f1, self.f2))
        out: Tensor = self.g(F.relu6(first) * second)
        return out


class TokensAndPooled(StatesHead):
    """The mean of projected tokens plus the projected pooled state (freeze-align's vision side, arXiv:2409.19425; official
    weights of the two are 1 and 1).

    Args:
        width: D. dim: E. dropout: before the projectors (official: 0.1).
        prefix: tokens at the beginning that are no patches and left out of the mean (1 for the class token of DINOv2).
    """

    def __init__(self, width: int, dim: int, dropout: float = 0.1, prefix: int = 0) -> None:
        super().__init__()
        self.prefix = prefix
        self.tokens, self.pooled = ParallelProjector(width, dim, dropout), ParallelProjector(width, dim, dropout)

    def forward(self, states: States) -> Tensor:
        patches = states.tokens[:, self.prefix :]
        mask = None if states.mask is None else states.mask[:, self.prefix :]
        out: Tensor = masked_mean(self.tokens(patches), mask) + self.pooled(states.pooled)
        return out


class TokensThenMlp(StatesHead):
    """The mean of projected tokens, then y = W1 mean, LN(y + Dropout(W2 GELU(y))) (freeze-align's text side; official code).

    Args:
        width: D. dim: E. dropout: official 0.1.
    """

    def __init__(self, width: int, dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.tokens = ParallelProjector(width, dim, dropout)
        self.projection, self.fc = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.drop, self.norm = nn.Dropout(dropout), nn.LayerNorm(dim)

    def forward(self, states: States) -> Tensor:
        projected = self.projection(masked_mean(self.tokens(states.tokens), states.mask))
        out: Tensor = self.norm(projected + self.drop(self.fc(F.gelu(projected))))
        return out


class ParallelProjector(nn.Module):
    """LN, dropout, then a linear map and a small MLP side by side, added (freeze-align's "patch"): (..., D) -> (..., E)."""

    def __init__(self, width: int, dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.norm, self.drop = nn.LayerNorm(width), nn.Dropout(dropout)
        self.linear = nn.Linear(width, dim)
        self.mlp = nn.Sequential(nn.Linear(width, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.drop(self.norm(x))
        out: Tensor = self.linear(x) + self.mlp(x)
        return out


class UniversalProjection(nn.Module):
    """One light transformer layer for all modalities, told by a modality token which of them it sees (OneEncoder,
    arXiv:2409.11059).

    Formula:
        y = x + m + Layer(LN(x + m)), m = LN(W3 ReLU(W2 ReLU(W1 t_m))), t_m a learned token of 3 values for each modality
        (official code; its widths are 64, 128, E)

    Args:
        dim: E. modalities: their names. heads: attention heads (official: 4; here there is one vector per item, where the
            official code has all tokens and takes their mean afterwards). token: width of t_m. hidden: inner width of the
            layer (official: 2048). dropout: in the layer (official: 0.1).
    """

    def __init__(
        self,
        dim: int,
        modalities: list[str],
        heads: int = 4,
        token: int = 3,
        hidden: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.modality = nn.ParameterDict({name: nn.Parameter(torch.randn(token)) for name in modalities})
        layers: list[nn.Module] = [nn.Linear(token, 64), nn.ReLU(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, dim)]
        self.told = nn.Sequential(*layers, nn.LayerNorm(dim))
        self.norm = nn.LayerNorm(dim)
        self.layer = nn.TransformerEncoderLayer(dim, heads, hidden, dropout, batch_first=True)

    def forward(self, vectors: Tensor, modality: str) -> Tensor:
        """(R, E) of one modality -> (R, E)."""
        told = vectors + self.told(self.modality[modality])
        out: Tensor = told + self.layer(self.norm(told)[:, None])[:, 0]
        return out


def masked_mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """(R, L, E), mask (R, L) with 1 for real tokens or None -> (R, E)."""
    if mask is None:
        return tokens.mean(1)
    kept, wide = mask.unsqueeze(-1).to(tokens.dtype), torch.promote_types(tokens.dtype, torch.float32)
    total = (tokens * kept).sum(1, dtype=wide)  # of many tokens it is beyond float16
    return (total / kept.sum(1, dtype=wide).clamp(min=1)).to(tokens.dtype)
