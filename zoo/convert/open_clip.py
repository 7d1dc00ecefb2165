"""Checkpoints of open_clip <-> state of a `DualEncoder` with `OpenClipImage` and `OpenClipText`.

open_clip has two layouts: in its class CLIP the text tower lies flat in the model (`token_embedding.weight`), in
CustomTextCLIP and CoCa under `text.`; pictures are always under `visual.`. Both become one here, since the towers are. The
learned scale and bias go to the objective (`InfoNCE` and `SigLIP` with `learn: log`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from zoo.convert.temperature import KIND, PARAMETER, kept, log_scale
from zoo.convert.transformers_folder import Checkpoint
from zoo.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

_TOWERS = {"image": "visual.", "text": "text."}
_BIAS = "objective.bias"
_FLAT = ("text_projection", "positional_embedding", "token_embedding.", "transformer.", "ln_final.")
# numbers that OpenAI stored beside the weights, a constant of transformers before 4.31, and CoCa's caption decoder
_LEFT_OUT = ("input_resolution", "context_length", "vocab_size", "text.transformer.embeddings.position_ids")
_DECODER = "text_decoder."


def gelu(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """A checkpoint that was trained with GELU -> our state. WeightsError: it is of another layout, or says QuickGELU."""
    return _ours(checkpoint, quick=False)


def quick_gelu(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """A checkpoint that was trained with QuickGELU -> our state. WeightsError: it is of another layout, or says GELU."""
    return _ours(checkpoint, quick=True)


def tower_state(checkpoint: Checkpoint, tower: str) -> dict[str, Tensor]:
    """The tensors of one tower, `image` or `text`, under the names that open_clip's module of it has."""
    prefix = _TOWERS[tower]
    tensors = _custom(checkpoint)
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def to_open_clip(
    state: Mapping[str, Tensor], *, custom_text: bool, learn: Literal["log", "linear", "no"] = "log"
) -> dict[str, Tensor]:
    """Our state -> open_clip's, to be loaded by it strictly.

    Args:
        state: of a `DualEncoder` with open_clip's towers and nothing after them. CoCa's caption decoder is not in it.
        custom_text: whether the configuration says `custom_text` (or has a text tower of transformers).
        learn: how the objective keeps its temperature (`InfoNCE`, `SigLIP`), for a state that does not say it.

    Raises:
        WeightsError: a tensor that open_clip has no place for, such as a head after a tower.
    """
    import torch

    found: dict[str, Tensor] = {}
    for key, value in state.items():
        tower, _, name = key.partition(".")
        if name == "quick_gelu" or key in (PARAMETER, KIND, _BIAS):
            continue
        if tower not in _TOWERS or not name.startswith("model."):
            raise WeightsError(
                f"open_clip has no place for '{key}': only its own towers, with no head, can be given back"
            )
        prefix = "" if tower == "text" and not custom_text else _TOWERS[tower]
        found[prefix + name.removeprefix("model.")] = value
    scale = log_scale(state, learn)
    found["logit_scale"] = torch.tensor(math.log(1 / 0.07)) if scale is None else scale  # where open_clip starts
    if _BIAS in state:
        found["logit_bias"] = state[_BIAS]
    return found


def _ours(checkpoint: Checkpoint, quick: bool) -> dict[str, Tensor]:
    import torch

    _check_activation(checkpoint, quick)
    tensors = _custom(checkpoint)
    state = {f"{tower}.quick_gelu": torch.tensor(quick) for tower in _TOWERS}
    for key, value in tensors.items():
        tower = next((tower for tower, prefix in _TOWERS.items() if key.startswith(prefix)), None)
        if tower is not None:
            state[f"{tower}.model.{key.removeprefix(_TOWERS[tower])}"] = value
        elif key not in ("logit_scale", "logit_bias"):
            state[key] = value  # not understood: stays, to be refused by name
    if "logit_scale" in tensors:  # older ones hold it with shape (1,)
        scale = tensors["logit_scale"].reshape(()).float()
        state |= kept(scale, "log")
        # as open_clip does where weights without a bias go on under the sigmoid loss
        state[_BIAS] = tensors.get("logit_bias", torch.zeros_like(scale)).reshape(()).float()
    return state


def _custom(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The checkpoint's tensors in the layout of CustomTextCLIP. Raises WeightsError if it is none of open_clip's."""
    tensors = {key.removeprefix("module."): value for key, value in checkpoint.tensors.items()}  # of DDP
    if any(key.startswith("vision_model.") for key in tensors):
        raise WeightsError(
            f"{checkpoint.place} is in the layout of transformers; open_clip's is wanted, which the same repository "
            "often has as open_clip_model.safetensors"
        )
    if not any(key.startswith("visual.") for key in tensors):
        raise WeightsError(
            f"{checkpoint.place} is no checkpoint of open_clip: it has nothing under 'visual.'; its keys begin "
            f"{sorted(tensors)[:3]}"
        )
    kept = {key: v for key, v in tensors.items() if key not in _LEFT_OUT and not key.startswith(_DECODER)}
    return {f"text.{key}" if key.startswith(_FLAT) else key: value for key, value in kept.items()}


def _check_activation(checkpoint: Checkpoint, quick: bool) -> None:
    """Where open_clip_config.json lies beside the weights, it knows."""
    model = checkpoint.config.get("model_cfg")
    said = model.get("quick_gelu") if isinstance(model, Mapping) else None
    if said is not None and bool(said) != quick:
        names = {True: "QuickGELU", False: "GELU"}
        raise WeightsError(
            f"{checkpoint.place} was trained with {names[bool(said)]} (its open_clip_config.json says so), but it is loaded "
            f"as weights of a model with {names[quick]}; load it under the name of a configuration or tag that has "
            f"{names[bool(said)]}"
        )
