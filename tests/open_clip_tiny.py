"""Configurations of open_clip in a tiny size, one for each kind of tower, and open_clip's own model of them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from zoo.loading import build_model
from zoo.nn.backbones import open_clip_recipes
from zoo.weights import load_strictly

_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
_VIT = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32}
_SEES_PADDING = {"width": 32, "heads": 2, "layers": 2, "no_causal_mask": True, "pool_type": "last", "vocab_size": 32000}


def _timm(name: str, pool: str, projection: str, size: int) -> dict[str, Any]:
    """pretrained: what open_clip's own configurations say, too; no test may fetch anything."""
    return {
        "image_size": size,
        "timm_model_name": name,
        "timm_model_pretrained": True,
        "timm_pool": pool,
        "timm_proj": projection,
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "clip": {"embed_dim": 48, "vision_cfg": _VIT, "text_cfg": _TEXT},
    "clip with quickgelu": {"embed_dim": 48, "quick_gelu": True, "vision_cfg": _VIT, "text_cfg": _TEXT},
    "clip with a resnet": {
        "embed_dim": 48,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16},
        "text_cfg": _TEXT,
    },
    "clip with a convnext of timm": {
        "embed_dim": 48,
        "vision_cfg": _timm("test_convnext", "", "linear", 64),
        "text_cfg": _TEXT,
    },
    "clipa": {
        "embed_dim": 48,
        "vision_cfg": _VIT | {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        "text_cfg": _SEES_PADDING
        | {
            "context_length": 12,
            "hf_tokenizer_name": "bert-base-uncased",
            "tokenizer_kwargs": {"strip_sep_token": True},
        },
    },
    "metaclip 2": {
        "embed_dim": 48,
        "vision_cfg": _VIT,
        "text_cfg": _TEXT | {"hf_tokenizer_name": "facebook/xlm-v-base", "pool_type": "eos", "eos_id": 2},
    },
    "siglip": {
        "embed_dim": 64,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": _timm("test_vit", "map", "none", 160),
        "text_cfg": _SEES_PADDING
        | {
            "context_length": 16,
            "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "proj_bias": True,
            "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"},
        },
    },
    "coca": {
        "embed_dim": 64,
        "custom_text": True,
        "vision_cfg": _VIT | {"attentional_pool": True, "attn_pooler_heads": 8, "output_tokens": True},
        "text_cfg": _TEXT | {"context_length": 20, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {
            "context_length": 20,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 1,
            "attn_pooler_heads": 2,
        },
    },
}


def official(config: dict[str, Any], seed: int = 0) -> Any:
    """open_clip's own model of a configuration; every parameter is random, those that start as 0 or 1 too."""
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP, CustomTextCLIP

    settings = copy.deepcopy(config)
    settings["vision_cfg"]["timm_model_pretrained"] = False
    custom = settings.pop("custom_text", False)
    kind: type[nn.Module] = CoCa if "multimodal_cfg" in settings else CustomTextCLIP if custom else CLIP
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(**settings).eval()
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def ours(config: dict[str, Any], quick: bool | None = None, state: dict[str, Tensor] | None = None) -> Any:
    """Our model of it, with the tensors of a converted checkpoint; `quick`: what the recipe states."""
    recipe = open_clip_recipes.model(config, bool(quick), {})
    for tower in ("image", "text"):
        recipe["init_args"][tower]["init_args"]["quick_gelu"] = quick
    module = build_model(recipe, "tiny").eval()
    if state is not None:
        expected = module.state_dict()
        load_strictly(module, {k: v for k, v in state.items() if k in expected or k[:10] != "objective."}, "open_clip")
    return module


def texts(config: dict[str, Any], seed: int = 1) -> tuple[Tensor, Tensor]:
    """Ids and mask of texts of several lengths, closed and padded to the full length as open_clip's tokenizer does."""
    text = config["text_cfg"]
    close = text.get("eos_id", text["vocab_size"] - 1)
    ids = torch.zeros(4, text["context_length"], dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    for row, length in zip(ids, (5, 1, 9, text["context_length"] - 1), strict=True):
        row[:length] = torch.randint(5, 1000, (length,), generator=generator)
        row[length] = close
    return ids, (ids != 0).long()


def pixels(config: dict[str, Any], seed: int = 2) -> Tensor:
    size = config["vision_cfg"]["image_size"]
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(seed))


def vectors(module: Any, pixels: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors of pictures and of texts, as `DualEncoder` makes them."""
    inputs = {"rows": torch.arange(len(pixels)), "pixels": pixels, "image_rows": torch.arange(len(pixels))}
    written = {
        "rows": torch.arange(len(ids)),
        "input_ids": ids,
        "attention_mask": mask,
        "text_rows": torch.arange(len(ids)),
    }
    with torch.no_grad():
        return module.encode(inputs).vector, module.encode(written).vector
