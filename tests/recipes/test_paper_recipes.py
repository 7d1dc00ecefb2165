"""Recipes at the size of their papers: every key is one of the zoo, and the model has the published size."""

from __future__ import annotations

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule

from zoo import catalog
from zoo.loading import build_model
from zoo.nn.conditioned_pooling import ConditionedPooling
from zoo.registry import import_parts

_BAYESCAP = (512 * 256 + 256) + (256 * 256 + 256) + (256 * 512 + 512) + 6 * (512 * 512 + 512)  # official code
PUBLISHED = {
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
