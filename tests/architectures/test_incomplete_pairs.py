"""MEME in a Projector: pseudo-inputs go through the heads of their modality, in training alone; rows may lack a side."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from frozen_towers import ColourTower, WordTower, processor
from pair_files import picture
from torch import Tensor

import zoo.testing
from zoo.architectures.projector import Projector
from zoo.nn.gaussian import GaussianHead, LogVariance
from zoo.nn.heads import Projection
from zoo.nn.partial_pairs import PartialPairs
from zoo.objectives.meme import MEME
from zoo.types import Item, Sample


def projector(share: float = 0.5) -> Projector:
    torch.manual_seed(0)
    heads = {
        name: GaussianHead(Projection(width, 4), LogVariance(width, 4, -2.0), given=True)
        for name, width in (("image", 6), ("text", 5))
    }
    return Projector(
        {"image": ColourTower(), "text": WordTower()},
        heads,
        PartialPairs({"image": 6, "text": 5}, 3, share),
        processor=processor(),
        objective=MEME(4, {"query": 6, "target": 5}, hidden=7, samples=3),
    )


def samples(without: int | None = None) -> list[Sample]:
    """Six pairs; one of them has no text, if asked for."""
    return [
        Sample(
            f"s{i}",
            {"query": Item(images=(picture(i, (20, 30)),)), "target": () if i == without else Item(text=f"thing {i}")},
        )
        for i in range(6)
    ]


def step(module: Projector, chunk_size: int | None = None) -> list[Tensor]:
    """The loss of a training step and all gradients."""
    torch.manual_seed(1)
    module.chunk_size = chunk_size
    encoded = module.train()._encoded(module.processor(samples()))
    loss = module.objective(encoded, encoded)["loss"]
    return [loss.detach(), *torch.autograd.grad(loss, [p for p in module.parameters() if p.requires_grad])]


def test_contract() -> None:
    zoo.testing.check_embedding(projector())
    zoo.testing.check_batch_invariance(projector())
    zoo.testing.check_training(projector())


def test_pseudo_inputs_go_through_the_heads_in_training_alone() -> None:
    module = projector()
    encoded = module.train()._encoded(module.processor(samples()))
    assert [len(encoded.owners[name]) for name in ("query", "target")] == [4, 5]
    for name, kind in (("query_pseudo", "image"), ("target_pseudo", "text")):
        latents = module.mixing.inputs[kind]
        expected = F.normalize(module.heads[kind].mean(latents), dim=-1)
        torch.testing.assert_close(encoded.views[name].vector, expected)
    encoded = module.eval()._encoded(module.processor(samples()))
    assert sorted(encoded.views) == ["query", "target"] and len(encoded.owners["query"]) == 6


def test_given_is_the_direction_of_the_frozen_latent() -> None:
    module = projector().eval()
    for name, kind in (("query", "image"), ("target", "text")):
        inputs = module.processor(samples()).views[name]
        latents = module.latents(inputs)[f"{kind}_pooled"]
        torch.testing.assert_close(module.encode(inputs).given, F.normalize(latents, dim=-1))


def test_chunks_give_the_gradients_of_the_whole_batch() -> None:
    whole, chunked = step(projector()), step(projector(), chunk_size=2)
    for left, right in zip(whole, chunked, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4 * float(left.abs().max()))
    assert all(float(gradient.abs().max()) > 0 for gradient in whole[1:])


def test_samples_of_the_data_may_lack_a_view() -> None:
    """An empty tuple in the place of an item."""
    module = projector(share=0.0).train()
    encoded = module._encoded(module.processor(samples(without=2)))
    losses = module.objective(encoded, encoded)
    assert encoded.owners["target"].tolist() == [0, 1, 3, 4, 5]
    assert torch.isfinite(losses["loss"]) and float(losses["alone"]) != 0


@pytest.mark.parametrize("name", ["query", "target"])
def test_a_batch_may_lack_a_view_altogether(name: str) -> None:
    """All samples stand alone; of the other side only the pseudo-inputs are left."""
    module = projector(share=0.0).train()
    given = [Sample(one.id, dict(one.views) | {name: ()}) for one in samples()]
    encoded = module._encoded(module.processor(given))
    losses = module.objective(encoded, encoded)
    assert all(bool(torch.isfinite(value).all()) for value in losses.values()) and float(losses["alone"]) != 0
    losses["loss"].backward()
    assert all(p.grad is not None for n, p in module.named_parameters() if p.requires_grad and "objective" not in n)
