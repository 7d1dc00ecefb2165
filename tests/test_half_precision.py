"""Entries in half precision: their vectors are close to those of fp32, of unit norm, and can be searched together."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
from PIL import Image

import zoo
from zoo import catalog
from zoo.cli import main
from zoo.errors import SampleError, ZooError
from zoo.nn.backbones.geoclip_place import GeoClipPlace
from zoo.vectors.files import read_vectors
from zoo.vectors.search import read_index
from zoo.weights import packaged

LEAST = {"bfloat16": 0.99, "float16": 0.9999}  # 8 and 11 bits of mantissa through some ten layers, and flat images
TINY = [recipe.name for recipe in catalog.recipes() if recipe.card.tiny]


def things(embedder: zoo.Embedder) -> list[Any]:
    """Texts, images and places, of each what the model takes."""
    noise = np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8)
    offered: list[Any] = [
        "a cat",
        "two red balloons in the sky",
        Image.fromarray(noise),
        Image.new("RGB", (64, 64), "red"),
    ]
    offered += [{"place": (48.8566, 2.3522)}, {"place": (-33.8688, 151.2093)}]
    taken = []
    for one in offered:
        try:
            embedder.encode(one)
        except SampleError:
            continue
        taken.append(one)
    return taken


def assert_close(exact: zoo.Embedder, half: zoo.Embedder, dtype: str) -> None:
    assert {p.dtype for p in half.module.parameters() if p.ndim > 1} <= {getattr(torch, dtype), torch.float32}
    assert str(half.dtype) == f"torch.{dtype}"
    items = things(exact)
    assert len(items) >= 2
    wanted, found = exact.encode(items), half.encode(items)
    assert found.dtype == np.float32
    assert np.abs(np.linalg.norm(found.astype(np.float64), axis=1) - 1).max() < 1e-6
    assert (wanted * found).sum(1).min() > LEAST[dtype]


def need_packages(name: str) -> None:
    """Skip an entry of which parts come in packages of the extra `offline` that are not installed here."""
    for module in re.findall(r"package:(\w+)", json.dumps(catalog.find(name)[0].raw["model"])):
        pytest.importorskip(module, reason="needs embedding-zoo[offline]")


@pytest.mark.parametrize("dtype", LEAST)
@pytest.mark.parametrize("name", packaged())
def test_packaged_entries(name: str, dtype: str) -> None:
    need_packages(name)
    exact, half = zoo.load(name), zoo.load(name, dtype=dtype)
    assert_close(exact, half, dtype)
    assert half.fingerprint() == exact.fingerprint()


@pytest.mark.slow  # a few seconds each
@pytest.mark.parametrize(
    "name", [*(name for name in TINY if name not in packaged()), "places-emoji", "oneencoder-places"]
)
def test_small_entries(name: str) -> None:
    need_packages(name)
    exact = zoo.load(name, weights=False)
    for dtype in LEAST:
        half = zoo.load(name, weights=False, dtype=dtype)
        half.module.load_state_dict(exact.module.state_dict())
        assert_close(exact, half, dtype)


def test_parts_that_start_from_a_decomposition_are_built() -> None:
    assert zoo.load("vgse", weights=False, dtype="float16").dtype == torch.float16


@pytest.mark.parametrize("dtype", LEAST)
def test_places_keep_their_digits(dtype: str) -> None:
    """Two places 11 m apart: degrees or frequencies in half precision would make them one, or far apart."""
    torch.manual_seed(0)
    exact = GeoClipPlace()
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        half = GeoClipPlace()
    finally:
        torch.set_default_dtype(before)
    half.load_state_dict(exact.state_dict())
    places = torch.tensor([[48.8566, 2.3522], [48.8567, 2.3522], [-33.8688, 151.2093]])
    wanted, found = (model(places).pooled.detach().float() for model in (exact, half))
    assert torch.nn.functional.cosine_similarity(wanted, found).min() > LEAST[dtype]
    step = (wanted[0] - wanted[1]).norm()
    assert (found[0] - found[1]).norm() > 0 and step > 0


# ---- identity --------------------------------------------------------------------------------------------------------


@pytest.fixture
def released(tmp_path: Path) -> Iterator[Path]:
    """A bundle of the toy whose weights lose by rounding."""
    yield zoo.bundle.write_bundle(toy.build(tmp_path), toy.recipe(tmp_path), tmp_path / "released")


def test_fingerprints_are_those_of_the_weights_as_they_were_read(released: Path) -> None:
    exact = zoo.load(f"path:{released}")
    for dtype in LEAST:
        half = zoo.load(f"path:{released}", dtype=dtype)
        assert not torch.equal(half.module.linear.weight.float(), exact.module.linear.weight)
        assert half.fingerprint() == exact.fingerprint()
    other = zoo.bundle.write_bundle(
        toy.build(released.parent, seed=1), toy.recipe(released.parent), released.parent / "o"
    )
    assert zoo.load(f"path:{other}", dtype="bfloat16").fingerprint() != exact.fingerprint()


def test_vectors_of_all_precisions_are_searched_together(
    tmp_path: Path, released: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.jsonl").write_text('{"id": "1", "text": "red cat"}\n{"id": "2", "text": "blue dog"}\n', "utf-8")
    model = f"path:{released}"
    for made in ("float32", "bfloat16"):
        out = str(tmp_path / f"{made}.parquet")
        assert main(["embed", model, str(tmp_path / "texts.jsonl"), "--out", out, "--dtype", made]) == 0
        assert read_vectors(Path(out)).facts["settings"]["dtype"] == made
        for asked in ("float32", "bfloat16", "float16"):
            capsys.readouterr()
            assert main(["search", model, "blue dog", "--in", out, "--dtype", asked]) == 0
            told = capsys.readouterr().out
            assert told.index("blue dog") < told.index("red cat")  # the right row first
    with pytest.raises(ZooError, match="vectors of released"):
        read_index(tmp_path / "float32.parquet", zoo.load("clip-emoji", dtype="bfloat16"))


def test_a_cached_index_is_that_of_its_precision(
    tmp_path: Path, released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "images" / "a.png")
    for dtype in ("float32", "bfloat16", "float32"):
        assert main(["search", f"path:{released}", "red", "--in", str(tmp_path / "images"), "--dtype", dtype]) == 0
    assert len(list((tmp_path / "cache" / "indexes").glob("*.parquet"))) == 2
