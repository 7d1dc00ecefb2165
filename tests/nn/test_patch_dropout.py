"""Patch dropout (FLIP): patches are left out while training and never else."""

from __future__ import annotations

import pytest
import torch

from zoo.nn.backbones.timm_image import TimmImage

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "global_pool": "avg"}


def tower(dropout: float) -> TimmImage:
    torch.manual_seed(0)
    options = {**SMALL, "class_token": False, "fc_norm": False}
    return TimmImage("vit_tiny_patch16_224", options, patch_dropout=dropout)


def test_leaves_patches_out_while_training_only() -> None:
    part, pixels = tower(0.5), torch.randn(3, 3, 32, 32)
    part.train()
    first, second = part(pixels), part(pixels)
    assert first.tokens.shape == (3, 8, 24)  # of 16
    assert not torch.allclose(first.pooled, second.pooled)
    first.pooled.square().sum().backward()
    assert all(p.grad is not None for p in part.parameters())
    part.eval()
    assert part(pixels).tokens.shape == (3, 16, 24)
    assert torch.equal(part(pixels).pooled, part(pixels).pooled)


@pytest.mark.parametrize("mode", [True, False])
def test_weights_are_those_without(mode: bool) -> None:
    """The same names and, in evaluation, the same vectors: a trained tower drops into a model without patch dropout."""
    plain, part = tower(0.0).train(mode), tower(0.5).eval()
    part.load_state_dict(plain.state_dict())
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(part(pixels).pooled, plain(pixels).pooled)
