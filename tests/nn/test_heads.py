"""Heads against their formulas."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from zoo.nn.heads import Projection, ResidualMlp


def test_residual_mlp_is_its_formula() -> None:
    torch.manual_seed(0)
    head = ResidualMlp(6, 4)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(3, 6)
    inner = x @ head.up.weight.T + head.up.bias
    scale, alpha = 1.0507009873554805, 1.6732632423543772  # SELU, arXiv:1706.02515
    selu = scale * torch.where(inner > 0, inner, alpha * (inner.exp() - 1))
    torch.testing.assert_close(head(x), x + selu @ head.down.weight.T + head.down.bias)


def test_residual_mlp_starts_as_identity_maps() -> None:
    """Wider inside than outside, as in ABC (3584 -> 4096 -> 3584): x + SELU(x)."""
    head, x = ResidualMlp(6, 8), torch.randn(3, 6)
    torch.testing.assert_close(head(x), x + F.selu(x))
    assert not head.up.bias.any() and not head.down.bias.any()


def test_projection_has_no_bias() -> None:
    head = Projection(6, 4)
    assert head(torch.zeros(2, 6)).eq(0).all() and head(torch.ones(2, 6)).shape == (2, 4)
