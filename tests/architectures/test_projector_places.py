"""A third modality: places go through a model as pictures and texts do, and are added to a space that stays as it is."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pair_files import picture

import zoo.testing
from zoo.architectures.projector import Projector
from zoo.data.processors.dual import DualProcessor
from zoo.data.processors.dual_arrays import Caption, Picture
from zoo.embedder import Embedder
from zoo.errors import RecipeError, SampleError, WeightsError
from zoo.export.folder import export_embedder
from zoo.nn.backbones.geoclip_place import GeoClipPlace
from zoo.nn.backbones.timm_image import TimmImage
from zoo.nn.backbones.transformers_text import TransformersText
from zoo.nn.heads import Projection
from zoo.nn.start import start_from
from zoo.objectives.infonce import InfoNCE
from zoo.types import Item, Sample

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "class_token": False}
TEXT = {"vocab_size": 21727, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES = {"intermediate_size": 16, "max_position_embeddings": 64}
VIENNA, SYDNEY, CUSCO = (48.2, 16.4), (-33.9, 151.2), (-13.5, -72.0)


def projector(*modalities: str, **training: Any) -> Projector:
    torch.manual_seed(0)
    encoders = {
        "image": TimmImage("vit_tiny_patch16_224", {**VIT, "global_pool": "avg"}),
        "text": TransformersText("bert", TEXT | SIZES),
        "place": GeoClipPlace(sigmas=[1.0]),
    }
    return Projector(
        {name: encoders[name] for name in modalities},
        {name: Projection(encoders[name].width, 8) for name in modalities},
        processor=DualProcessor(
            "packaged:emoji-tokenizer.json",
            Picture(size=32, resize="squash"),
            Caption(max_length=32),
            places="place" in modalities,
        ),
        objective=InfoNCE(0.1),
        **training,
    )


def encoded(module: Projector, *items: Item) -> torch.Tensor:
    return zoo.testing.embed_items(module, items).vector


def test_the_contract_holds_with_places(tmp_path: Path) -> None:
    module = projector("image", "text", "place")
    mixed = [Item("a", place=VIENNA), Item(place=SYDNEY), Item("b"), Item(images=(picture(1),), place=CUSCO)]
    zoo.testing.check_embedding(module, mixed)
    alone = torch.cat([encoded(module, item) for item in mixed])
    torch.testing.assert_close(encoded(module, *mixed), alone, atol=1e-5, rtol=0)
    parts = encoded(module, Item("a"), Item(place=VIENNA)).sum(0)
    torch.testing.assert_close(alone[0], parts / parts.norm())
    zoo.testing.check_export(module, tmp_path)


def test_the_runtime_without_torch_takes_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = projector("text", "place")
    embedder = Embedder(module, {"model": {}, "card": {}}, name="places", weights="of a test")
    exported = export_embedder(embedder, tmp_path / "export")
    assert {"place", "place and text"} <= set(exported.runtime) and max(exported.runtime.values()) <= 1e-4
    spec = importlib.util.spec_from_file_location("runtime_with_places", exported.folder / "embed.py")
    runtime = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, runtime)  # dataclasses look their module up
    spec.loader.exec_module(runtime)
    model = runtime.Embedder(exported.folder)
    things = [{"place": [48.2, 16.4]}, {"text": "a", "place": SYDNEY}, "a"]
    np.testing.assert_allclose(model.encode(things), embedder.encode(things), atol=1e-4)
    with pytest.raises(runtime.EmbedError, match=r"item 0: the place \(99.0, 0.0\) is none"):
        model.encode([{"place": [99, 0]}])
    with pytest.raises(SampleError, match="is none"):
        embedder.encode([{"place": [99, 0]}])


def test_an_added_modality_leaves_the_old_space_as_it_is() -> None:
    """OneEncoder's second step: old heads are frozen, the new one learns to hit them; old vectors keep every bit."""
    old = projector("image", "text")
    items = [Item("a cat"), Item(images=(picture(1),)), Item("two", (picture(2), picture(3)))]
    before = encoded(old, *items)
    module = projector("image", "text", "place", freeze=[r"heads\.(image|text)\."])
    with torch.no_grad():
        for parameter in module.heads.parameters():
            parameter.add_(1.0)
    start_from(module, old, "the old one", fresh=["encoders.place", "heads.place"])
    module.setup("fit")
    assert torch.equal(before, encoded(module, *items))
    optimizer = module.configure_optimizers()
    pairs = [
        Sample(str(i), {"query": Item(place=place), "target": Item(images=(picture(i),))})
        for i, place in enumerate((VIENNA, SYDNEY, CUSCO))
    ]
    batch, losses = module.processor(pairs), []
    for _ in range(10):
        both = module.train()._encoded(batch)
        losses.append(module.objective(both, both)["loss"])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert torch.equal(before, encoded(module, *items))


def test_parts_that_are_new_are_named() -> None:
    old, module = projector("image", "text"), projector("image", "text", "place")
    with pytest.raises(WeightsError, match=r"missing: .*encoders\.place"):
        start_from(module, old, "the old one")
    with pytest.raises(RecipeError, match=r"`start_fresh` names 'heads\.audio', but the model has no such part"):
        start_from(module, old, "the old one", fresh=["heads.audio"])
