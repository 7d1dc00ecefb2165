"""Qwen2-VL's names, old and new."""

from __future__ import annotations

import pytest
import torch

from zoo.convert.qwen2_vl import module_path, qwen2_vl
from zoo.convert.transformers_folder import Checkpoint

NAMES = {
    "model.embed_tokens.weight": "model.language_model.embed_tokens.weight",
    "model.layers.3.mlp.up_proj.weight": "model.language_model.layers.3.mlp.up_proj.weight",
    "model.norm.weight": "model.language_model.norm.weight",
    "visual.blocks.0.attn.qkv.bias": "model.visual.blocks.0.attn.qkv.bias",
    "language_model.norm.weight": "model.language_model.norm.weight",
    "model.language_model.norm.weight": "model.language_model.norm.weight",
    "model.visual.merger.mlp.0.weight": "model.visual.merger.mlp.0.weight",
}


@pytest.mark.parametrize("theirs", NAMES)
def test_every_name_in_use_leads_to_ours(theirs: str) -> None:
    assert module_path(theirs) == NAMES[theirs]


def test_head_is_left_out_and_what_is_not_understood_stays_to_be_refused() -> None:
    tensor = torch.zeros(1)
    state = qwen2_vl(Checkpoint({"lm_head.weight": tensor, "model.norm.weight": tensor, "score.weight": tensor}))
    assert set(state) == {"model.language_model.norm.weight", "score.weight"}
