"""Qwen2-VL (arXiv:2409.12191) as an encoder: transformers' own modules and weights, run so that one forward serves
padding on either side, mixed picture sizes, text without pictures, and export.

Two things differ from transformers' forward, neither changes a value (tests compare both): pictures are a padded batch
with a mask instead of one packed sequence split by data-dependent lengths, and picture features are gathered into the
token sequence by index instead of scattered by mask. There is no language-model head.

Shapes: R rows, T tokens, I pictures, P patches, D width of the language model, V width of the vision tower.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import UnknownNameError
from zoo.nn.towers import VlmBackbone


class Qwen2VL(nn.Module, VlmBackbone):
    """Vision tower and language model of Qwen2-VL.

    Args:
        text: fields of transformers' Qwen2VLTextConfig; vision: of Qwen2VLVisionConfig.
        image_token_id: id of `<|image_pad|>` in the tokenizer used with it.
        attention: "causal" as released, or "bidirectional" (ABC, MoCa): every token sees every other; the vision tower
            is bidirectional in any case.
        pretrained: where fitting starts from: `hf:ORG/REPO[@REVISION]` or a folder in transformers' layout, read by
            `load_pretrained`. None = random weights.
    """

    def __init__(
        self,
        text: dict[str, Any],
        vision: dict[str, Any],
        image_token_id: int = 151655,
        attention: Literal["causal", "bidirectional"] = "causal",
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        from transformers.models.qwen2_vl.configuration_qwen2_vl import (
            Qwen2VLConfig,
            Qwen2VLTextConfig,
            Qwen2VLVisionConfig,
        )
        from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

        _check_fields("text", text, Qwen2VLTextConfig)
        _check_fields("vision", vision, Qwen2VLVisionConfig)
        config = Qwen2VLConfig(text_config=dict(text), vision_config=dict(vision), image_token_id=image_token_id)
        self.model = Qwen2VLModel._from_config(config, attn_implementation="sdpa")
        self.width: int = self.model.language_model.config.hidden_size
        self.image_token_id = image_token_id
        self.causal = attention == "causal"
        self.pretrained = pretrained

    def load_pretrained(self) -> None:
        """Read the weights named by `pretrained`, strictly. Raises WeightsError when they can't be had or don't fit."""
        if self.pretrained is None:
            return
        from zoo.convert.qwen2_vl import qwen2_vl
        from zoo.convert.transformers_folder import load_folder
        from zoo.nn.adapters import beneath_adapters
        from zoo.weights import fetch_folder, load_strictly

        state, kept = beneath_adapters(qwen2_vl(load_folder(fetch_folder(self.pretrained))), self)
        load_strictly(self, state, self.pretrained, kept)

    def image_features(self, patches: Tensor, patch_positions: Tensor, patch_mask: Tensor) -> Tensor:
        """Patches (I, P, C), their row and column (I, P, 2), real ones marked by 1 (I, P) -> (I, P / merge^2, D)."""
        visual = self.model.visual
        images, count = patches.shape[:2]
        weight = visual.patch_embed.proj.weight  # a convolution with kernel = stride is a product with its flat weight
        hidden = F.linear(patches.to(weight.dtype), weight.flatten(1))
        cos, sin = _axial_rotation(visual.rotary_pos_emb.inv_freq, patch_positions)
        mask = _additive(patch_mask[:, None, None, :] > 0, hidden.dtype)
        for block in visual.blocks:
            hidden = hidden + self._vision_attention(block.attn, block.norm1(hidden), cos, sin, mask)
            hidden = hidden + block.mlp(block.norm2(hidden))
        merged: Tensor = visual.merger(hidden.flatten(0, 1))
        # the merger turns every merge^2 neighbouring patches into one row
        return merged.reshape(images, count // visual.spatial_merge_size**2, -1)

    @staticmethod
    def _vision_attention(attention: Any, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        images, count, width = hidden.shape
        heads = attention.qkv(hidden).reshape(images, count, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return attention.proj(mixed.transpose(1, 2).reshape(images, count, width))  # type: ignore[no-any-return]

    def hidden_states(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, features: Tensor, image_index: Tensor
    ) -> Tensor:
        """Tokens (R, T), positions (R, 3, T), picture features (F, D), index into them (R, T) -> (R, T, D), after the
        final norm. Rows of padding hold no meaning.
        """
        language = self.model.language_model
        embedded = language.embed_tokens(input_ids)
        is_image = (input_ids == self.image_token_id).unsqueeze(-1)
        embedded = torch.where(is_image, features.to(embedded.dtype)[image_index], embedded)
        output = language(
            inputs_embeds=embedded,
            attention_mask={"full_attention": self._mask(attention_mask, embedded.dtype)},
            position_ids=position_ids.transpose(0, 1),
            use_cache=False,
        )
        return output.last_hidden_state  # type: ignore[no-any-return]

    def _mask(self, attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
        length = attention_mask.shape[1]
        position = torch.arange(length, device=attention_mask.device)
        seen = attention_mask[:, None, None, :] > 0
        if self.causal:
            seen = seen & (position[None, :] <= position[:, None])
        # every token sees itself, so that a row of padding is finite
        return _additive(seen | (position[None, :] == position[:, None]), dtype)


def _check_fields(section: str, given: dict[str, Any], config: type) -> None:
    """Transformers takes any key and goes on with its defaults, which are those of a 72B model."""
    known = {field.name for field in fields(config)}
    for name in given:
        if name not in known:
            raise UnknownNameError(f"field of {section} ({config.__name__})", name, known)


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    blocked = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=seen.device)
    return torch.where(seen, torch.zeros((), dtype=dtype, device=seen.device), blocked)


def _axial_rotation(inverse_frequency: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column (I, P, 2) -> cos and sin (I, 1, P, head width): first half of the angles from rows, then columns."""
    angles = (positions[..., None].float() * inverse_frequency.float()).flatten(-2)
    angles = torch.cat([angles, angles], dim=-1).unsqueeze(1)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)
