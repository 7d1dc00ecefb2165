"""Dual encoders: pixels alone, tokens, locked towers, and a slow copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from zoo import catalog
from zoo.architectures.dual_encoder import DualEncoder
from zoo.data.processors.dual import DualProcessor
from zoo.data.processors.dual_arrays import Caption, Picture, Rendering
from zoo.data.processors.rendered import RenderedProcessor
from zoo.errors import RecipeError
from zoo.export.folder import export_embedder
from zoo.loading import load
from zoo.nn.backbones.timm_image import TimmImage
from zoo.nn.heads import Projection
from zoo.nn.picture_mixing import PictureMixing
from zoo.nn.recurrent import BiRnnText
from zoo.objectives.infonce import InfoNCE
from zoo.objectives.objective import Objective
from zoo.objectives.soft_targets import MomentumDistillation
from zoo.testing import example_samples
from zoo.types import Item, Sample

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
WHITE, GREY, BLACK = (Image.new("RGB", (40, 40), colour) for colour in ("white", "grey", "black"))


def encoder(objective: Objective | None = None, **arguments: Any) -> DualEncoder:
    torch.manual_seed(0)
    return DualEncoder(
        image=TimmImage(
            "vit_tiny_patch16_224", {**SMALL, "global_pool": "avg", "class_token": False, "fc_norm": False}
        ),
        text=BiRnnText(257, 8, 6),
        image_head=Projection(24, 16),
        text_head=Projection(12, 16),
        processor=DualProcessor("packaged:bytes-tokenizer.json", Picture(size=32), Caption(pad="<pad>")),
        objective=objective or InfoNCE(),
        **arguments,
    )


def inputs(module: DualEncoder, *items: Item) -> dict[str, torch.Tensor]:
    return module.processor([Sample(str(i), {"query": item}) for i, item in enumerate(items)]).views["query"]


# ---- pixels alone ----------------------------------------------------------------------------------------------------


def pixels_alone() -> DualEncoder:
    return DualEncoder(
        image=TimmImage("vit_tiny_patch16_224", {**SMALL, "global_pool": "map"}),
        image_head=Projection(24, 16),
        processor=RenderedProcessor(Picture(size=32), Rendering(line=10)),
        objective=InfoNCE(),
    )


def test_a_text_is_the_picture_of_its_letters() -> None:
    module = pixels_alone().eval()
    lines, _ = module.processor.rendering.lines("a red dog", 32)
    drawn = module.processor.rendering.picture(lines, 32)
    batch = inputs(module, Item(text="a red dog"), Item(images=(drawn,)), Item(text="cat"), Item("a red dog", (WHITE,)))
    vector = module.encode(batch).vector
    torch.testing.assert_close(vector[0], vector[1])
    assert not torch.allclose(vector[0], vector[2], atol=1e-4)
    alone = module.encode(inputs(module, Item(images=(WHITE,)))).vector[0]
    torch.testing.assert_close(vector[3], nn.functional.normalize(vector[0] + alone, dim=0))
    assert [graph.name for graph in module.export_graphs()] == ["image"]


def test_clippo_has_well_under_half_of_clip_s_parameters() -> None:
    """About half at the size of the paper; in small, CLIP's word vectors weigh more."""
    count = {name: catalog.find(name)[0].card.parameters for name in ("clippo", "siglip")}
    assert count["clippo"] < 0.5 * count["siglip"]


def test_rendered_texts_need_no_torch(tmp_path: Path) -> None:
    """The exported folder draws the letters by itself: its own check compares golden items with torch."""
    exported = export_embedder(load("clippo", weights=False, device="cpu"), tmp_path / "clippo")
    assert exported.runtime and max(exported.runtime.values()) <= 1e-4
    assert not (exported.folder / "tokenizer.json").exists() and not (exported.folder / "text.onnx").exists()


def test_tokens_without_a_text_tower_are_refused() -> None:
    module = encoder()
    batch = inputs(module, Item(text="a"))
    module.text = None
    with pytest.raises(RecipeError, match="RenderedProcessor"):
        module.encode(batch)


# ---- tokens ----------------------------------------------------------------------------------------------------------


