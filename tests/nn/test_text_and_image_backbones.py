"""What the towers of transformers and timm say where a name is wrong or their weights can't be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoo.errors import RecipeError, UnknownNameError, WeightsError
from zoo.nn.backbones.timm_image import TimmImage
from zoo.nn.backbones.transformers_text import TransformersText


def test_an_unknown_kind_is_named_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown kind of transformers model 'rberta'; did you mean 'roberta'"):
        TransformersText("rberta")


def test_an_unknown_field_is_named_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"configuration of 'bert': 'hiden_size'; did you mean 'hidden_size'"):
        TransformersText("bert", {"hiden_size": 32})


def test_a_value_that_does_not_fit() -> None:
    with pytest.raises(RecipeError, match=r"the configuration of 'bert' does not take \{'num_hidden_layers': 'two'\}"):
        TransformersText("bert", {"num_hidden_layers": "two"})


def test_released_weights_that_can_not_be_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"timm's weights of 'test_vit' can't be fetched: .+") as caught:
        TimmImage("test_vit", pretrained="timm").load_pretrained()
    for way in ("hf download timm/test_vit", "pretrained: FOLDER", "pretrained: null"):
        assert way in str(caught.value)


def test_a_model_that_timm_releases_no_weights_for() -> None:
    with pytest.raises(UnknownNameError, match=r"released weights: 'vit_base_patch16_18x2_224'; did you mean"):
        TimmImage("vit_base_patch16_18x2_224", {"depth": 1}, pretrained="timm").load_pretrained()
