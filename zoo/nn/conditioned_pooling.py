"""Pictures as a text sees them: attention over picture tokens with the text as its query (FLAIR, arXiv:2412.03561).

I pictures, L tokens of each, T texts, E width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE_CELLS = 1 << 22  # attention weights that `conditioned_scores` computes at a time: 16 MiB (ours)


class ConditionedPooling(nn.Module):
    """Multi-head attention without output norm; query, key and value have LNs of their own (section 3.2).

    As in the official code there is one more key, all zeros with the value zero, to which a text that finds nothing in the
    picture can turn.

    Args:
        dim: E. heads: attention heads (official: 8).
    """

    def __init__(self, dim: int, heads: int = 8) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True, add_zero_attn=True)
        self.ln_q, self.ln_k, self.ln_v = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.heads = heads

    def forward(self, queries: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Texts (I, T, E), tokens (I, L, E), mask (I, L) with 1 for real ones -> (I, T, E), not normalised."""
        hidden = None if mask is None else mask == 0
        pooled: Tensor = self.attn(
            self.ln_q(queries), self.ln_k(tokens), self.ln_v(tokens), key_padding_mask=hidden, need_weights=False
        )[0]
        return pooled


@torch.no_grad()
def conditioned_scores(
    pooling: ConditionedPooling,
    tokens: Tensor,
    texts: Tensor,
    mask: Tensor | None = None,
    cells: int = TILE_CELLS,
    norms: Tensor | None = None,
) -> Tensor:
    """Cosine of every text with every picture as that text sees it: what FLAIR ranks by.

    Args:
        pooling: as trained.
        tokens: (I, L, E).
        texts: (T, E), unit norm.
        mask: (I, L) with 1 for real tokens; None = all.
        cells: attention weights that are held at a time.
        norms: (T,) the lengths that texts had before they were made unit vectors, for a pooling that was trained with
            `queries: official` of `Flair`; None = "unit".

    Returns:
        (I, T). It takes I x T poolings: rank by vectors first and score the best few hundred (official: 128 or 256).
    """
    lengths = math.sqrt(texts.shape[1]) if norms is None else norms[:, None]
    queries = (texts * lengths).to(tokens.dtype)
    step = max(1, cells // (tokens.shape[1] * pooling.heads * len(texts)))
    parts = []
    for start in range(0, len(tokens), step):
        some = slice(start, start + step)
        seen = tokens[some]
        pooled = pooling(queries.expand(len(seen), -1, -1), seen, None if mask is None else mask[some])
        parts.append((F.normalize(pooled.float(), dim=-1) * texts.float()).sum(-1))
    return torch.cat(parts)
