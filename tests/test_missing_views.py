"""Views that samples lack, from samples to gradients: views without any row, chunks, processes of which one has none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

from zoo.architectures.dual_encoder import DualEncoder
from zoo.data.processors.collate import collate
from zoo.data.processors.dual import DualProcessor
from zoo.data.processors.dual_arrays import Caption, Picture
from zoo.errors import SampleError
from zoo.module import EmbeddingModule
from zoo.nn.backbones.timm_image import TimmImage
from zoo.nn.gaussian import GaussianHead, LogVariance
from zoo.nn.heads import Projection
from zoo.nn.masked_views import MaskedViews
from zoo.nn.picture_mixing import PictureMixing
from zoo.nn.recurrent import BiRnnText
from zoo.objectives.combined import Weighted
from zoo.objectives.infonce import InfoNCE
from zoo.objectives.pcmepp import PCMEPP
from zoo.objectives.siglip import SigLIP
from zoo.types import Batch, Embedding, Inputs, Item, Sample

WIDTH, SAMPLES = 6, 6
HEARD = [3, 5]  # samples that have a sound: with four of six on the first of two processes, one each; with three, none


class Splitter:
    """The part of a processor that chunks need."""

    def split(self, inputs: Inputs, size: int) -> list[Inputs]:
        (name,) = inputs
        return [{name: part} for part in inputs[name].split(size)]


class Binder(EmbeddingModule):
    """Images against texts, which all samples have, and against sounds, which few have."""

    def __init__(self, chunk: int | None = None) -> None:
        objectives = {
            "text": InfoNCE(0.1, "linear", symmetric=True, views=("image", "text")),
            "sound": SigLIP(0.1, -2.0, views=("image", "sound")),
        }
        super().__init__(processor=Splitter(), objective=Weighted(objectives), chunk_size=chunk)  # type: ignore[arg-type]
        torch.manual_seed(0)
        self.layers = nn.ModuleDict({name: nn.Linear(WIDTH, 4).double() for name in ("image", "text", "sound")})

    def encode(self, inputs: Inputs) -> Embedding:
        ((name, values),) = inputs.items()
        assert len(values), "nothing is encoded of a view without rows"
        return Embedding(F.normalize(self.layers[name](values), dim=-1))


def bound(start: int, stop: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    every = torch.randn(3, SAMPLES, WIDTH, generator=generator, dtype=torch.float64)
    samples = {"image": range(start, stop), "text": range(start, stop)}
    samples["sound"] = [i for i in HEARD if start <= i < stop]  # type: ignore[assignment]
    count = stop - start
    return Batch(
        views={name: {name: every[place, list(rows)]} for place, (name, rows) in enumerate(samples.items())},
        owners={name: torch.tensor([i - start for i in rows], dtype=torch.int64) for name, rows in samples.items()},
        keys={
            name: torch.tensor([100 * len(name) + i for i in rows], dtype=torch.int64) for name, rows in samples.items()
        },
        labels=torch.full((count,), -1),
        weights=torch.linspace(1, 2, SAMPLES)[start:stop],
        ids=[str(i) for i in range(start, stop)],
        sources=[""] * count,
    )


class Step(nn.Module):
    """What data-parallel training wraps."""

    def __init__(self, module: Binder) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> torch.Tensor:
        local = self.module._encoded(batch)
        everyone = self.module._gathered(local)
        assert {e.vector.dtype for e in everyone.views.values()} == {torch.float64}
        return self.module.objective(local, everyone)["loss"] * self.module._group_size  # type: ignore[misc]


def trained(step: nn.Module, batch: Batch) -> torch.Tensor:
    """The gradient of the second of two steps: the first one must leave nothing open."""
    for _ in range(2):
        step.zero_grad()
        step(batch).backward()
    return torch.cat([p.grad.flatten().double() for p in step.parameters()])


def worker(rank: int, folder: Path, edge: int, chunk: int | None) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    parallel = nn.parallel.DistributedDataParallel(Step(Binder(chunk)))
    gradient = trained(parallel, bound(*((0, edge), (edge, SAMPLES))[rank]))
    if rank == 0:
        torch.save(gradient, folder / "gradient.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("edge", [3, 4], ids=["one has no sound", "both have one"])
def test_two_processes_equal_one(edge: int, chunk: int | None, tmp_path: Path) -> None:
    """The first process has no row of `sound`: it waits for nobody, and nobody waits for it."""
    mp.spawn(worker, (tmp_path, edge, chunk), nprocs=2)
    expected = trained(Step(Binder()), bound(0, SAMPLES))
    assert float(expected.abs().max()) > 1e-3
    torch.testing.assert_close(torch.load(tmp_path / "gradient.pt"), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("grad", [True, False])
def test_a_view_without_rows_is_an_embedding_of_none(chunk: int | None, grad: bool) -> None:
    module = Binder(chunk)
    with torch.set_grad_enabled(grad):
        encoded = module._encoded(bound(0, 3))
        sound = encoded.views["sound"]
        assert sound.vector.shape == (0, 4) and sound.vector.dtype == torch.float64 and sound.log_var is None
        loss = module.objective(encoded, encoded)["loss"]  # type: ignore[misc]
    assert bool(torch.isfinite(loss)) and loss.requires_grad == grad
    if grad:
        loss.backward()
        assert all(p.grad is not None for p in module.parameters())
        assert not bool(module.layers["sound"].weight.grad.any())  # type: ignore[union-attr]


# ---- samples ----------------------------------------------------------------------------------------------------------


def processor() -> DualProcessor:
    return DualProcessor("packaged:bytes-tokenizer.json", Picture(size=32), Caption(pad="<pad>"))


def samples(lacking: dict[int, str]) -> list[Sample]:
    from PIL import Image

    whole = {
        i: {
            "query": Item(images=(Image.new("RGB", (40, 40), (60 * i, 0, 0)),)),
            "target": Item(text="a dog " * (i + 1)),
        }
        for i in range(4)
    }
    return [Sample(f"s{i}", {n: () if lacking.get(i) == n else v for n, v in one.items()}) for i, one in whole.items()]


def test_samples_that_lack_a_view_are_collated() -> None:
    batch = processor()(samples({1: "target", 3: "query"}))
    assert {name: owner.tolist() for name, owner in batch.owners.items()} == {"query": [0, 1, 2], "target": [0, 2, 3]}
    none = processor()(samples(dict.fromkeys(range(4), "target")))
    assert [len(part["target"]) for part in (none.owners, none.keys)] == [0, 0] and len(none.owners["query"]) == 4
    assert none.owners["target"].dtype == torch.int64 == none.keys["target"].dtype
    with pytest.raises(SampleError, match="sample 's' has no item in any of its views"):
        collate([Sample("s", {"query": (), "target": ()})], processor().encode_view)


def encoder(**options: object) -> DualEncoder:
    torch.manual_seed(0)
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
    small |= {"global_pool": "avg", "class_token": False, "fc_norm": False}
    heads = [GaussianHead(Projection(width, 16), LogVariance(width, 16)) for width in (24, 12)]
    return DualEncoder(
        image=TimmImage("vit_tiny_patch16_224", small),
        text=BiRnnText(257, 8, 6),
        image_head=heads[0],
        text_head=heads[1],
        processor=processor(),
        objective=PCMEPP(),
        **options,  # type: ignore[arg-type]
    ).train()


@pytest.mark.parametrize("name", ["query", "target"])
def test_records_are_embedded_whatever_they_lack(name: str) -> None:
    """Prediction takes batches of records as training does."""
    module = encoder().eval()
    with torch.no_grad():
        found = module.predict_step(module.processor(samples(dict.fromkeys(range(4), name))), 0)
        whole = module.predict_step(module.processor(samples({})), 0)
    other = "target" if name == "query" else "query"
    assert len(found[name].vector) == 0 and torch.equal(found[other].vector, whole[other].vector)


OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "chunks": {"chunk_size": 3},
    "momentum": {"momentum": 0.9, "chunk_size": 1},
    "mixing": {"mixing": PictureMixing(share=1.0)},
    "masking": {"masking": MaskedViews(share=0.5, patches=0.5, words=0.5, token=0)},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(
    "gone", [{}, {1: "target", 3: "query"}, dict.fromkeys(range(4), "target"), dict.fromkeys(range(4), "query")]
)
def test_a_model_trains_on_them(option: str, gone: dict[int, str]) -> None:
    """Whatever the batch lacks: the same views, the same fields, a finite loss, a gradient for all that is trained."""
    module = encoder(**OPTIONS[option])
    batch = module.processor(samples(gone))
    encoded = module._encoded(batch)
    expected = set(module._encoded(module.processor(samples({}))).views)
    assert set(encoded.views) == expected == set(encoded.owners) == set(encoded.keys)
    for name, rows in encoded.views.items():
        assert rows.vector.shape == (len(encoded.owners[name]), 16) and rows.vector.dtype == torch.float32
        assert rows.log_var is not None and rows.log_var.shape == rows.vector.shape
    loss = module.objective(encoded, encoded)["loss"]
    assert bool(torch.isfinite(loss)) and (float(loss.detach()) == 0) == (len(set(gone.values())) == 1)
    loss.backward()
    without = [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert all(bool(torch.isfinite(p.grad).all()) for p in module.parameters() if p.grad is not None)
