"""Recipes at the size of their papers: every key is one of the zoo, and the model has the published size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule

from zoo import catalog
from zoo.loading import build_model
from zoo.nn.conditioned_pooling import ConditionedPooling
from zoo.registry import import_parts

_BAYESCAP = (512 * 256 + 256) + (256 * 256 + 256) + (256 * 512 + 512) + 6 * (512 * 512 + 512)  # official code
_SQUARE = 1024 * 1024 + 1024  # a linear map of 1,024 values to as many


def _query_map(width: int) -> int:
    return 2 * width + (width * 512 + 512) + 2 * 512 + (512 * 512 + 512)


PUBLISHED = {
    "clip-paper": 151_277_313,  # open_clip's ViT-B-32
    "siglip-paper": 203_155_970,  # open_clip's ViT-B-16-SigLIP
    "lit-paper": 85_798_656 + 108_891_648 + 768 * 768 + 1,  # timm's ViT-B/16, BERT base without its pooler, head, scale
    "zerovl-paper": 85_798_656 + 108_891_648 + 2 * 768 * 512 + 1,
    "fusemix-paper": None,
    "align-paper": None,
    "flair-paper": 149_620_737 + 1,  # open_clip's ViT-B-16, and a bias; the attention pooling comes on top
    "clippo-paper": 93_000_000,  # as the paper rounds it
    # CLIP ViT-B/32 without a picture's projection, twice two generalised poolings, scale and bias; officially without
    # that of texts (512 x 512), and with a further block of each tower for the variances
    "pcmepp-paper": 151_277_313
    - 768 * 512
    - 1
    + 2 * (12_704 + 768 * 1024 + 1024)
    + 2 * (12_704 + 512 * 1024 + 1024)
    + 2,
    "pcme-paper": None,
    "prolip-paper": 197_923_586
    - 2 * 768,  # the official code's ViT-B-16-ProLIP, but for [UNC] in texts and its position
    "probvlm-paper": 151_277_313 - 1 + 2 * _BAYESCAP,  # CLIP ViT-B/32 without its scale, and the official adapters
    # DINOv2 large as timm has it (without its mask token), RoBERTa large without its pooler, and the official projectors
    "freeze-align-paper": 304_367_616 + 354_310_144 + 3 * (2 * 1024 + 3 * _SQUARE) + 2 * _SQUARE + 2 * 1024 + 1,
    "sail-paper": None,
    # CLIP ViT-B/32 without its class token and a picture's projection; query maps and codes as in the official code
    "fdt-paper": 151_277_313 - 2 * 768 - 768 * 512 + _query_map(768) + _query_map(512) + 16_384 * 512,
    # twice DeiT-B/16, the first six layers of BERT base and projections (officially with biases), and the temperature
    "albef-paper": 2 * (85_798_656 + 23_837_184 + 6 * 7_087_872 + 2 * 768 * 256) + 1,
    # ViT-B/16, BERT base, heads (officially of two layers), modality tokens, their layers, one layer, norm, scale
    "oneencoder-paper": 85_798_656 + 108_891_648 + 2 * 768 * 256 + 6 + 42_112 + 1_315_072 + 512 + 1,
    "vlap-paper": 151_277_313
    - 63_428_097
    - 768 * 512
    + 1_315_758_080
    + 768 * 2048,  # CLIP's pictures, OPT-1.3b, the map
    "geodesic-mixup-paper": 151_277_313,  # CLIP ViT-B/32
    # ResNet-152, linear map, bytes (officially 100 letters), GRUs, attention
    "vgse-paper": 58_143_808 + 2048 * 2048 + 257 * 20 + 6 * 1024 * (20 + 1024 + 2) + 2 * 2048 * 128 + 128 + 2048,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_size(name: str) -> None:
    recipe, _ = catalog.find(name)
    with torch.device("meta"):
        module = build_model(recipe.raw["model"], name)
        pooling = ConditionedPooling(512, 8)
    count = sum(p.numel() for p in module.parameters())
    assert count == recipe.card.parameters
    published = PUBLISHED[name]
    if name == "clippo-paper":
        assert count == pytest.approx(published, rel=0.01)
    elif published is not None:
        extra = sum(p.numel() for p in pooling.parameters()) if name == "flair-paper" else 0
        assert count == published + extra
    if recipe.raw["model"]["init_args"].get("freeze"):
        module.apply_freeze()
        assert not any(p.requires_grad for p in module.image.parameters())
        assert all(p.requires_grad for p in module.text.parameters())
    module.configure_optimizers()  # every pattern of `rates` matches something


@pytest.mark.parametrize("name", PUBLISHED)
def test_released_picture_towers_fit(name: str) -> None:
    """What timm releases has the tensors of the tower that asks for it; `timm` reads it without its classifier."""
    for settings in _pretrained_towers(catalog.find(name)[0].raw["model"]):
        told = timm.get_pretrained_cfg(settings["name"])
        assert told is not None
        classes = 0 if settings["pretrained"] == "timm" else told.num_classes
        with torch.device("meta"):
            tower = timm.create_model(settings["name"], num_classes=0, **settings.get("arguments", {})).state_dict()
            released = timm.create_model(settings["name"], num_classes=classes).state_dict()
        assert {key: value.shape for key, value in tower.items()} == {
            key: value.shape for key, value in released.items()
        }


def _pretrained_towers(node: Any) -> Iterator[dict[str, Any]]:
    """The settings of every TimmImage that reads timm's weights."""
    if isinstance(node, dict) and node.get("class_path") == "TimmImage":
        own = [node["init_args"]]
        yield from (one for one in own if str(one.get("pretrained", "")).startswith(("timm", "hf:timm/")))
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from _pretrained_towers(child)


@pytest.mark.parametrize("name", PUBLISHED)
def test_data_is_described_in_known_words(name: str) -> None:
    import_parts()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    recipe, _ = catalog.find(name)
    settings = parser.parse_object({"data": recipe.raw["data"]}).data.init_args
    assert settings.train[0].init_args.shards.startswith("data/") and settings.batch_size > 1
    broken = recipe.raw["data"] | {"init_args": recipe.raw["data"]["init_args"] | {"batchsize": 3}}
    with pytest.raises(Exception, match="batchsize"):
        parser.parse_object({"data": broken})
