"""`open_clip:CONFIG[.TAG]`: recipes of all configurations and released weights that the installed open_clip lists."""

from __future__ import annotations

from typing import Any

from zoo.errors import RecipeError, UnknownNameError
from zoo.nn.backbones.open_clip import any_length, hub_name, read_config

PREFIX = "open_clip:"
_HUB_FILES = "open_clip_model.safetensors|open_clip_pytorch_model.bin"  # what open_clip asks a repository for, in order
_CLIP = {"tokenizer": "open_clip:tokenizer.json", "bos": "<start_of_text>", "eos": "<end_of_text>", "pad": "!"}
# bos, eos, pad of what open_clip reads with transformers' tokenizers, by the tokenizer's name ...
_BY_NAME = {
    "bert-base-uncased": ("[CLS]", "[SEP]", "[PAD]"),
    "roberta-base": ("<s>", "</s>", "<pad>"),
    "xlm-roberta-base": ("<s>", "</s>", "<pad>"),
    "xlm-roberta-large": ("<s>", "</s>", "<pad>"),
    "facebook/xlm-v-base": ("<s>", "</s>", "<pad>"),
    "google/mt5-base": ("", "</s>", "<pad>"),
    "google/mt5-xl": ("", "</s>", "<pad>"),
    "facebook/nllb-200-distilled-600M": ("eng_Latn", "</s>", "<pad>"),
    "facebook/nllb-200-distilled-1.3B": ("eng_Latn", "</s>", "<pad>"),
}
# ... and by the size of the vocabulary: SigLIP's (C4 and mC4, padded with the end token) and SigLIP 2's (Gemma's)
_BY_SIZE = {32000: ("", "</s>", "</s>"), 250000: ("", "</s>", "</s>"), 256000: ("", "<eos>", "<pad>")}
_OPENAI = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}


def names() -> list[str]:
    """All names with released weights, `open_clip:CONFIG.TAG`."""
    import open_clip

    return [f"{PREFIX}{config}.{tag}" for config, tag in open_clip.list_pretrained()]


def recipe(name: str) -> tuple[str, str | None, dict[str, Any]]:
    """`CONFIG` or `CONFIG.TAG` -> the entry's name without the tag, the tag, and `card` and `model` of a recipe.

    Without a tag: the configuration as it stands, for random weights or a checkpoint of one's own.

    Raises:
        UnknownNameError: no such configuration or tag; says which ones are near. RecipeError: no tower can take it.
    """
    import open_clip

    config, tag = _split(name, open_clip.list_models())
    tags = open_clip.list_pretrained_tags_by_model(config)
    if tag is not None and tag not in tags:
        there = ", ".join(tags) or "none"
        raise UnknownNameError(f"weights of '{PREFIX}{config}':", tag, tags, f"(there are {there})")
    published: dict[str, Any] = open_clip.get_pretrained_cfg(config, tag) if tag else {}
    settings = read_config(config)
    # open_clip builds what the configuration says, and only warns where the weights' entry says QuickGELU
    quick = bool(settings.get("quick_gelu", False) or published.get("quick_gelu", False))
    raw = {"card": _card(config, tag, tags, quick, published), "model": model(config, quick, published)}
    return f"{PREFIX}{config}", tag, raw


def model(config: str | dict[str, Any], quick_gelu: bool, published: dict[str, Any]) -> dict[str, Any]:
    """The `model:` section. `published`: open_clip's entry of the weights, for what they expect of pictures."""
    settings = read_config(config)
    towers = {"config": config, "quick_gelu": quick_gelu}
    return {
        "class_path": "DualEncoder",
        "init_args": {
            "processor": {"class_path": "DualProcessor", "init_args": _processor(settings, published)},
            "image": {"class_path": "OpenClipImage", "init_args": dict(towers)},
            "text": {"class_path": "OpenClipText", "init_args": dict(towers)},
            "objective": _objective(settings),
        },
    }


