"""Masked views of a dual encoder: for training alone, exact in chunks, beside a slow copy, after a restart; and ProLIP's
masked inclusion as the official code computes it, from pixels and token ids to the loss.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from zoo.architectures.dual_encoder import DualEncoder
from zoo.callbacks.checkpointing import ResumableCheckpoint
from zoo.data.datamodule import EmbeddingData
from zoo.data.processors.dual import DualProcessor, narrow
from zoo.data.processors.dual_arrays import Caption, Picture
from zoo.data.source import Source
from zoo.errors import RecipeError
from zoo.nn.backbones.timm_image import TimmImage
from zoo.nn.backbones.transformers_text import TransformersText
from zoo.nn.gaussian import GaussianHead, LogVariance
from zoo.nn.heads import Projection
from zoo.nn.latent_heads import AtToken
from zoo.nn.masked_views import MaskedViews
from zoo.nn.pooling import LastToken
from zoo.objectives.combined import Weighted
from zoo.objectives.infonce import InfoNCE
from zoo.objectives.masked_words import MaskedWords
from zoo.objectives.objective import Objective
from zoo.objectives.prolip import ProLIP
from zoo.testing import check_chunking, check_gradients, example_samples
from zoo.types import Batch, Sample

WIDTH, UNCERTAIN, CLOSE, HIDDEN = 12, 1, 2, 3  # ids of the tokenizer's "!", '"' and "#"
INCLUSIONS = (("query", "target", 0.2), ("query", "query_masked", 0.3), ("target", "target_masked", 0.4))


def encoder(objective: Objective | None, masking: MaskedViews | None, **arguments: Any) -> DualEncoder:
    """Small towers with an uncertainty token each where there are `heads`, and with tokens otherwise."""
    torch.manual_seed(0)
    vit = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    bert = {
        "vocab_size": 257, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 32,
        "max_position_embeddings": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    return DualEncoder(
        image=TimmImage("vit_tiny_patch16_224", {**vit, "global_pool": "token", "reg_tokens": 1}),
        text=TransformersText("bert", bert, LastToken()),
        processor=DualProcessor(
            "packaged:bytes-tokenizer.json", Picture(size=32), Caption(40, bos="!", eos='"', pad="<pad>")
        ),
        objective=objective,
        masking=masking,
        **{"image_head": Projection(24, WIDTH), "text_head": Projection(24, WIDTH)} | arguments,
    )


def hiding(**settings: Any) -> MaskedViews:
    return MaskedViews(**{"patches": 0.75, "words": 0.75, "token": HIDDEN, "spared": (UNCERTAIN, CLOSE)} | settings)


def prolip(form: str = "exact", **settings: Any) -> DualEncoder:
    heads = [
        GaussianHead(Projection(24, WIDTH), AtToken(place, LogVariance(24, WIDTH, start=-3.0))) for place in (1, 0)
    ]
    objective = ProLIP(inclusions=INCLUSIONS, inclusion_scale=3.0, form=form)  # type: ignore[arg-type]
    masking = hiding(**{"share": 0.5, "form": form} | settings)
    return encoder(objective, masking, image_head=heads[0], text_head=heads[1])


def worded(**arguments: Any) -> DualEncoder:
    torch.manual_seed(1)
    words = MaskedWords(WIDTH, 257, layers=1, heads=2)
    masking = hiding(views=("target",), patches=0.0, words=0.5)
    return encoder(Weighted({"pairs": InfoNCE(), "words": words}), masking, tokens=True, **arguments)


# ---- views -----------------------------------------------------------------------------------------------------------


def test_masked_views_are_for_training_alone() -> None:
    module = prolip()
    batch = module.processor(example_samples())
    encoded = module.train()._encoded(batch)
    assert set(encoded.views) == {"query", "target", "query_masked", "target_masked"} == set(encoded.owners)
    assert set(batch.views) == {"query", "target"}
    for name in ("query", "target"):
        whole, masked = encoded.views[name].vector[:2], encoded.views[f"{name}_masked"].vector
        assert masked.shape == whole.shape and not torch.allclose(masked, whole, atol=1e-3)
        assert encoded.views[f"{name}_masked"].words is None
    assert set(module.eval()._encoded(batch).views) == {"query", "target"}


def test_hidden_words_come_with_tokens() -> None:
    module = worded().train()
    batch = module.processor(example_samples())
    encoded = module._encoded(batch)
    found = encoded.views["target_masked"]
    assert set(encoded.views) == {"query", "target", "target_masked"}
    assert found.words.shape == found.mask.shape and found.tokens.shape[:2] == found.words.shape
    hidden = found.words >= 0
    assert torch.equal(found.words[hidden], batch.views["target"]["input_ids"][hidden])
    assert encoded.views["target"].words is None


def test_a_slow_copy_sees_whole_items() -> None:
    module = worded(momentum=0.5).train()
    encoded = module._encoded(module.processor(example_samples()))
    assert set(encoded.views) == {"query", "target", "target_masked", "query_momentum", "target_momentum"}
    assert set(encoded.owners) == set(encoded.keys) == set(encoded.views)


@pytest.mark.parametrize("make", [prolip, lambda: prolip("official"), worded])
def test_gradients_and_chunks(make: Any) -> None:
    check_gradients(make())
    check_chunking(make())


def test_chunks_hide_what_the_whole_batch_hides() -> None:
    found = []
    for size in (None, 1, 3):
        module = worded().train()
        module.chunk_size = size
        torch.manual_seed(4)
        found.append(module._encoded(module.processor(example_samples())).views["target_masked"])
    for one in found[1:]:
        assert torch.equal(one.words, found[0].words)
        torch.testing.assert_close(one.vector, found[0].vector)


def test_nothing_of_it_is_exported() -> None:
    module = worded()
    exported = {id(p) for graph in module.export_graphs() for p in graph.module.encoder.image.parameters()}
    assert not exported & {id(p) for p in module.objective.parameters()}
    assert not list(module.masking.parameters())
    plain = encoder(InfoNCE(), None, tokens=True)
    assert {k for k in module.state_dict() if not k.startswith("objective.")} == {
        k for k in plain.state_dict() if not k.startswith("objective.")
    }


def test_what_is_missing_is_named() -> None:
    module = prolip().train()
    module.masking = None
    batch = module.processor(example_samples())
    encoded = module._encoded(batch)
    with pytest.raises(RecipeError, match=r"view 'query_masked' \(masked views come from `masking` of the model\)"):
        module.objective(encoded, encoded)
    silent = ProLIP(inclusions=[(a, b, 0.0 if "masked" in b else w) for a, b, w in INCLUSIONS])
    assert torch.isfinite(silent(encoded, encoded)["loss"])
    without = encoder(InfoNCE(), hiding()).train()
    without.image = torch.nn.Identity()
    with pytest.raises(RecipeError, match="image tower Identity can't leave any out"):
        without._encoded(batch)


# ---- the official arithmetic -----------------------------------------------------------------------------------------


def inside(m: Tensor, l: Tensor, n: Tensor, k: Tensor) -> Tensor:  # noqa: E741
    """H(1 in 2) of a coordinate, eps -10."""
    p, q = (-10 - l).exp(), (-10 - k).exp()
    a, b, c = p + q / 2, 2 * m * p + n * q, m**2 * p + n**2 * q / 2
    return -2 * l - k - a.log() / 2 + b**2 / (4 * a) - c


def test_masked_inclusion_is_the_official_one() -> None:
    module = prolip("official").double().train()
    batch = module.processor(example_samples())
    batch.views["query"]["pixels"] = batch.views["query"]["pixels"].double()
    torch.manual_seed(11)
    encoded = module._encoded(batch)
    found = module.objective(encoded, encoded)

    torch.manual_seed(11)
    samples, chosen = int(4 * 0.5), torch.tensor([0, 2])  # half of the rows, spread over the batch
    places = torch.randperm(16)[: int(16 * 0.75)].sort().values
    coins = torch.rand(samples, batch.views["target"]["input_ids"].shape[1])
    model = module.image.model
    states = model._pos_embed(model.patch_embed(batch.views["query"]["pixels"][chosen]))
    states = torch.cat([states[:, :2], states[:, 2:].index_select(1, places)], 1)
    states = model.norm(model.blocks(model.norm_pre(states)))
    ids, mask = (batch.views["target"][name][chosen].clone() for name in ("input_ids", "attention_mask"))
    for i in range(samples):
        for j in range(int(mask[i].sum())):
            if int(ids[i, j]) not in (UNCERTAIN, CLOSE) and coins[i, j] < 0.75:
                ids[i, j] = HIDDEN
    hidden = module.text.model(input_ids=ids, attention_mask=mask).last_hidden_state
    closing = hidden[torch.arange(samples), mask.sum(1) - 1]
    masked = {
        "query": (module.image_head.mean(states[:, 0]), module.image_head.log_var.head(states[:, 1])),
        "target": (module.text_head.mean(closing), module.text_head.log_var.head(hidden[:, 0])),
    }
    for name, (mean, log_var) in masked.items():
        whole = encoded.views[name]
        sides = whole.vector[chosen], whole.log_var[chosen], F.normalize(mean, dim=-1), log_var
        difference = inside(*sides) - inside(*sides[2:], *sides[:2])
        expected = -F.logsigmoid(3.0 * difference).mean()
        torch.testing.assert_close(found[f"{name}_in_{name}_masked"], expected.detach(), rtol=1e-8, atol=1e-8)


# ---- processes -------------------------------------------------------------------------------------------------------

SHARES = [(0, 5), (5, 7)]


def masked_batch(module: DualEncoder) -> Batch:
    batch = module.processor(example_samples(7))
    torch.manual_seed(2)
    found = module.masking(batch, module.processor.split, module._patch_count)
    found.views["query"]["pixels"] = found.views["query"]["pixels"].double()
    return found


def share_of(batch: Batch, start: int, stop: int) -> Batch:
    """These samples, their texts as long as the longest of them."""
    views = {name: narrow(inputs, start, stop) for name, inputs in batch.views.items()}
    for inputs in views.values():
        if "input_ids" in inputs:
            longest = int(inputs["attention_mask"].sum(1).max())
            for name in ("input_ids", "attention_mask", "hidden_words"):
                inputs.update({name: inputs[name][:, :longest]} if name in inputs else {})
    rows = torch.arange(stop - start)
    keys = {name: values[start:stop] for name, values in batch.keys.items()}
    parts = batch.labels[start:stop], batch.weights[start:stop], batch.ids[start:stop], batch.sources[start:stop]
    return Batch(views, dict.fromkeys(views, rows), keys, *parts)


def gradient(module: DualEncoder, batch: Batch) -> tuple[Tensor, Tensor]:
    """This process's share of the loss, and the gradient of it."""
    local = module._encoded(batch)
    loss = module.objective(local, module._gathered(local))["loss"]
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in module.parameters() if p.requires_grad])


def worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    module = worded().double().train()
    batch = share_of(masked_batch(module), *SHARES[rank])
    module.masking = None  # the masks are drawn already: here they are to be the same as in one process
    parts = gradient(module, batch)
    for part in parts:
        dist.all_reduce(part)
    if rank == 0:
        torch.save(parts, folder / "found.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    module = worded().double().train()
    batch, module.masking = masked_batch(module), None
    mp.spawn(worker, (tmp_path,), nprocs=2)
    for found, expected in zip(torch.load(tmp_path / "found.pt"), gradient(module, batch), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


# ---- a restart -------------------------------------------------------------------------------------------------------


class Pairs(Source):
    """The example samples, again and again."""

    name = "pairs"

    def __len__(self) -> int:
        return 24

    def draw(self, index: int, rng: random.Random) -> Sample:
        return example_samples(index + 1)[index]


class StopAfter(Callback):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == self.steps:
            raise RuntimeError("killed")


def run(folder: Path, stop: int = -1, resume: bool = False) -> dict[str, Tensor]:
    module = worded()
    trainer = Trainer(
        max_steps=6, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, default_root_dir=folder, limit_val_batches=0,
        callbacks=[StopAfter(stop), ResumableCheckpoint(folder / "checkpoints", every_n_train_steps=2)],
    )  # fmt: skip
    data = EmbeddingData(train=[Pairs()], batch_size=4, num_workers=0)
    if stop > 0:
        with pytest.raises(RuntimeError, match="killed"):
            trainer.fit(module, datamodule=data, weights_only=False)
    else:
        trainer.fit(module, datamodule=data, ckpt_path="last" if resume else None, weights_only=False)
    return module.state_dict()


def test_a_restarted_run_hides_the_same(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    killed = run(tmp_path / "killed", stop=3)
    found = run(tmp_path / "killed", resume=True)
    assert not torch.equal(killed["text_head.weight"], whole["text_head.weight"])
    for name, expected in whole.items():
        assert torch.equal(found[name], expected), name
