"""Heads on latents against their formulas (those of official checkpoints: tests/convert/test_projector_heads.py)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from zoo.nn.latent_heads import TokensAndPooled, TokensThenMlp, UniversalProjection, masked_mean
from zoo.nn.towers import States


def test_universal_projection_is_its_formula() -> None:
    """y = x + m + Layer(LN(x + m)); with one vector per item, attention is the value map."""
    torch.manual_seed(0)
    part = UniversalProjection(8, ["image", "text"], hidden=12).double().eval()
    x, layer = torch.randn(3, 8, dtype=torch.float64), part.layer
    m = part.modality["text"]
    for linear in (part.told[0], part.told[2]):
        m = (linear.weight @ m + linear.bias).clamp(min=0)
    m = F.layer_norm(part.told[4].weight @ m + part.told[4].bias, (8,))
    z = F.layer_norm(x + m, (8,))
    value = z @ layer.self_attn.in_proj_weight[16:].T + layer.self_attn.in_proj_bias[16:]
    z = F.layer_norm(z + value @ layer.self_attn.out_proj.weight.T + layer.self_attn.out_proj.bias, (8,))
    inner = (z @ layer.linear1.weight.T + layer.linear1.bias).clamp(min=0)
    z = F.layer_norm(z + inner @ layer.linear2.weight.T + layer.linear2.bias, (8,))
    torch.testing.assert_close(part(x, "text"), x + m + z)
    assert not torch.allclose(part(x, "text"), part(x, "image"))


def test_masked_mean_looks_at_real_tokens() -> None:
    tokens, mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [1, 0, 0]])
    torch.testing.assert_close(masked_mean(tokens, mask), torch.stack([tokens[0, :2].mean(0), tokens[1, 0]]))
    torch.testing.assert_close(masked_mean(tokens, None), tokens.mean(1))


@pytest.mark.parametrize("head", [TokensAndPooled(4, 2), TokensThenMlp(4, 2)])
def test_padding_changes_nothing(head: TokensAndPooled | TokensThenMlp) -> None:
    head.eval()
    tokens, mask = torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.int64)
    padded = States(tokens[:, 0], F.pad(tokens, (0, 0, 0, 2), value=9.0), F.pad(mask, (0, 2)))
    torch.testing.assert_close(head(padded), head(States(tokens[:, 0], tokens)))


def test_tokens_that_are_no_patches_are_left_out() -> None:
    head = TokensAndPooled(4, 2, prefix=1).eval()
    tokens = torch.randn(2, 5, 4)
    other = tokens.clone()
    other[:, 0] *= -1
    torch.testing.assert_close(head(States(tokens[:, 0], tokens)), head(States(tokens[:, 0], other)))
    assert not torch.allclose(head(States(tokens[:, 0], tokens)), head(States(other[:, 0], tokens)))