def _split(name: str, configs: list[str]) -> tuple[str, str | None]:
    """A configuration's name may hold dots itself, so the longest known one counts."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        config = ".".join(parts[:length])
        if config in configs:
            return config, ".".join(parts[length:]) or None
    raise UnknownNameError("configuration of open_clip", parts[0], configs, "(open_clip.list_models() has them all)")


def _card(config: str, tag: str | None, tags: list[str], quick: bool, published: dict[str, Any]) -> dict[str, Any]:
    card: dict[str, Any] = {
        "title": f"{config} of open_clip" + (f", weights {tag}" if tag else ""),
        "family": "dual-encoder",
        "license": "not stated: see the source of the weights",
        "modalities": ["text", "image"],
        "convert": _converter(quick),
    }
    if tag:
        card["weights"] = {tag: {"source": _source(config, tag, published), "convert": _converter(quick)}}
    elif tags:
        card["notes"] = "released weights: " + ", ".join(f"{PREFIX}{config}.{tag}" for tag in tags)
    return card


def _converter(quick: bool) -> str:
    return "open_clip.quick_gelu" if quick else "open_clip.gelu"


def _source(config: str, tag: str, published: dict[str, Any]) -> str:
    parts = published.get("hf_hub", "").split("/")
    if len(parts) < 2 or not all(parts[:2]):
        raise RecipeError(
            f"open_clip knows no hub repository for '{config}.{tag}'; fetch {published.get('url')} yourself and load it "
            f'with zoo.load("{PREFIX}{config}", weights="FILE")'
        )
    file = "/".join(parts[2:])
    if not file:
        return f"hf:{parts[0]}/{parts[1]}:{_HUB_FILES}"
    return f"hf:{parts[0]}/{parts[1]}:{file.rpartition('.')[0]}.safetensors|{file}"


def _processor(settings: dict[str, Any], published: dict[str, Any]) -> dict[str, Any]:
    size = settings["vision_cfg"].get("image_size", 224)
    sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) != 1:
        raise RecipeError(f"pictures of {size} pixels are not square, which is all that the zoo's processor makes")
    picture = {
        "size": sides.pop(),
        "resize": published.get("resize_mode", "shortest"),
        "interpolation": published.get("interpolation", "bicubic"),
        "mean": list(published.get("mean", _OPENAI["mean"])),
        "std": list(published.get("std", _OPENAI["std"])),
    }
    tokenizer, caption = _caption(settings["text_cfg"])
    return {"tokenizer": tokenizer, "picture": picture, "caption": caption}


def _caption(text: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Source of the tokenizer and arguments of `Caption`."""
    options = text.get("tokenizer_kwargs") or {}
    name = text.get("hf_tokenizer_name")
    caption: dict[str, Any] = {
        "max_length": text.get("context_length", 77),
        "padding": "longest" if any_length(text) else "max_length",
        "cleaning": options.get("clean", "whitespace" if name else "lower"),
    }
    if not name:
        return _CLIP["tokenizer"], caption | {key: _CLIP[key] for key in ("bos", "eos", "pad")}
    special = _BY_NAME.get(name) or _BY_SIZE.get(text.get("vocab_size", 0))
    if special is None:
        raise RecipeError(f"which special tokens the tokenizer '{name}' puts around a text is not known here")
    bos, eos, pad = special
    # CLIPA was trained with the end token overwritten by padding
    return f"hf:{hub_name(name)}:tokenizer.json", caption | {
        "bos": bos,
        "eos": pad if options.get("strip_sep_token") else eos,
        "pad": pad,
    }


def _objective(settings: dict[str, Any]) -> dict[str, Any]:
    """The loss that the learned scale (and bias) of the weights belongs to."""
    if settings.get("init_logit_bias") is not None:
        return {"class_path": "SigLIP", "init_args": {"bias": float(settings["init_logit_bias"])}}
    return {"class_path": "InfoNCE", "init_args": {"temperature": 0.07, "learn": "log", "symmetric": True}}
