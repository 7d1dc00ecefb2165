"""A tiny encoder with random weights in the official layout, shared by tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

WORDS = [
    "<|endoftext|>",
    "<|image_pad|>",
    "<unk>",
    "<|vision_start|>",
    "<|vision_end|>",
    "a",
    "cat",
    "dog",
    "red",
    "find",
]
TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
}
VISION: dict[str, Any] = {
    "depth": 2,
    "embed_dim": 32,
    "hidden_size": 32,
    "num_heads": 4,
    "mlp_ratio": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}


def write_tokenizer(folder: Path) -> Path:
    """A word-level tokenizer of `WORDS` and the 50 words w0..w49."""
    vocabulary = {word: i for i, word in enumerate([*WORDS, *(f"w{i}" for i in range(50))])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens([word for word in WORDS if word.startswith("<")])
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def vlm_encoder(folder: Path, seed: int = 0, template: Any = None, **arguments: Any) -> Any:
    """A VlmEncoder of about 40,000 parameters; `arguments` go to VlmEncoder, `backbone_*`/`processor_*` to its parts."""
    import torch

    from zoo.architectures.vlm_encoder import VlmEncoder
    from zoo.data.processors.vlm import VlmProcessor
    from zoo.data.processors.vlm_arrays import Pixels, Template
    from zoo.nn.backbones.qwen2_vl import Qwen2VL

    parts: dict[str, dict[str, Any]] = {"backbone": {}, "processor": {}}
    for key in list(arguments):
        owner, _, name = key.partition("_")
        if owner in parts and name:
            parts[owner][name] = arguments.pop(key)
    torch.manual_seed(seed)
    processor = VlmProcessor(
        str(write_tokenizer(folder)),
        template=template or Template(suffix="<|endoftext|>"),
        pixels=Pixels(patch_size=4, min_pixels=64, max_pixels=4096),
        **parts["processor"],
    )
    backbone = Qwen2VL(TEXT, VISION, image_token_id=1, **parts["backbone"])
    return VlmEncoder(backbone=backbone, processor=processor, **arguments)
