"""Masked views hide what they say, drawn by the global generator alone; a tower sees what is left at its own place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.data.processors.dual import narrow
from zoo.errors import RecipeError
from zoo.nn.backbones.timm_image import TimmImage
from zoo.nn.masked_views import MaskedViews
from zoo.types import Batch, Inputs

ROWS, PATCHES, UNKNOWN, OPEN, CLOSE = 16, 20, 2, 1, 0
LENGTHS = torch.arange(ROWS) % 12  # words of each text, besides those that open and close it


def texts() -> Inputs:
    """Words have the ids 10, 11, ...; padding is what closes a text, as in the recipes."""
    place, owner = torch.arange(16), torch.arange(ROWS)
    ids = torch.where(place <= LENGTHS[:, None], place + 10, CLOSE)
    ids[:, 0] = OPEN
    mask = (place < LENGTHS[:, None] + 2).long()
    return {"rows": owner, "text_rows": owner, "input_ids": ids, "attention_mask": mask}


def batch() -> Batch:
    owner = torch.arange(ROWS)
    pictures: Inputs = {"rows": owner, "image_rows": owner, "pixels": torch.randn(ROWS, 3, 8, 10)}
    return Batch(
        views={"query": pictures, "target": texts()},
        owners={"query": owner, "target": owner + 100},
        keys={"query": owner, "target": owner + 50},
        labels=torch.full((ROWS,), -1),
        weights=torch.ones(ROWS),
        ids=[str(i) for i in range(ROWS)],
        sources=[""] * ROWS,
    )


def make(**settings: Any) -> MaskedViews:
    return MaskedViews(**{"patches": 0.75, "words": 0.75, "token": UNKNOWN, "spared": (OPEN, CLOSE)} | settings)


def split(inputs: Inputs, size: int) -> list[Inputs]:
    return [narrow(inputs, start, min(start + size, ROWS)) for start in range(0, ROWS, size)]


def masked(masking: MaskedViews, seed: int = 0) -> Batch:
    torch.manual_seed(seed)
    return masking(batch(), split, lambda pixels: PATCHES)


def hidden(found: Batch) -> Tensor:
    return found.views["target_masked"]["hidden_words"] >= 0


def test_exact_hides_the_share_of_each_text_and_picture() -> None:
    found = masked(make())
    kept = found.views["query_masked"]["kept_patches"]
    assert kept.shape == (ROWS, 5) and int(kept.min()) >= 0 and int(kept.max()) < PATCHES
    assert bool((kept.diff(dim=1) > 0).all()) and len(kept.unique(dim=0)) > ROWS // 2
    counts = hidden(found).sum(1)
    expected = [0 if n == 0 else max(1, round(0.75 * n)) for n in LENGTHS.tolist()]
    assert counts.tolist() == expected


@pytest.mark.parametrize("form", ["exact", "official"])
def test_hidden_words_are_replaced_and_known(form: str) -> None:
    found, plain = masked(make(form=form)), texts()
    ids, words = (found.views["target_masked"][name] for name in ("input_ids", "hidden_words"))
    here = words >= 0
    assert bool(here.any()) and bool((ids[here] == UNKNOWN).all())
    assert torch.equal(torch.where(here, words, ids), plain["input_ids"])
    assert not bool(here[(plain["input_ids"] < 10) | (plain["attention_mask"] == 0)].any())
    assert torch.equal(found.views["target_masked"]["attention_mask"], plain["attention_mask"])


def test_official_keeps_the_share_of_the_patches_and_throws_coins_for_words() -> None:
    kept = masked(make(form="official")).views["query_masked"]["kept_patches"]
    assert kept.shape == (ROWS, 15) and len(kept.unique(dim=0)) == 1  # int(20 * 0.75) are KEPT, the same of all
    shares = [hidden(masked(make(form="official"), seed)).sum() / LENGTHS.sum() for seed in range(40)]
    assert float(torch.stack(shares).mean()) == pytest.approx(0.75, abs=0.02) and len(set(map(float, shares))) > 5


def test_rows_and_the_batch_that_was_given() -> None:
    given = batch()
    torch.manual_seed(0)
    found = make(share=0.125)(given, split, lambda pixels: PATCHES)
    assert set(given.views) == {"query", "target"} == set(given.owners)
    assert set(found.views) == {"query", "target", "query_masked", "target_masked"}
    for name in ("query", "target"):
        assert found.views[name] is given.views[name]
        assert torch.equal(found.owners[f"{name}_masked"], given.owners[name][[0, 8]])  # int(16 * 0.125)
        assert torch.equal(found.keys[f"{name}_masked"], given.keys[name][[0, 8]])
        assert found.views[f"{name}_masked"]["rows"].tolist() == [0, 1]
    assert torch.equal(found.views["query_masked"]["pixels"], given.views["query"]["pixels"][[0, 8]])
    ids, words = (found.views["target_masked"][key] for key in ("input_ids", "hidden_words"))
    assert torch.equal(torch.where(words >= 0, words, ids), given.views["target"]["input_ids"][[0, 8]])
    assert len(make(share=0.01)(given, split, lambda pixels: PATCHES).owners["query_masked"]) == 1


@pytest.mark.parametrize("share", [0.25, 0.5, 0.7, 1.0])
def test_masked_rows_come_from_all_sources_of_a_batch(share: float) -> None:
    """A batch is made of groups of one source each, one after the other: here four of four rows."""
    found = make(share=share)(batch(), split, lambda pixels: PATCHES)
    groups = (found.owners["query_masked"] // 4).tolist()
    assert len(groups) == int(16 * share) and max(map(groups.count, range(4))) - min(map(groups.count, range(4))) <= 1


def test_rows_of_several_parts_keep_their_parts() -> None:
    given = batch()
    rows = torch.arange(ROWS).repeat_interleave(2)
    pictures = {"rows": torch.arange(ROWS), "image_rows": rows, "pixels": torch.arange(2.0 * ROWS)[:, None, None, None]}
    given.views["query"] = pictures | {name: values[1::2] for name, values in texts().items() if name != "rows"}
    found = make(share=0.25, words=0.0, token=None)(given, split, lambda pixels: PATCHES).views["query_masked"]
    assert found["image_rows"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert found["pixels"].flatten().tolist() == [0, 1, 8, 9, 16, 17, 24, 25]
    assert "text_rows" not in found  # only odd rows have a text


@pytest.mark.parametrize("form", ["exact", "official"])
def test_the_same_seed_hides_alike_and_chunks_take_their_part(form: str) -> None:
    one, two, other = masked(make(form=form)), masked(make(form=form)), masked(make(form=form), seed=1)
    for name, key in (("query_masked", "kept_patches"), ("target_masked", "hidden_words")):
        assert torch.equal(one.views[name][key], two.views[name][key])
        assert not torch.equal(one.views[name][key], other.views[name][key])
        chunks = split(one.views[name], 5)
        assert torch.equal(torch.cat([chunk[key] for chunk in chunks]), one.views[name][key])


def test_only_what_is_asked_for_is_hidden() -> None:
    words = masked(make(patches=0.0))
    assert "kept_patches" not in words.views["query_masked"]
    assert set(masked(make(views=("target",))).views) == {"query", "target", "target_masked"}
    patches = masked(make(words=0.0, token=None))
    assert torch.equal(patches.views["target_masked"]["input_ids"], texts()["input_ids"])
    with pytest.raises(RecipeError, match=r"mask the view 'title'; the data gives \['query', 'target'\]"):
        masked(make(views=("title",)))


@pytest.mark.parametrize(
    "settings", [{"share": 0.0}, {"patches": 1.0}, {"words": -0.1}, {"patches": 0.0, "words": 0.0}, {"token": None}]
)
def test_settings_that_do_not_fit(settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="MaskedViews"):
        make(**settings)


# ---- the tower -------------------------------------------------------------------------------------------------------


def tower(**options: Any) -> TimmImage:
    torch.manual_seed(0)
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    return TimmImage("vit_tiny_patch16_224", {**small, "global_pool": "token", "reg_tokens": 1, **options})


def test_a_tower_sees_the_patches_that_are_left_at_their_places() -> None:
    part, pixels = tower().eval(), torch.randn(2, 3, 32, 32)
    assert part.patch_count(pixels) == 16
    kept = torch.tensor([[0, 5, 6], [3, 9, 15]])
    found = part(pixels, kept)
    assert found.tokens.shape == (2, 2 + 3, 24)
    changed = pixels.clone().unflatten(2, (4, 8)).unflatten(4, (4, 8))  # (R, 3, 4, 8, 4, 8)
    for row, places in enumerate(kept.tolist()):
        for place in set(range(16)) - set(places):
            changed[row, :, place // 4, :, place % 4] = 9.0
    torch.testing.assert_close(part(changed.reshape(pixels.shape), kept).tokens, found.tokens)
    everything = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(part(pixels, everything).tokens, part(pixels).tokens)
    assert not torch.allclose(part(pixels).pooled, found.pooled)
    model = part.model  # step by step
    states = model._pos_embed(model.patch_embed(pixels))
    left = torch.stack([torch.cat([s[:2], s[2 + k]]) for s, k in zip(states, kept, strict=True)])
    torch.testing.assert_close(found.tokens, model.norm(model.blocks(model.norm_pre(left))))


def test_patch_dropout_does_not_touch_a_masked_view() -> None:
    part = TimmImage("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 3}, 0.5)
    part.train()
    assert part(torch.randn(1, 3, 32, 32), torch.tensor([[1, 2, 3]])).tokens.shape[1] == 1 + 3
    assert part(torch.randn(1, 3, 32, 32)).tokens.shape[1] == 1 + 8


def test_a_convolution_has_no_patches_to_leave_out() -> None:
    with pytest.raises(RecipeError, match="resnet18' can't leave patches out"):
        TimmImage("resnet18").patch_count(torch.randn(1, 3, 64, 64))
