"""VLM2Vec on Qwen2-VL (arXiv:2410.05160, TIGER-Lab/VLM2Vec-Qwen2VL-*) -> the recipes `vlm2vec-qwen2vl-*`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.convert.peft_adapter import Adapter, attached, merged, read_adapter
from zoo.convert.qwen2_vl import module_path, qwen2_vl
from zoo.convert.transformers_folder import Checkpoint
from zoo.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

SCALE = 8.0  # alpha / r of the recipe: 64 / 8


def with_adapter(base: Checkpoint, adapter: Checkpoint) -> dict[str, Tensor]:
    """Qwen2-VL and a LoRA or DoRA adapter -> state of an encoder whose recipe has that adapter."""
    return _backbone(attached(qwen2_vl(base), _read(adapter), SCALE))


def without_adapter(base: Checkpoint, adapter: Checkpoint | None = None) -> dict[str, Tensor]:
    """Qwen2-VL with the adapter merged in, or a release that has it merged already -> state of a plain encoder."""
    state = qwen2_vl(base)
    return _backbone(state if adapter is None else merged(state, _read(adapter)))


def _read(checkpoint: Checkpoint) -> Adapter:
    adapter = read_adapter(checkpoint, module_path)
    if adapter.saved:
        raise WeightsError(f"{adapter.place} holds tensors that VLM2Vec does not train: {sorted(adapter.saved)[:3]}")
    return adapter


def _backbone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"backbone.{key}": value for key, value in state.items()}
