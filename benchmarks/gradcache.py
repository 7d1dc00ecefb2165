"""A training step with chunked gradients against the direct step, and against sentence-transformers' cached loss.

    python benchmarks/gradcache.py

One text encoder (BERT, 6 layers, 384 wide, random weights without dropout), 256 pairs of 32 tokens, chunks of 32. Gradients
must agree to 1e-5 of their norm first.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from alternating import alternate, machine, row
from torch import Tensor, nn

from zoo.module import EmbeddingModule
from zoo.nn.backbones.transformers_text import TransformersText
from zoo.objectives.infonce import InfoNCE
from zoo.types import Batch, Embedding, Inputs

ROWS, LENGTH, CHUNK = 256, 32, 32
CONFIG = {
    "vocab_size": 5000,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


class Rows:
    """Cuts plain tensors into chunks."""

    def __call__(self, samples: list) -> Batch:  # type: ignore[type-arg]
        raise NotImplementedError("this benchmark makes its tensors itself")

    def split(self, inputs: Inputs, size: int) -> list[Inputs]:
        return [
            {name: value[i : i + size] for name, value in inputs.items()} for i in range(0, len(inputs["ids"]), size)
        ]


class Encoder(EmbeddingModule):
    def __init__(self) -> None:
        super().__init__(processor=Rows(), objective=InfoNCE(0.05))
        self.text = TransformersText("bert", CONFIG)

    def encode(self, inputs: Inputs) -> Embedding:
        pooled = self.text(inputs["ids"], torch.ones_like(inputs["ids"])).pooled
        return Embedding(nn.functional.normalize(pooled, dim=-1))


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 5000, (2, ROWS, LENGTH), generator=generator)
    number = torch.arange(ROWS)
    marks = {"query": number, "target": number}
    views = {"query": {"ids": ids[0]}, "target": {"ids": ids[1]}}
    return Batch(views, marks, marks, torch.full((ROWS,), -1), torch.ones(ROWS), [""] * ROWS, [""] * ROWS)


def gradient(module: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def step(module: Encoder, data: Batch, chunk: int | None) -> None:
    module.chunk_size = chunk
    module.zero_grad()
    encoded = module._encoded(data)
    assert module.objective is not None
    module.objective(encoded, encoded)["loss"].backward()


def sentence_transformers_step(module: Encoder, data: Batch):  # type: ignore[no-untyped-def]
    """Their step on the same weights: (run, its parameters)."""
    from sentence_transformers import SentenceTransformer, losses
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertTokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        module.text.model.save_pretrained(folder)
        (folder / "vocab.txt").write_text(
            "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(4995))])
        )
        BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
        transformer = Transformer(str(folder))
        pooling = Pooling(transformer.get_embedding_dimension(), "mean")
        model = SentenceTransformer(modules=[transformer, pooling], device="cpu")
    loss = losses.CachedMultipleNegativesRankingLoss(model, scale=20.0, mini_batch_size=CHUNK)
    features = [
        {"input_ids": data.views[name]["ids"], "attention_mask": torch.ones_like(data.views[name]["ids"])}
        for name in ("query", "target")
    ]

    def run() -> None:
        model.zero_grad()
        loss([dict(f) for f in features], torch.arange(ROWS)).backward()

    return run, model


def main() -> None:
    torch.manual_seed(0)
    module, data = Encoder(), batch()
    print(machine())
    step(module, data, None)
    direct = gradient(module)
    step(module, data, CHUNK)
    worst = float((gradient(module) - direct).norm() / direct.norm())
    assert worst < 1e-5, worst
    ours, theirs = alternate(lambda: step(module, data, CHUNK), lambda: step(module, data, None))
    print("| step | chunked s | other s | other / chunked | equality |\n|---|---|---|---|---|")
    print(row("chunked vs direct", ours, theirs, f"gradients {worst:.0e}"))
    run, model = sentence_transformers_step(module, data)
    run()
    mine = {n.removeprefix("text.model."): p.grad for n, p in module.named_parameters() if p.grad is not None}
    peer = {
        n.partition(".")[2].removeprefix("auto_model.").removeprefix("model."): p.grad
        for n, p in model.named_parameters()
    }
    shared = [n for n in mine if n in peer and peer[n] is not None]
    assert len(shared) > 50, (list(mine)[:3], list(peer)[:3])
    both = [torch.cat([side[n].flatten() for n in shared]) for side in (mine, peer)]
    worst = float((both[0] - both[1]).norm() / both[0].norm())
    assert worst < 1e-5, worst
    ours, theirs = alternate(lambda: step(module, data, CHUNK), run)
    print(row("vs sentence-transformers CachedMultipleNegativesRankingLoss", ours, theirs, f"gradients {worst:.0e}"))


if __name__ == "__main__":
    main()
