"""Qwen2-VL checkpoints (Qwen/Qwen2-VL-*-Instruct) -> the keys of `zoo.nn.backbones.qwen2_vl.Qwen2VL`.

The hub files carry the names of transformers before 4.52 (`model.layers...`, `visual...`), which transformers 5 still
writes; a state dict taken from a model in memory has the newer ones (`model.language_model...`, `model.visual...`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.convert.transformers_folder import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

_LANGUAGE = "model.language_model."
_VISION = "model.visual."
_OURS = "backbone."


def qwen2_vl(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """State of the backbone. The language-model head is left out; names that are not understood stay, to be refused."""
    # a bundle of ours holds the whole encoder; what lies beside the backbone belongs to another model's pooling or head
    ours = {key.removeprefix(_OURS): value for key, value in checkpoint.tensors.items() if key.startswith(_OURS)}
    tensors = ours or checkpoint.tensors
    return {module_path(key): value for key, value in tensors.items() if not key.startswith("lm_head.")}


def module_path(name: str) -> str:
    """A parameter or module in Qwen2VLForConditionalGeneration, under its old or new name -> its name in `Qwen2VL`."""
    if name.startswith((_LANGUAGE, _VISION)):
        return name
    for old, new in (("visual.", _VISION), ("language_model.", _LANGUAGE), ("model.", _LANGUAGE)):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
