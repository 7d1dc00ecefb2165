"""ABC (arXiv:2503.00329, TIGER-Lab/ABC-Qwen2VL-*) -> the recipes `abc-qwen2vl-pretrain` and `abc-qwen2vl`.

Stage 1 is an adapter on Qwen2-VL-7B-Instruct, language model and vision tower, saved with the head and the temperature.
Stage 2 is a second adapter, on the language model alone, over the weights with the first one merged in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.convert.peft_adapter import Adapter, attached, merged, read_adapter
from zoo.convert.qwen2_vl import module_path, qwen2_vl
from zoo.convert.temperature import PARAMETER, kept
from zoo.convert.transformers_folder import Checkpoint
from zoo.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

SCALE = 2.0  # alpha / r of both recipes, and of the official training code (alpha = 2 r)
_SAVED = {  # names of the official model class -> ours
    "mlp_head.linear_layer1.weight": "head.up.weight",
    "mlp_head.linear_layer1.bias": "head.up.bias",
    "mlp_head.linear_layer2.weight": "head.down.weight",
    "mlp_head.linear_layer2.bias": "head.down.bias",
    "temperature.temp": PARAMETER,
}


def pretrain(base: Checkpoint, stage_1: Checkpoint) -> dict[str, Tensor]:
    """Qwen2-VL and the stage 1 adapter -> state of `abc-qwen2vl-pretrain`. Raises WeightsError if they do not fit."""
    adapter = read_adapter(stage_1, module_path)
    return _backbone(attached(qwen2_vl(base), adapter, SCALE)) | _trained_in_full(adapter)


def instruct(base: Checkpoint, stage_1: Checkpoint, stage_2: Checkpoint) -> dict[str, Tensor]:
    """Qwen2-VL and both adapters -> state of `abc-qwen2vl`. Raises WeightsError if they do not fit."""
    first, second = read_adapter(stage_1, module_path), read_adapter(stage_2, module_path)
    if second.saved:
        raise WeightsError(f"{second.place} holds tensors that stage 2 does not train: {sorted(second.saved)[:3]}")
    backbone = attached(merged(qwen2_vl(base), first), second, SCALE)
    return _backbone(backbone) | _trained_in_full(first)


def _backbone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"backbone.{key}": value for key, value in state.items()}


def _trained_in_full(adapter: Adapter) -> dict[str, Tensor]:
    missing = sorted(set(_SAVED) - set(adapter.saved))
    unexpected = sorted(set(adapter.saved) - set(_SAVED))
    if missing or unexpected:
        what = f"lacks {missing[:3]}" if missing else f"holds {unexpected[:3]}, which ABC does not have"
        raise WeightsError(f"{adapter.place} {what}; the adapter of ABC's stage 1 brings {sorted(_SAVED)}")
    state = {ours: adapter.saved[theirs] for theirs, ours in _SAVED.items()}
    return state | kept(state[PARAMETER], "linear")
