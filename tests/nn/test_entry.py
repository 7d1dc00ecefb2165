"""A frozen entry as encoder: its vectors bit by bit, read from its bundle, and another entry in its place refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pair_files import picture

from zoo.bundle import write_bundle
from zoo.errors import WeightsError
from zoo.loading import build_model, load
from zoo.types import Batch, Item, Sample

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
TEXT = {
    "vocab_size": 21727,
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
}
IMAGE_TOWER = {"class_path": "TimmImage", "init_args": {"name": "vit_tiny_patch16_224", "arguments": VIT}}
TEXT_TOWER = {"class_path": "TransformersText", "init_args": {"kind": "bert", "config": TEXT}}
HEADS = {
    "image": {"class_path": "Projection", "init_args": {"width": 16, "dim": 8}},
    "text": {"class_path": "Projection", "init_args": {"width": 12, "dim": 8}},
}
PROCESSOR = {
    "class_path": "DualProcessor",
    "init_args": {"tokenizer": "packaged:emoji-tokenizer.json", "picture": {"size": 32, "resize": "squash"}},
}


def recipe(model: dict[str, Any]) -> dict[str, Any]:
    return {"card": {"title": "t", "family": "dual-encoder", "license": "MIT"}, "model": model}


def write(model: dict[str, Any], folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    module = build_model(model, "entry")
    module.setup("predict")
    return write_bundle(module, recipe(model), folder)


def frozen_entry(folder: Path, seed: int = 0) -> Path:
    """A dual encoder's bundle."""
    arguments = {
        "processor": PROCESSOR,
        "image": IMAGE_TOWER,
        "text": TEXT_TOWER,
        "image_head": HEADS["image"],
        "text_head": HEADS["text"],
    }
    return write({"class_path": "DualEncoder", "init_args": arguments}, folder, seed)


def adapted(entry: Path, image: Any = IMAGE_TOWER, text: Any = TEXT_TOWER) -> dict[str, Any]:
    """The `model:` of adapters behind the entry of that bundle."""
    towers = {"image": ("EntryImage", image), "text": ("EntryText", text)}
    encoders = {
        name: {
            "class_path": kind,
            "init_args": {"tower": tower, "dim": 8, "head": HEADS[name], "pretrained": str(entry)},
        }
        for name, (kind, tower) in towers.items()
    }
    cap = {"class_path": "BayesCap", "init_args": {"dim": 8, "hidden": 5}}
    arguments = {"processor": PROCESSOR, "encoders": encoders, "heads": {"image": cap, "text": cap}}
    return {"class_path": "Projector", "init_args": {**arguments, "objective": {"class_path": "ProbVLM"}}}


def batch_of(module: Any) -> Batch:
    samples = [
        Sample(f"s{i}", {"query": Item(images=(picture(i, (20, 30)),)), "target": Item(text=f"thing {i}")})
        for i in range(5)
    ]
    batch: Batch = module.processor(samples)
    return batch


def test_given_is_the_vector_of_the_entry_before_and_after_training(tmp_path: Path) -> None:
    entry = load(f"path:{frozen_entry(tmp_path / 'entry')}").module.eval()
    module = build_model(adapted(tmp_path / "entry"), "adapted")
    module.setup("fit")
    optimizer = module.configure_optimizers()
    for _ in range(2):
        batch = batch_of(module)
        for name, inputs in batch.views.items():
            assert torch.equal(module.eval().encode(inputs).given, entry.encode(batch_of(entry).views[name]).vector)
        encoded = module.train()._encoded(batch)
        module.objective(encoded, encoded)["loss"].backward()
        optimizer.step()


def test_the_bundle_holds_the_adapters_alone_and_gives_the_same_vectors(tmp_path: Path) -> None:
    frozen_entry(tmp_path / "entry")
    model = adapted(tmp_path / "entry")
    folder = write(model, tmp_path / "adapted", seed=1)
    loaded = load(f"path:{folder}")
    assert all(key.startswith("heads.") for key in loaded_keys(folder))
    torch.manual_seed(1)
    module = build_model(model, "adapted").eval()
    module.setup("predict")
    for name, inputs in batch_of(module).views.items():
        assert torch.equal(module.encode(inputs).vector, loaded.module.eval().encode(inputs).vector), name


def loaded_keys(folder: Path) -> list[str]:
    from zoo.weights import read_state

    return list(read_state(folder))


def test_another_entry_in_its_place_is_refused(tmp_path: Path) -> None:
    frozen_entry(tmp_path / "entry")
    folder = write(adapted(tmp_path / "entry"), tmp_path / "adapted")
    shutil.rmtree(tmp_path / "entry")
    frozen_entry(tmp_path / "entry", seed=5)
    with pytest.raises(WeightsError, match=r"'encoders\.image' has other weights than those that the bundle"):
        load(f"path:{folder}")


def test_a_bundle_without_that_side_is_named(tmp_path: Path) -> None:
    model = {"class_path": "DualEncoder", "init_args": {"processor": PROCESSOR, "image": IMAGE_TOWER}}
    write(model, tmp_path / "pictures")
    module = build_model(adapted(tmp_path / "pictures"), "adapted")
    with pytest.raises(WeightsError, match="holds no tower or head for a text"):
        module.encoders["text"].load_pretrained()


def test_other_towers_than_the_entry_has_are_refused(tmp_path: Path) -> None:
    frozen_entry(tmp_path / "entry")
    wide = json.loads(json.dumps(TEXT_TOWER))
    wide["init_args"]["config"]["intermediate_size"] = 24
    module = build_model(adapted(tmp_path / "entry", text=wide), "adapted")
    with pytest.raises(WeightsError, match="of another shape"):
        module.encoders["text"].load_pretrained()


def test_an_entry_that_is_a_projector_reads_its_encoders_from_where_they_lie(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    towers = {"image": json.loads(json.dumps(IMAGE_TOWER)), "text": json.loads(json.dumps(TEXT_TOWER))}
    for name, tower in towers.items():
        torch.manual_seed(7)
        alone = build_model(
            {
                "class_path": "DualEncoder",
                "init_args": {"processor": PROCESSOR, "image": IMAGE_TOWER, "text": TEXT_TOWER},
            },
            "alone",
        )
        (tmp_path / name).mkdir()
        save_file(alone.get_submodule(name).model.state_dict(), tmp_path / name / "model.safetensors")
        tower["init_args"]["pretrained"] = str(tmp_path / name)
    model = {"class_path": "Projector", "init_args": {"processor": PROCESSOR, "encoders": towers, "heads": HEADS}}
    entry = load(f"path:{write(model, tmp_path / 'entry')}").module.eval()
    module = build_model(adapted(tmp_path / "entry", **towers), "adapted").eval()
    module.setup("predict")
    for inputs in batch_of(module).views.values():
        assert torch.equal(module.encode(inputs).given, entry.encode(inputs).vector)
