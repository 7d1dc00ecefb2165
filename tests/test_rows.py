"""Rows of chunks and of processes, joined where they differ in kind, in length or in number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from torch import Tensor, nn

from zoo.architectures.dual_encoder import DualEncoder
from zoo.data.processors.dual import DualProcessor
from zoo.data.processors.dual_arrays import Caption, Picture
from zoo.distributed import group_of
from zoo.errors import RecipeError
from zoo.nn.backbones.timm_image import TimmImage
from zoo.nn.gaussian import GaussianHead, LogVariance
from zoo.nn.heads import Projection
from zoo.nn.recurrent import BiRnnText
from zoo.objectives.infonce import InfoNCE
from zoo.rows import gathered, joined
from zoo.types import Embedding, Encoded, Item, Sample

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
SMALL |= {"global_pool": "avg", "class_token": False, "fc_norm": False}
WHITE = Image.new("RGB", (40, 40), "white")
PICTURES, TEXTS = [Item(images=(WHITE,))] * 2, [Item(text="a dog"), Item(text="a cat sits")]


def unsure() -> GaussianHead:
    return GaussianHead(Projection(24, 16), LogVariance(24, 16))


def encoder(chunk_size: int | None, head: Callable[[], nn.Module] = lambda: Projection(24, 16), tokens: bool = False):
    torch.manual_seed(0)
    module = DualEncoder(
        image=TimmImage("vit_tiny_patch16_224", SMALL),
        text=BiRnnText(257, 8, 6),
        image_head=head(),
        text_head=Projection(12, 16),
        processor=DualProcessor("packaged:bytes-tokenizer.json", Picture(size=32), Caption(pad="<pad>")),
        objective=InfoNCE(),
        tokens=tokens,
        chunk_size=chunk_size,
    )
    return module.train()


# ---- chunks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("items", [PICTURES + TEXTS, TEXTS + PICTURES, PICTURES + TEXTS + PICTURES])
@pytest.mark.parametrize("learning", [True, False])
def test_a_variance_of_some_chunks_is_none_of_the_batch(items: list[Item], learning: bool) -> None:
    gradients = []
    for size in (None, 2):
        module = encoder(size, unsure)
        inputs = module.processor([Sample(str(i), {"query": item}) for i, item in enumerate(items)]).views["query"]
        with torch.set_grad_enabled(learning):
            found = module.embed(inputs)
        assert found.log_var is None and found.vector.shape == (len(items), 16)
        if learning:
            (found.vector * torch.arange(16)).sum().backward()
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        gradients.append(torch.cat([found.vector.detach().flatten(), *(g.flatten() for g in grads)]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


def test_tokens_of_pictures_and_of_texts_are_padded() -> None:
    module = encoder(2, tokens=True)
    items = PICTURES + TEXTS
    inputs = module.processor([Sample(str(i), {"query": item}) for i, item in enumerate(items)]).views["query"]
    found, longest = module.embed(inputs), 16
    assert found.tokens.shape == (4, longest, 16)
    assert found.mask.sum(1).tolist() == [16, 16, 5, 10]
    assert not found.tokens[2:, 10:].any()
    pieces = module.processor.split(inputs, 3)  # the first chunk holds both kinds, so there are tokens for none
    assert module.encode(pieces[0]).tokens is None and joined([module.encode(one) for one in pieces]).tokens is None


def test_rows_that_do_not_fit_are_told() -> None:
    with pytest.raises(RecipeError, match=r"`given` of different sizes, \[\(3,\), \(5,\)\]"):
        joined([Embedding(torch.zeros(2, 4), given=torch.zeros(2, width)) for width in (5, 3)])


# ---- processes -------------------------------------------------------------------------------------------------------


def of(vector: Tensor, **parts: Tensor) -> Embedding:
    return Embedding(vector.requires_grad_(), **parts)


def texts(rank: int) -> Embedding:
    """Tokens of another length on each rank, some of them padding."""
    count, length = ((2, 3), (3, 5))[rank]
    tokens = torch.randn(count, length, 4, generator=torch.Generator().manual_seed(rank), requires_grad=True)
    mask = torch.ones(count, length, dtype=torch.int64)
    mask[0, 2:] = 0
    return of(
        torch.full((count, 4), float(rank)), tokens=tokens, mask=mask, words=torch.full((count, length), 7 + rank)
    )


def kinds(rank: int) -> Embedding:
    """One rank has variances and tokens, the other one has not."""
    return of(torch.ones(2, 4) + rank, **({"log_var": torch.zeros(2, 4)} if rank else {}), **tokens_of(rank))


def tokens_of(rank: int) -> dict[str, Tensor]:
    return {} if rank else {"tokens": torch.ones(2, 3, 4), "mask": torch.ones(2, 3, dtype=torch.int64)}


def lacking(rank: int) -> Embedding:
    """Rank 0 has no rows, and so nothing that a gradient flows into."""
    if rank == 0:
        return Embedding(torch.zeros(0, 4))
    tokens = torch.arange(24.0).reshape(2, 3, 4).requires_grad_()
    return of(torch.full((2, 4), 3.0), log_var=torch.zeros(2, 4), tokens=tokens, mask=torch.ones(2, 3))


def single(rank: int) -> Embedding:
    """A field with one number per row."""
    return of(torch.ones(1 + rank, 4), given=torch.full((1 + rank,), float(rank)))


def frozen(rank: int) -> Embedding:
    """Nothing of rank 0 is trained."""
    return Embedding(torch.full((1, 4), float(rank), requires_grad=bool(rank)))


VIEWS = {"texts": texts, "single": single, "kinds": kinds, "lacking": lacking, "frozen": frozen}


def encoded(rank: int, names: list[str]) -> Encoded:
    views = {name: VIEWS[name](rank) for name in names}
    owners = {name: torch.arange(len(one.vector)) for name, one in views.items()}
    keys = {name: owner + 100 * rank for name, owner in owners.items()}
    return Encoded(views, owners, keys, torch.full((3,), -1), torch.ones(3), torch.arange(3))


def worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    for meeting in ("first", "second"):  # one training after the other in one process
        dist.init_process_group("gloo", init_method=f"file://{folder}/{meeting}", rank=rank, world_size=2)
        alone = gathered(encoded(rank, ["texts"]), group_of(1))
        assert len(alone.labels) == 3 and torch.equal(alone.views["texts"].vector, texts(rank).vector)
        if meeting == "first":
            dist.destroy_process_group()
    local = encoded(rank, [*VIEWS] if rank else [*reversed(VIEWS)])  # ranks list their views in any order
    everyone = gathered(local, None)
    values = {name: [one.vector, one.log_var, one.tokens, one.mask, one.words] for name, one in everyone.views.items()}
    assert everyone.views["single"].given.tolist() == [0.0, 1.0, 1.0]
    total = sum(one.vector.square().sum() for one in everyone.views.values())
    total += sum(everyone.views[name].tokens.square().sum() for name in ("texts", "lacking"))
    total.backward()
    gradients = {name: [one.vector.grad, getattr(one.tokens, "grad", None)] for name, one in local.views.items()}
    found = {name: [None if value is None else value.detach() for value in one] for name, one in values.items()}
    torch.save((found, gradients, everyone.owners, everyone.keys), folder / f"{rank}.pt")
    with pytest.raises(RecipeError, match="another one has others"):
        gathered(encoded(rank, ["texts", "kinds"][: 2 - rank]), None)
    dist.destroy_process_group()


def pad(tensor: Tensor, length: int, value: int = 0) -> Tensor:
    padded = tensor.new_full((len(tensor), length, *tensor.shape[2:]), value)
    padded[:, : tensor.shape[1]] = tensor
    return padded


def test_processes_agree_on_what_there_is(tmp_path: Path) -> None:
    mp.spawn(worker, (tmp_path,), nprocs=2)
    both = [texts(0), texts(1)]
    for rank in range(2):
        found, gradients, owners, keys = torch.load(tmp_path / f"{rank}.pt")
        vector, log_var, tokens, mask, words = found["texts"]
        assert torch.equal(vector, torch.cat([e.vector for e in both])) and log_var is None
        assert torch.equal(tokens, torch.cat([pad(e.tokens.detach(), 5) for e in both]))
        assert torch.equal(mask, torch.cat([pad(e.mask, 5) for e in both]))
        assert torch.equal(words, torch.cat([pad(e.words, 5, -1) for e in both]))  # -1: not hidden
        vector, *others = found["kinds"]
        assert vector[:, 0].tolist() == [1, 1, 2, 2] and others == [None] * 4
        vector, log_var, tokens, mask, words = found["lacking"]
        assert vector.tolist() == [[3.0] * 4] * 2 and torch.equal(log_var, torch.zeros(2, 4)) and words is None
        assert torch.equal(tokens.flatten(), torch.arange(24.0)) and mask.shape == (2, 3)
        assert owners["texts"].tolist() == [0, 1, 3, 4, 5] and owners["lacking"].tolist() == [3, 4]
        assert keys["texts"].tolist() == [0, 1, 100, 101, 102]
        # each rank's loss counts every row once: two times the derivative of a square
        local = texts(rank)
        torch.testing.assert_close(gradients["texts"][1], 4 * local.tokens.detach())
        torch.testing.assert_close(gradients["kinds"][0], 4 * (torch.ones(2, 4) + rank))
        if rank == 1:
            assert torch.equal(gradients["lacking"][1].flatten(), 4 * torch.arange(24.0))
            assert torch.equal(gradients["frozen"][0], torch.full((1, 4), 4.0))
