"""Official checkpoints of trained heads -> state of a `Projector`; the frozen encoders are not in them.

Sources: layer6ai-labs/fusemix (`vis_proj.*`, `text_proj.*`, `temp`), lezhang7/SAIL (`*_mapping_network.*`, `*_layer_norm.*`,
`logit_scale`, `logit_bias`, with or without a `state_dict` around them) and mayug/freeze-align (`local_vision_proj.*`,
`cls_vision_proj.*`, `local_text_proj.*`, `text_proj.*`, `temp`, beside the encoders).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from zoo.convert.temperature import kept
from zoo.convert.transformers_folder import Checkpoint
from zoo.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

_BIAS = "objective.bias"
_FUSEMIX = {"vis_proj.": "heads.image.", "text_proj.": "heads.text."}
_SAIL = {
    "vision_mapping_network.": "heads.image.",
    "text_mapping_network.": "heads.text.",
    "vision_layer_norm.": "heads.image.norm.",
    "text_layer_norm.": "heads.text.norm.",
}
_FREEZE_ALIGN = {
    f"{theirs}.{layer}": f"{ours}.{name}"
    for theirs, ours in (
        ("local_vision_proj", "heads.image.tokens"),
        ("cls_vision_proj", "heads.image.pooled"),
        ("local_text_proj", "heads.text.tokens"),
    )
    for layer, name in (("0.", "norm."), ("2.linear_projection.0.", "linear."), ("2.non_linear_projection.", "mlp."))
} | {
    "text_proj.projection.": "heads.text.projection.",
    "text_proj.fc.": "heads.text.fc.",
    "text_proj.layer_norm.": "heads.text.norm.",
}


def fusemix(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Heads of FuseMix for `InvertedBottleneck`, and the temperature, which is learned as itself."""
    state = _renamed(checkpoint, _FUSEMIX, ("temp",))
    if "temp" in checkpoint.tensors:
        state |= kept(checkpoint.tensors["temp"], "linear")
    return state


def sail(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Heads of SAIL for `StarMlp`; the logarithm of the scale, and the bias, for `SigLIP`."""
    state = _renamed(checkpoint, _SAIL, ("logit_scale", "logit_bias"))
    if "logit_scale" in checkpoint.tensors:
        state |= kept(checkpoint.tensors["logit_scale"], "log")
    if "logit_bias" in checkpoint.tensors:
        state[_BIAS] = checkpoint.tensors["logit_bias"].reshape(())
    return state


def freeze_align(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Heads of freeze-align for `TokensAndPooled` and `TokensThenMlp` (projections "patch" and "mlp"), and the temperature,
    which is learned as itself.
    """
    encoders = ("visual_encoder.", "text_encoder.")
    heads = {key: value for key, value in checkpoint.tensors.items() if not key.startswith(encoders)}
    state = _renamed(replace(checkpoint, tensors=heads), _FREEZE_ALIGN, ("temp",))
    if "temp" in heads:
        state |= kept(heads["temp"], "linear")
    return state


def _renamed(checkpoint: Checkpoint, prefixes: dict[str, str], others: tuple[str, ...]) -> dict[str, Tensor]:
    state = {}
    for key, value in checkpoint.tensors.items():
        prefix = next((one for one in prefixes if key.startswith(one)), None)
        if prefix is not None:
            state[prefixes[prefix] + key.removeprefix(prefix)] = value
        elif key not in others:
            raise WeightsError(
                f"{checkpoint.place} holds '{key}', which is none of {', '.join(prefixes)}; is it of another system?"
            )
    return state
