"""Predicting the embedding of an absent modality. R rows, L tokens, D width, P prompts, H inner width, E width out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.latent_heads import StatesHead
from zoo.nn.towers import States


class ModalityPredictor(StatesHead):
    """What the encoder of the absent modality would have given, told from the tokens of the one that is there.

    Formula:
        A = softmax(Q K^T / sqrt(H)) over real tokens, Q the prompts (P, H), K = W_k LN(X), V = W_v LN(X), X the
            tokens (L, D)
        y = W_0 LN(x) + W_2 GELU(W_1 mean over prompts of A V), x the pooled state

    The prompts read the encoder's tokens, and no token ever sees a prompt, so the encoder stays what it is and its tokens
    may be cached (read-only prompts). Where tokens are not kept (`tokens` of the Projector), the pooled state is the only
    one.

    Trained by `VicReg` against the embedding of the other modality, whose own head is fixed (`Unchanged`) or learned. In a
    Projector a picture without text then counts by its predicted text embedding, a text by its own, and a row with both by
    their sum: late fusion that needs no modality to be there.

    After "Missing Modality Prediction for Unpaired Multimodal Learning" (arXiv:2407.12616), whose predictor is guided by
    read-only prompts; the attention of one layer and its widths are our reading, and so is that one side alone predicts.

    Args:
        width: D.
        dim: E, that of the other modality's embedding.
        hidden: H.
        prompts: P.
    """

    def __init__(self, width: int, dim: int, hidden: int = 256, prompts: int = 4) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.randn(prompts, hidden) * hidden**-0.5)
        self.norm = nn.LayerNorm(width)
        self.keys, self.values = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden)
        self.up, self.down = nn.Linear(hidden, hidden), nn.Linear(hidden, dim)
        self.direct = nn.Linear(width, dim, bias=False)

    def forward(self, states: States) -> Tensor:
        """States -> (R, E)."""
        tokens = self.norm(states.tokens)
        scores = self.keys(tokens) @ self.prompts.T / self.prompts.shape[1] ** 0.5  # (R, L, P)
        if states.mask is not None:
            scores = scores.masked_fill(states.mask.unsqueeze(-1) == 0, -torch.inf)
        read = (scores.softmax(1).transpose(1, 2) @ self.values(tokens)).mean(1)
        out: Tensor = self.direct(self.norm(states.pooled)) + self.down(F.gelu(self.up(read)))
        return out
