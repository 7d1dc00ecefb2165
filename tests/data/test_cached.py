"""The processor of cached latents gives what the encoders would give for the raw items."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from frozen_towers import FrozenTowers, ManyPairs, build
from pair_files import picture
from PIL import Image

from zoo.data.batches import SourceBatches
from zoo.data.latent_files import LatentRows
from zoo.data.latent_folder import EncoderKey, LatentFolder, list_name
from zoo.data.latents import Latents
from zoo.data.listing import list_parts
from zoo.data.loader import BatchLoader
from zoo.data.parts import as_keys, part_key
from zoo.data.processors.cached import CachedProcessor
from zoo.errors import SampleError
from zoo.latents import cached_processor, fill
from zoo.types import Batch, Inputs, Item, Sample

WORDS = ["a cat", "a dog that runs", "red", "a very long text " * 8]
PICTURES = [picture(n, (20 + n, 13)) for n in range(5)]


def everything() -> list[Item]:
    return [*(Item(text=text) for text in WORDS), *(Item(images=(image,)) for image in PICTURES)]


def cached(module: FrozenTowers, folder: Path) -> CachedProcessor:
    return cached_processor(module.processor, fill(module, list_parts("all", everything), folder=folder, show=False))


def mixed() -> list[Sample]:
    """Rows with a picture, a text, both, several pictures; a view of several items."""
    return [
        Sample("one", {"query": Item(WORDS[0], (PICTURES[0],)), "target": (Item(text=WORDS[3]), Item(text=WORDS[1]))}),
        Sample("two", {"query": Item(images=(PICTURES[1], PICTURES[2])), "target": (Item(text=WORDS[2]),)}),
        Sample("three", {"query": Item(text=WORDS[1]), "target": (Item(images=(PICTURES[0],)),)}),
    ]


def assert_equal(found: Inputs, expected: Inputs) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("tokens", [[], ["image"], ["image", "text"]])
def test_cached_views_equal_what_the_encoders_give(tokens: list[str], tmp_path: Path) -> None:
    module = build(tokens=tokens)
    processor = cached(module, tmp_path)
    found, raw = processor(mixed()), module.processor(mixed())
    for view, inputs in raw.views.items():
        expected = module.latents(inputs)
        if "text" in tokens:  # beyond the mask the encoder's tokens are of padding, the cache holds zeros
            expected["text_tokens"] = expected["text_tokens"] * expected["text_mask"].unsqueeze(-1)
        assert_equal(found.views[view], expected)
        torch.testing.assert_close(module.encode(found.views[view]).vector, module.encode(inputs).vector)
    assert_same_marks(found, raw)


def assert_same_marks(found: Batch, raw: Batch) -> None:
    for name in raw.views:
        assert torch.equal(found.owners[name], raw.owners[name]) and torch.equal(found.keys[name], raw.keys[name])
    assert found.ids == raw.ids and torch.equal(found.labels, raw.labels)


def test_split_cuts_latents_with_their_rows(tmp_path: Path) -> None:
    module = build(tokens=["image", "text"])
    inputs = cached(module, tmp_path)(mixed()).views["query"]
    parts = module.processor.split(inputs, 1)
    assert [len(part["rows"]) for part in parts] == [1, 1, 1]
    assert [part.get("image_rows", torch.zeros(0)).tolist() for part in parts] == [[0], [0, 0], []]
    assert "image_pooled" not in parts[2] and "text_pooled" not in parts[1]
    vectors = torch.cat([module.encode(part).vector for part in parts])
    torch.testing.assert_close(vectors, module.encode(inputs).vector)
    joined = torch.cat([part["image_tokens"] for part in parts[:2]])
    assert torch.equal(joined, inputs["image_tokens"])


def test_paths_bytes_and_images_are_found_as_they_were_listed(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(PICTURES[0])
    image = Image.new("RGB", (5, 5), "red")
    module = build()
    items = [Item(images=(file,)), Item(images=(image,))]
    processor = cached_processor(module.processor, fill(module, list_parts("all", lambda: items), folder=tmp_path))
    batch = processor([Sample("x", {"query": Item(images=(str(file), image.copy()))})])
    assert batch.views["query"]["image_pooled"].shape == (2, 6)


def test_places_are_looked_up(tmp_path: Path) -> None:
    places = [(48.1, 11.6), (-33.9, 151.2)]
    keys = as_keys(b"".join(part_key("place", place) for place in places))
    key = EncoderKey("place", {"dtype": "float32"})
    store = LatentFolder(tmp_path / key.name / list_name(keys), keys, key)
    store.write(0, LatentRows(keys, np.arange(6, dtype=np.float32).reshape(2, 3)))
    store.finish("places")
    processor = CachedProcessor(None, {"place": Latents([store.path])})
    inputs = processor.encode_view("query", [Item(place=places[1]), Item(place=places[0])], ["a", "b"])
    assert inputs["place_pooled"].tolist() == [[3, 4, 5], [0, 1, 2]] and inputs["place_rows"].tolist() == [0, 1]


def test_workers_and_pickles_open_the_files_again(tmp_path: Path) -> None:
    module = build()
    source = ManyPairs(12)
    filled = fill(module, list_parts("pairs", source.items), folder=tmp_path, show=False)
    processor = cached_processor(module.processor, filled)
    assert len(pickle.dumps(processor)) < 3_000_000  # the tokenizer of the inner processor, no latents
    keys = [[0, 1, 2], [3, 4], [5, 6, 7, 8]]
    here, there = (list(BatchLoader(SourceBatches(source, processor), keys, workers)) for workers in (0, 2))
    for one, other in zip(here, there, strict=True):
        assert_equal(one.views["query"], other.views["query"])
        assert_equal(one.views["target"], other.views["target"])


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_what_is_not_there_is_named_with_the_way_out(tmp_path: Path) -> None:
    processor = cached(build(), tmp_path)
    unseen = Sample("sample 7", {"query": Item(text="never listed")})
    known = Sample("sample 6", {"query": Item(text=WORDS[0])})
    with pytest.raises(
        SampleError, match=r"sample 7 \(query\): the text 'never listed' has no cached latent; the data"
    ):
        processor([known, unseen])
    with pytest.raises(SampleError, match=r"run `zoo cache` again"):
        processor([unseen])


def test_a_modality_without_latents_is_named(tmp_path: Path) -> None:
    module = build()
    texts = list_parts("all", lambda: [Item(text=WORDS[0])])
    processor = cached_processor(module.processor, fill(module, texts, folder=tmp_path, show=False))
    with pytest.raises(SampleError, match=r"x \(query\): no latents of any image are cached"):
        processor([Sample("x", {"query": Item(images=(PICTURES[0],))})])


def test_a_part_that_was_left_out_says_why(tmp_path: Path) -> None:
    module, source = build(), ManyPairs(6, bad=(2,))
    filled = fill(module, list_parts("pairs", source.items, skip=True), folder=tmp_path, show=False)
    processor = cached_processor(module.processor, filled)
    with pytest.raises(SampleError, match=r"pairs/2 \(query\): .* left out when the cache was filled: .*not a picture"):
        processor([source.draw(2, random.Random(0))])


def test_instructions_and_empty_items_are_refused_as_without_a_cache(tmp_path: Path) -> None:
    processor = cached(build(), tmp_path)
    with pytest.raises(SampleError, match="latents hold no instructions"):
        processor([Sample("x", {"query": Item(text=WORDS[0], instruction="find")})])
    with pytest.raises(SampleError, match="the text is empty"):
        processor([Sample("x", {"query": Item(text=" ")})])


def test_the_module_s_own_processor_answers_for_the_rest(tmp_path: Path) -> None:
    module = build()
    processor = cached(module, tmp_path / "latents")
    (tmp_path / "bundle").mkdir()
    assert processor.save(tmp_path / "bundle") == {"tokenizer": "bundle:tokenizer.json"}
    assert processor.spec() == module.processor.spec()
    assert processor.export(tmp_path / "bundle")["code"] == "dual_arrays.py"