def test_tokens_where_rows_are_of_one_kind() -> None:
    module = encoder(tokens=True).eval()
    texts = module.encode(inputs(module, Item(text="a dog"), Item(text="cat")))
    assert texts.tokens.shape == (2, 5, 16) and texts.mask.tolist() == [[1] * 5, [1] * 3 + [0] * 2]
    pictures = module.encode(inputs(module, Item(images=(WHITE,))))
    assert pictures.tokens.shape == (1, 16, 16) and pictures.mask.all()
    mixed = module.encode(inputs(module, Item(text="a dog"), Item(images=(WHITE,)), Item("cat", (WHITE,))))
    assert mixed.tokens is None and mixed.mask is None and mixed.norm is None
    batch = inputs(module, Item(text="a dog"), Item(text="cat"))
    raw = module.text_head(module.text(batch["input_ids"], batch["attention_mask"]).pooled)
    torch.testing.assert_close(texts.vector * texts.norm[:, None], raw)
    assert encoder().eval().encode(batch).norm is None
    torch.testing.assert_close(mixed.vector[0], texts.vector[0])
    torch.testing.assert_close(mixed.vector[1], pictures.vector[0])


# ---- fitting ---------------------------------------------------------------------------------------------------------


def test_setup_reads_weights_of_our_parts_only() -> None:
    """timm's transformers have a method `load_pretrained` as well, with other arguments."""
    module = encoder()
    assert callable(module.image.model.load_pretrained)
    module.setup("fit")
    read = []
    module.text.pretrained, module.text.load_pretrained = "somewhere", lambda: read.append("text")
    module.setup("fit")
    assert read == ["text"]


# ---- a slow copy -----------------------------------------------------------------------------------------------------


def distilled() -> DualEncoder:
    return encoder(MomentumDistillation(16, queue_size=12), momentum=0.75)


def test_the_slow_copy_follows_and_is_not_trained() -> None:
    module = distilled().train()
    before = {name: p.clone() for name, p in module.slow.model.named_parameters()}
    with torch.no_grad():
        for name, p in module.named_parameters():
            if not name.startswith("slow."):
                p.add_(1.0)
    batch = module.processor(example_samples())
    module.begin_step(0)
    encoded = module._encoded(batch)
    after = dict(module.slow.model.named_parameters())
    assert len(before) > 10 and not any(name.startswith(("objective", "slow")) for name in before)
    for name, start in before.items():
        torch.testing.assert_close(after[name], start + 0.25)
    assert set(encoded.views) == {"query", "target", "query_momentum", "target_momentum"}
    assert set(batch.owners) == {"query", "target"}  # the batch itself stays as it is
    slow = encoded.views["query_momentum"].vector
    torch.testing.assert_close(slow, module.slow.model.encode(batch.views["query"]).vector)
    assert not slow.requires_grad and not torch.allclose(slow, encoded.views["query"].vector, atol=1e-4)
    trained = {id(p) for group in module.configure_optimizers().param_groups for p in group["params"]}
    assert trained and not trained & {id(p) for p in after.values()}


def test_the_slow_copy_is_chunked_as_the_model_is() -> None:
    whole = distilled().train()
    chunked = encoder(MomentumDistillation(16, queue_size=12), momentum=0.75, chunk_size=2).train()
    batch = whole.processor(example_samples())
    seen: list[int] = []
    chunked.slow.model.image.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    expected, found = (module._encoded(batch).views["target_momentum"].vector for module in (whole, chunked))
    assert seen and max(seen) <= 2
    torch.testing.assert_close(found, expected)


def test_the_slow_copy_is_saved_and_silent_in_evaluation() -> None:
    module, other = distilled(), distilled()
    with torch.no_grad():
        for p in module.slow.parameters():
            p.add_(0.5)
    other.load_state_dict(module.state_dict())
    for one, two in zip(module.slow.parameters(), other.slow.parameters(), strict=True):
        assert torch.equal(one, two)
    encoded = module.eval()._encoded(module.processor(example_samples()))
    assert set(encoded.views) == {"query", "target"}


def test_learns_with_a_slow_copy() -> None:
    module = distilled().train()
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    batch, losses = module.processor(example_samples()), []
    for _ in range(25):
        encoded = module._encoded(batch)
        loss = module.objective(encoded, encoded)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[5]


def test_mixed_pictures_are_for_training_alone() -> None:
    module = encoder(mixing=PictureMixing(share=1.0))
    samples = [
        Sample(str(i), {"query": Item("a"), "target": Item(images=(p,))}) for i, p in enumerate((WHITE, GREY, BLACK))
    ]
    batch = module.processor(samples)
    encoded = module.train()._encoded(batch)
    assert bool((encoded.mixed["query"].share == 1).all()) and encoded.mixed["target"].partner.tolist() == [2, 1, 0]
    plain = module.eval()._encoded(batch)
    assert plain.mixed == {}
    assert not torch.allclose(encoded.views["target"].vector[0], plain.views["target"].vector[0])
    torch.testing.assert_close(encoded.views["target"].vector[1], plain.views["target"].vector[1])  # its own partner
