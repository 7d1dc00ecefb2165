"""Towers of open_clip: its own modules, by the name of one of its configurations or from a configuration written out.

Their vectors are those of open_clip's `encode_image` and `encode_text`. What differs from its forward changes no value:
texts of causal towers need not be padded to the full length, tokens come along, and everything can be exported.

QuickGELU or GELU is a property of the trained weights that no tensor of open_clip's shows: under the wrong one they give
plausible, wrong vectors. Here it is stored with the weights (the buffer `quick_gelu`), and loading follows it.

Shapes: R rows, L tokens, W width of the towers' output (open_clip's embed_dim).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import RecipeError, UnknownNameError, WeightsError
from zoo.nn.towers import ImageTower, States, TextTower

Config = str | dict[str, Any]
_ORGANISATIONS = {
    "bert-base-uncased": "google-bert",
    "roberta-base": "FacebookAI",
    "xlm-roberta-base": "FacebookAI",
    "xlm-roberta-large": "FacebookAI",
}


def read_config(config: Config) -> dict[str, Any]:
    """A configuration of open_clip by name, or one written out (as `model_cfg` of open_clip_config.json), as a copy.

    Raises:
        UnknownNameError: open_clip has no configuration of that name. RecipeError: a part of it is missing.
    """
    import open_clip

    if isinstance(config, str):
        if config not in open_clip.list_models():
            raise UnknownNameError(
                "configuration of open_clip", config, open_clip.list_models(), "(open_clip.list_models() has them all)"
            )
        found: dict[str, Any] = open_clip.get_model_config(config)
    else:
        found = copy.deepcopy(config)
    for key in ("embed_dim", "vision_cfg", "text_cfg"):
        if key not in found:
            raise RecipeError(f"the configuration of open_clip has no '{key}'; it has {', '.join(found) or 'nothing'}")
    return found


def any_length(text: dict[str, Any]) -> bool:
    """Whether a text tower (its `text_cfg`) gives the same vector however far its texts are padded.

    So it is where no token sees what comes after it and the pooled one is found by its id. The others see the padding,
    which was always up to `context_length` when they were trained.
    """
    if "hf_model_name" in text:
        return True
    pooled_by_id = text.get("pool_type", "argmax") in ("argmax", "eos", "first")
    return pooled_by_id and not text.get("no_causal_mask", False) and not text.get("embed_cls", False)


class _OpenClipTower(nn.Module):
    """A tower of open_clip that knows its activation."""

    def __init__(
        self, model: nn.Module, part: dict[str, Any], quick_gelu: bool, stated: bool | None, pretrained: str | None
    ) -> None:
        super().__init__()
        if pretrained is not None and stated is None:
            raise RecipeError(
                f"{pretrained} does not say its activation: state `quick_gelu: true` or `false` beside it"
            )
        self.model = model
        self.pretrained = pretrained
        self.register_buffer("quick_gelu", torch.tensor(quick_gelu))
        self._stated = stated
        self._gelu_arguments = dict(part.get("act_kwargs") or {})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        stored = state_dict.get(f"{prefix}quick_gelu")
        if isinstance(stored, Tensor) and not stored.is_meta:
            self._follow(bool(stored))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _follow(self, quick: bool) -> None:
        """Take the activation that the weights were trained with. WeightsError if the recipe states the other one."""
        if self._stated not in (None, quick):
            raise WeightsError(
                f"these weights were trained with {'QuickGELU' if quick else 'GELU'}, but the recipe states "
                f"`quick_gelu: {str(self._stated).lower()}` for {type(self).__name__}; leave it out or turn it round"
            )
        from open_clip.transformer import QuickGELU

        for module in list(self.model.modules()):
            if isinstance(module, nn.Sequential) and "gelu" in module._modules:  # so open_clip names it in its MLPs
                module._modules["gelu"] = QuickGELU() if quick else nn.GELU(**self._gelu_arguments)

    def _load_pretrained(self, tower: str) -> None:
        if self.pretrained is None:
            return
        from zoo.convert.open_clip import tower_state
        from zoo.convert.transformers_folder import load_folder
        from zoo.weights import fetch_folder, load_strictly

        load_strictly(self.model, tower_state(load_folder(fetch_folder(self.pretrained)), tower), self.pretrained)


class OpenClipImage(_OpenClipTower, ImageTower):
    """The image tower of a configuration of open_clip, its projection included.

    Tokens are patches (or cells of the last map), without the class token, after the projection where it is linear. With
    `pooled_only` (see `PooledTower`) the last block of a vision transformer follows the class token alone.

    Args:
        config: a name as open_clip.list_models() gives it, or a configuration written out.
        quick_gelu: the activation, to be stated for weights that do not say it: None = what the weights say, and what the
            configuration says where there are none. Towers of timm have their own activation whatever it says.
        patch_dropout: share of patches that a training step leaves out (FLIP, arXiv:2212.00794).
        pretrained: where fitting starts from: `hf:ORG/REPO[@REVISION]:FILE`, a file or a folder, in open_clip's layout;
            then state `quick_gelu`, too. None = random weights.
    """

    def __init__(
        self,
        config: Config,
        quick_gelu: bool | None = None,
        patch_dropout: float | None = None,
        pretrained: str | None = None,
    ) -> None:
        settings = read_config(config)
        vision = settings["vision_cfg"] | {"timm_model_pretrained": False}
        if patch_dropout is not None:
            vision["patch_dropout"] = patch_dropout
        quick = bool(settings.get("quick_gelu", False)) if quick_gelu is None else quick_gelu
        from open_clip.model import CLIPVisionCfg, _build_vision_tower

        model = _built(lambda: _build_vision_tower(settings["embed_dim"], CLIPVisionCfg(**vision), quick), config)
        super().__init__(model, vision, quick, quick_gelu, pretrained)
        self.width: int = settings["embed_dim"]
        self.pooled_only = False

    def forward(self, pixels: Tensor) -> States:
        """Pixels (R, 3, H, W) -> States."""
        from open_clip.modified_resnet import ModifiedResNet
        from open_clip.timm_model import TimmModel

        if isinstance(self.model, TimmModel):
            return _of_timm(self.model, pixels)
        if isinstance(self.model, ModifiedResNet):
            return _of_resnet(self.model, pixels)
        if self.pooled_only and _class_token_suffices(self.model):
            return _of_class_token(self.model, pixels)
        return _of_vit(self.model, pixels)

    def load_pretrained(self) -> None:
        """Read the weights named by `pretrained`. Raises WeightsError when they can't be had or don't fit."""
        self._load_pretrained("image")


class OpenClipText(_OpenClipTower, TextTower):
    """The text tower of a configuration of open_clip, its projection included.

    Args:
        config: a name as open_clip.list_models() gives it, or a configuration written out. Towers of transformers
            (`hf_model_name`) are built from that model's config.json, taken from the hub or its cache.
        quick_gelu, pretrained: as in `OpenClipImage`; both towers have one activation.
    """

    def __init__(self, config: Config, quick_gelu: bool | None = None, pretrained: str | None = None) -> None:
        settings = read_config(config)
        text = settings["text_cfg"] | {"hf_model_pretrained": False}
        if "hf_model_name" in text:
            text |= {"hf_model_name": _folder_of_config(text["hf_model_name"]), "output_tokens": True}
        quick = bool(settings.get("quick_gelu", False)) if quick_gelu is None else quick_gelu
        from open_clip.model import CLIPTextCfg, _build_text_tower

        model = _built(lambda: _build_text_tower(settings["embed_dim"], CLIPTextCfg(**text), quick), config)
        super().__init__(model, text, quick, quick_gelu, pretrained)
        self.width: int = settings["embed_dim"]
        self.fixed_length = None if any_length(text) else int(text.get("context_length", 77))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> States:
        """Token ids and mask (R, L) -> States. RecipeError if the tower needs texts of one length, and gets another."""
        length = input_ids.shape[1]
        if not torch.compiler.is_compiling() and self.fixed_length not in (None, length):
            raise RecipeError(
                f"this text tower sees the padding, and needs {self.fixed_length} tokens, not {length}: set the "
                f"processor's caption: {{max_length: {self.fixed_length}, padding: max_length}}"
            )
        model: Any = self.model
        if not hasattr(model, "token_embedding"):  # a model of transformers, which masks the padding itself
            pooled, tokens = model(input_ids)
            return States(pooled, tokens, attention_mask[:, -tokens.shape[1] :])
        hidden, blocked = model._embeds(input_ids)
        if blocked is not None and blocked.ndim == 2:
            blocked = blocked[:length, :length]
        hidden = model.ln_final(model.transformer(hidden, attn_mask=blocked))
        pooled, tokens = _pooled(model, hidden, input_ids)
        return States(_projected(model, pooled), _projected(model, tokens), attention_mask)

    def load_pretrained(self) -> None:
        """Read the weights named by `pretrained`. Raises WeightsError when they can't be had or don't fit."""
        self._load_pretrained("text")


# ---- forward ---------------------------------------------------------------------------------------------------------


def _of_vit(model: Any, pixels: Tensor) -> States:
    pooled, tokens = model._pool(model.transformer(model._embeds(pixels)))
    if model.final_ln_after_pool and model.attn_pool is None:
        tokens = model.ln_post(tokens)
    return States(pooled @ model.proj, tokens @ model.proj)


def _class_token_suffices(model: Any) -> bool:
    """Whether a vision transformer pools by its class token, behind blocks as `_of_class_token` knows them."""
    from open_clip.transformer import ResidualAttentionBlock

    blocks = model.transformer
    plain = (
        type(blocks.resblocks[-1]) is ResidualAttentionBlock and blocks.batch_first and not blocks.grad_checkpointing
    )
    return plain and model.attn_pool is None and model.pool_type == "tok"


def _of_class_token(model: Any, pixels: Tensor) -> States:
    """The pooled state alone: what the last block makes of the patches is seen by nobody, so it is not computed."""
    *blocks, last = model.transformer.resblocks
    hidden = model._embeds(pixels)
    for block in blocks:
        hidden = block(hidden)
    seen = last.ln_1(hidden)
    first = hidden[:, :1] + last.ls_1(last.attention(seen[:, :1], seen, seen))
    first = first + last.ls_2(last.mlp(last.ln_2(first)))
    pooled = model.ln_post(first[:, 0]) @ model.proj
    return States(pooled, pooled[:, None])


def _of_resnet(model: Any, pixels: Tensor) -> States:
    cells = model.layer4(model.layer3(model.layer2(model.layer1(model.stem(pixels)))))
    return States(model.attnpool(cells), cells.flatten(2).transpose(1, 2))


def _of_timm(model: Any, pixels: Tensor) -> States:
    features = model.trunk.forward_features(pixels)
    pooled = model.head(model.trunk.forward_head(features))
    if features.ndim == 4:  # a map: (R, W, h, w), or (R, h, w, W) for models that work channels last
        width = model.trunk.num_features
        last = features.shape[-1] == width and features.shape[1] != width
        features = features.flatten(1, 2) if last else features.flatten(2).transpose(1, 2)
    return States(pooled, features if hasattr(model.head, "pool") else model.head(features))


def _pooled(model: Any, hidden: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised states (R, L, D) -> the pooled one of every row (R, D), and those of the text's own tokens."""
    if model.cls_emb is not None:  # CoCa appends its class token to the text
        return hidden[:, -1], hidden[:, :-1]
    if model.pool_type in ("first", "last"):
        return hidden[:, 0 if model.pool_type == "first" else -1], hidden
    # int32: ONNX runtimes have no argmax of int64
    marked = ids.to(torch.int32) if model.pool_type == "argmax" else (ids == model.eos_id).to(torch.int32)
    return hidden[torch.arange(len(hidden), device=hidden.device), marked.argmax(dim=-1)], hidden


def _projected(model: Any, states: Tensor) -> Tensor:
    projection = model.text_projection
    if projection is None:
        return states
    projected: Tensor = projection(states) if isinstance(projection, nn.Module) else states @ projection
    return projected


# ---- building --------------------------------------------------------------------------------------------------------


def _built(build: Callable[[], nn.Module], config: Config) -> nn.Module:
    try:
        return build()
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        name = f"'{config}'" if isinstance(config, str) else "this one"
        raise RecipeError(f"open_clip can't build a tower of the configuration {name}: {error}") from error


def hub_name(name: str) -> str:
    """A repository as the hub calls it today: the oldest were named without an organisation."""
    return name if "/" in name else f"{_ORGANISATIONS[name]}/{name}" if name in _ORGANISATIONS else f"unknown/{name}"


def _folder_of_config(name: str) -> str:
    """The folder with config.json of a model of transformers. WeightsError: it can't be had; says the ways out."""
    from zoo.weights import fetch_file

    return str(fetch_file(f"hf:{hub_name(name)}:config.json").parent)
