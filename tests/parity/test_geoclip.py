"""GeoCLIP's encoder of places gives the vectors of the official class, from the weights in the official package."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch

from zoo.nn.backbones.geoclip_place import GeoClipPlace

SPEC = importlib.util.find_spec("geoclip")
PLACES = torch.tensor([[48.2, 16.4], [-33.9, 151.2], [90.0, 180.0], [-90.0, -180.0], [0.0, 0.0], [64.1, -21.9]])


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """The official class with its own weights; what asks a model hub or pandas is not run."""
    if SPEC is None or SPEC.submodule_search_locations is None:
        pytest.skip("pip install --no-deps geoclip==1.3.0")
    folder = Path(next(iter(SPEC.submodule_search_locations)))
    for name, place in (("geoclip", folder), ("geoclip.model", folder / "model")):
        package = types.ModuleType(name)
        package.__path__, package.__spec__ = [str(place)], SPEC
        monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setitem(sys.modules, "geoclip.model.misc", types.SimpleNamespace(file_dir=str(folder / "model")))
    encoder: torch.nn.Module = importlib.import_module("geoclip.model.location_encoder").LocationEncoder()
    return encoder.eval()


def test_vectors(official: torch.nn.Module) -> None:
    ours = GeoClipPlace(pretrained="package:geoclip/model/weights/location_encoder_weights.pth").eval()
    ours.load_pretrained()
    with torch.no_grad():
        expected, found = official(PLACES), ours(PLACES).pooled
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert torch.nn.functional.cosine_similarity(found[:1], found[1:]).max() < 0.9
