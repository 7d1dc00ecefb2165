"""Which rows a batch loses, that the rest stays what it was, and the views of pseudo-inputs."""

from __future__ import annotations

import pytest
import torch

from zoo.errors import RecipeError
from zoo.nn.partial_pairs import NOBODY, PartialPairs
from zoo.types import Batch

WIDTHS = {"image": 3, "text": 2}


def batch(count: int = 8) -> Batch:
    rows = torch.arange(count)
    views = {
        "query": {"rows": rows, "text_rows": rows, "text_pooled": torch.randn(count, 2)},
        "target": {"rows": rows, "image_rows": rows, "image_pooled": torch.randn(count, 3)},
    }
    return Batch(
        views=views,
        owners={"query": rows, "target": rows},
        keys={"query": rows + 10, "target": rows + 20},
        labels=torch.full((count,), -1),
        weights=torch.ones(count),
        ids=[str(i) for i in range(count)],
        sources=[""] * count,
    )


@pytest.mark.parametrize(("share", "lost"), [(0.0, (0, 0)), (0.5, (2, 2)), (0.4, (2, 1)), (0.99, (4, 3))])
def test_each_sample_loses_one_view_at_most(share: float, lost: tuple[int, int]) -> None:
    whole = batch()
    found = PartialPairs(WIDTHS, 5, share)(whole)
    assert [8 - len(found.owners[name]) for name in ("query", "target")] == list(lost)
    assert set(found.owners["query"].tolist()) | set(found.owners["target"].tolist()) == set(range(8))
    for name, kind in (("query", "text"), ("target", "image")):
        owner, inputs = found.owners[name], found.views[name]
        assert torch.equal(inputs[f"{kind}_pooled"], whole.views[name][f"{kind}_pooled"][owner])
        assert torch.equal(found.keys[name], whole.keys[name][owner])
        assert inputs["rows"].tolist() == inputs[f"{kind}_rows"].tolist() == list(range(len(owner)))


def test_other_samples_every_time() -> None:
    torch.manual_seed(0)
    part = PartialPairs(WIDTHS, 5, 0.5)
    assert len({tuple(part(batch()).owners["query"].tolist()) for _ in range(6)}) > 1


def test_pseudo_inputs_are_learned_latents_of_nobody() -> None:
    part = PartialPairs(WIDTHS, 5, 0.5)
    found = part(batch())
    for name, kind, width in (("query_pseudo", "text", 2), ("target_pseudo", "image", 3)):
        latents = found.views[name][f"{kind}_pooled"]
        assert latents is part.inputs[kind] and latents.requires_grad and latents.shape == (5, width)
        assert found.owners[name].tolist() == [NOBODY] * 5
        assert found.views[name][f"{kind}_rows"].tolist() == list(range(5))


@pytest.mark.parametrize("name", ["query", "target"])
def test_a_view_that_no_sample_of_the_batch_has_has_pseudo_inputs_all_the_same(name: str) -> None:
    """All samples of a process may lack the same view; the pseudo-inputs of its modality are what it is told from."""
    whole = batch()
    whole.views[name] = {"rows": torch.zeros(0, dtype=torch.int64)}
    whole.owners[name] = whole.keys[name] = torch.zeros(0, dtype=torch.int64)
    found = PartialPairs(WIDTHS, 5, 0.0)(whole)
    assert set(found.views) == {"query", "target", "query_pseudo", "target_pseudo"}
    assert len(found.owners[name]) == len(found.keys[name]) == len(found.views[name]["rows"]) == 0
    assert f"{'text' if name == 'query' else 'image'}_pooled" in found.views[f"{name}_pseudo"]
    with pytest.raises(RecipeError, match="can't tell which of the modalities"):
        PartialPairs(WIDTHS | {"place": 2})(whole)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(RecipeError, match="share in"):
        PartialPairs(WIDTHS, 5, 1.0)
    both = batch()
    both.views["query"] |= both.views["target"]
    with pytest.raises(RecipeError, match="the view 'query' has 8 rows of text and image"):
        PartialPairs(WIDTHS)(both)
    with pytest.raises(RecipeError, match="one of the modalities"):
        PartialPairs({"place": 2})(batch())
    alone = batch()
    del alone.views["target"]
    with pytest.raises(RecipeError, match="needs two views"):
        PartialPairs(WIDTHS)(alone)
