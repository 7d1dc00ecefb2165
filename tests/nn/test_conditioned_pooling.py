"""Pictures as a text sees them: against attention written out, and scores in tiles."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.nn.conditioned_pooling import ConditionedPooling, conditioned_scores

E, HEADS = 8, 2


def part() -> ConditionedPooling:
    torch.manual_seed(0)
    pooling = ConditionedPooling(E, HEADS)
    for parameter in pooling.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return pooling


def slow(pooling: ConditionedPooling, query: Tensor, tokens: Tensor) -> Tensor:
    """One text, one picture: heads one by one, with the key and value of zeros."""
    q, k, v = pooling.ln_q(query), pooling.ln_k(tokens), pooling.ln_v(tokens)
    maps, biases = pooling.attn.in_proj_weight.chunk(3), pooling.attn.in_proj_bias.chunk(3)
    q, k, v = (x @ w.T + b for x, w, b in zip((q, k, v), maps, biases, strict=True))
    heads = []
    for h in range(HEADS):
        part = slice(h * E // HEADS, (h + 1) * E // HEADS)
        scores = torch.cat([k[:, part] @ q[part], torch.zeros(1)]) / math.sqrt(E // HEADS)
        heads.append(scores.softmax(0)[:-1] @ v[:, part])
    return torch.cat(heads) @ pooling.attn.out_proj.weight.T + pooling.attn.out_proj.bias


def test_is_attention_with_a_way_out() -> None:
    pooling, texts, tokens = part(), torch.randn(3, 4, E), torch.randn(3, 5, E)
    mask = torch.tensor([[1] * 5, [1] * 3 + [0] * 2, [1] + [0] * 4])
    found = pooling(texts, tokens, mask)
    for i, length in enumerate((5, 3, 1)):
        for j in range(4):
            torch.testing.assert_close(
                found[i, j], slow(pooling, texts[i, j], tokens[i, :length]), atol=1e-5, rtol=1e-4
            )
    torch.testing.assert_close(pooling(texts, tokens)[0], found[0])


def test_scores_are_cosines_in_any_tiles() -> None:
    pooling, tokens = part(), torch.randn(6, 5, E)
    texts = F.normalize(torch.randn(4, E), dim=-1)
    whole = conditioned_scores(pooling, tokens, texts)
    for i in range(6):
        for j in range(4):
            seen = slow(pooling, texts[j] * math.sqrt(E), tokens[i])
            torch.testing.assert_close(whole[i, j], F.cosine_similarity(seen, texts[j], dim=0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(conditioned_scores(pooling, tokens, texts, cells=1), whole)
    mask = torch.ones(6, 5)
    mask[1, 3:] = 0
    masked = conditioned_scores(pooling, tokens, texts, mask, cells=90)
    torch.testing.assert_close(masked[0], whole[0])
    torch.testing.assert_close(masked[1], conditioned_scores(pooling, tokens[1:2, :3], texts)[0])
