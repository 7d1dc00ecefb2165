"""VlmEncoder: the contract, padding sides, and equality with transformers' own forward."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import zoo.testing
from zoo.data.processors.vlm_arrays import Template
from zoo.errors import RecipeError, SampleError
from zoo.nn.adapters import Lora
from zoo.nn.heads import ResidualMlp
from zoo.nn.pooling import MeanPooling
from zoo.objectives.infonce import InfoNCE
from zoo.types import Item, Sample

LANGUAGE_LINEAR = r".*language_model\.layers.*_proj"


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


VARIANTS = {
    "vlm2vec": {},
    "left, flat": {"processor_padding_side": "left", "processor_position_mode": "flat"},
    "abc": {"backbone_attention": "bidirectional", "pooling": MeanPooling(), "head": ResidualMlp(32, 16)},
    "lora": {"adapter": Lora(4, 8, LANGUAGE_LINEAR), "chunk_size": 2},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_contract(variant: str, tmp_path: Path) -> None:
    module = tiny.vlm_encoder(tmp_path, objective=InfoNCE(0.1), **VARIANTS[variant])
    zoo.testing.check_architecture(module)


def hugging_face_states(module, item: Item) -> torch.Tensor:
    """Last hidden state of transformers' own Qwen2VLModel.forward for one item."""
    inputs = module.processor([Sample("x", {"query": item})]).views["query"]
    extra = {}
    if "patches" in inputs:
        real = inputs["patch_mask"].bool()
        sizes = [p[m].max(0).values + 1 for p, m in zip(inputs["patch_positions"], real, strict=True)]
        extra = {
            "pixel_values": inputs["patches"][real],
            "image_grid_thw": torch.stack([torch.tensor([1, *size.tolist()]) for size in sizes]),
            "mm_token_type_ids": (inputs["input_ids"] == module.backbone.image_token_id).int(),
        }
    model = module.backbone.model.eval()
    model.rope_deltas = None
    with torch.no_grad():
        return model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], **extra).last_hidden_state


@pytest.mark.parametrize(
    "item",
    [
        Item(text="a red cat w3 w4"),
        Item(images=(picture(20, 40),)),
        Item(text="a cat w1", images=(picture(48, 16),), instruction="find"),
        Item(text="dog", images=(picture(16, 16), picture(40, 24, 1))),
    ],
    ids=["text", "picture", "instruction", "two pictures"],
)
def test_equals_transformers(item: Item, tmp_path: Path) -> None:
    # transformers 5 refuses adjacent pictures, so each one is followed by a token here
    template = Template(image="<|image_pad|><|vision_end|>", suffix="<|endoftext|>")
    module = tiny.vlm_encoder(tmp_path, template=template)
    expected = torch.nn.functional.normalize(hugging_face_states(module, item)[:, -1], dim=-1)
    torch.testing.assert_close(zoo.testing.embed_items(module, [item]).vector, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["mrope", "flat"])
def test_padding_side_does_not_matter(mode: str, tmp_path: Path) -> None:
    items = [Item(text="a"), *zoo.testing.example_items()]
    vectors = [
        zoo.testing.embed_items(
            tiny.vlm_encoder(tmp_path, processor_padding_side=side, processor_position_mode=mode), items
        ).vector
        for side in ("left", "right")
    ]
    torch.testing.assert_close(*vectors, rtol=0, atol=1e-6)


def test_position_mode_matters_for_pictures_only(tmp_path: Path) -> None:
    items = [Item(text="a red dog"), Item(text="a dog", images=(picture(40, 40),))]
    mrope, flat = (
        zoo.testing.embed_items(tiny.vlm_encoder(tmp_path, processor_position_mode=mode), items).vector
        for mode in ("mrope", "flat")
    )
    torch.testing.assert_close(mrope[0], flat[0], rtol=0, atol=1e-6)
    assert (mrope[1] - flat[1]).abs().max() > 1e-4


def test_bidirectional_differs_from_causal(tmp_path: Path) -> None:
    items = [Item(text="a red dog w1 w2")]
    causal, both = (
        zoo.testing.embed_items(tiny.vlm_encoder(tmp_path, backbone_attention=a, pooling=MeanPooling()), items).vector
        for a in ("causal", "bidirectional")
    )
    assert (causal - both).abs().max() > 1e-4


def test_the_instruction_changes_the_vector(tmp_path: Path) -> None:
    module = tiny.vlm_encoder(tmp_path)
    plain, red, cat = zoo.testing.embed_items(
        module, [Item(text="dog"), Item(text="dog", instruction="red"), Item(text="dog", instruction="cat")]
    ).vector
    assert (plain - red).abs().max() > 1e-4
    assert (red - cat).abs().max() > 1e-4


def test_adapters_start_as_identity_and_freeze_the_rest(tmp_path: Path) -> None:
    items = zoo.testing.example_items()
    plain = zoo.testing.embed_items(tiny.vlm_encoder(tmp_path), items).vector
    module = tiny.vlm_encoder(tmp_path, adapter=Lora(4, 8, LANGUAGE_LINEAR))
    torch.testing.assert_close(zoo.testing.embed_items(module, items).vector, plain, rtol=0, atol=1e-6)
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)


def test_adapter_targets_that_match_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="match no layer"):
        tiny.vlm_encoder(tmp_path, adapter=Lora(4, 8, "nothing_like_this"))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (Item(text="  "), "sample 7.*text is empty"),
        (Item(), "sample 7.*nothing to embed"),
        (Item(instruction="find"), "sample 7.*an instruction but no text, image or place"),
        (Item(text="a <|image_pad|> b"), "sample 7.*image token"),
        (Item(images=(picture(900, 4),)), "sample 7.*aspect ratio"),
    ],
)
def test_unusable_items_are_named(item: Item, message: str, tmp_path: Path) -> None:
    module = tiny.vlm_encoder(tmp_path)
    good = Sample("sample 6", {"query": Item(text="a")})
    with pytest.raises(SampleError, match=message):
        module.processor([good, Sample("sample 7", {"query": item})])


def test_long_text_is_shortened_but_pictures_are_not(tmp_path: Path) -> None:
    module = tiny.vlm_encoder(tmp_path, processor_max_length=30)
    inputs = module.processor([Sample("x", {"query": Item(text="w1 " * 100, images=(picture(32, 32),))})]).views[
        "query"
    ]
    assert inputs["input_ids"].shape[1] == 30
    assert (inputs["input_ids"] == 1).sum() == 16
    assert inputs["input_ids"][0, -1] == 0, "the suffix is kept"
    assert module.processor.arrays.shortened == 1
    with pytest.raises(SampleError, match="max_length=30"):
        module.processor([Sample("x", {"query": Item(images=(picture(64, 64),))})])
