"""Contract checks for architectures and recipes: our own tests and third parties run the same.

    import zoo.testing
    zoo.testing.check_architecture(module)        # every check below, on a module with random weights
    zoo.testing.check_export(module, folder)

Each check raises AssertionError saying what does not hold.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from zoo.errors import ZooError
from zoo.module import EmbeddingModule
from zoo.types import Embedding, Item, Sample

PROCESSOR_BYTES = 20_000_000  # a processor travels to every worker; a tokenizer may weigh this much, weights may not


def example_items(seed: int = 0) -> list[Item]:
    """Items of every kind: text short and long, pictures of several sizes, several pictures, instructions."""
    generator = np.random.default_rng(seed)

    def picture(width: int, height: int) -> Image.Image:
        return Image.fromarray(generator.integers(0, 255, (height, width, 3), dtype=np.uint8))

    return [
        Item(text="a cat"),
        Item(images=(picture(64, 64),)),
        Item(text="a much longer text about a red dog that swims in the sea at night"),
        Item(text="what is this", images=(picture(80, 40),), instruction="find the matching text"),
        Item(images=(picture(32, 64), picture(64, 32)), text="two pictures"),
        Item(text="dog", instruction="find the matching picture"),
    ]


def example_samples(count: int = 4, seed: int = 0, mixed: bool = False) -> list[Sample]:
    """Training samples of a query picture (if `mixed`, every second one with a text) and a target text."""
    generator = np.random.default_rng(seed)
    texts = ["a cat", "red dog", "find a red cat", "a dog find"]
    sizes = [(64, 64), (32, 64), (80, 40), (48, 48)]
    pictures = [generator.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]
    return [
        Sample(
            str(i),
            {
                "query": Item("find" if mixed and i % 2 else None, (Image.fromarray(pictures[i % 4]),)),
                "target": Item(text=texts[i % 4] + " cat" * (i // 4)),
            },
        )
        for i in range(count)
    ]


def training_samples(module: EmbeddingModule) -> list[Sample]:
    """The example samples; every second query is picture and text together, where the model takes that."""
    mixed = example_samples(mixed=True)
    try:
        encoded = module.train()._encoded(module.processor(mixed))
        if module.objective is not None:
            module.objective(encoded, encoded)
        return mixed
    except ZooError:
        return example_samples()


def accepted_items(module: EmbeddingModule) -> list[Item]:
    """The example items that the model takes (not every one has a place for instructions); AssertionError for none."""
    accepted = []
    for item in example_items():
        try:
            embed_items(module, [item])
            accepted.append(item)
        except ZooError:
            continue
    assert len(accepted) > 1, "the model takes none of the example items: neither texts nor pictures"
    return accepted


def embed_items(module: EmbeddingModule, items: Sequence[Item], view: str = "query") -> Embedding:
    """Encode items as one batch, without gradients."""
    samples = [Sample(f"item {i}", {view: item}) for i, item in enumerate(items)]
    with torch.inference_mode():
        return module.eval().encode(module.processor(samples).views[view])


def check_embedding(module: EmbeddingModule, items: Sequence[Item] | None = None) -> None:
    """One row per item, unit norm, fp32, finite."""
    items = items or accepted_items(module)
    vector = embed_items(module, items).vector
    assert vector.ndim == 2 and len(vector) == len(items), (
        f"{len(items)} items gave vectors of shape {tuple(vector.shape)}"
    )
    assert vector.dtype == torch.float32, f"vectors are {vector.dtype}, not float32"
    norms = vector.norm(dim=1)
    assert torch.isfinite(vector).all(), "vectors are not finite"
    assert (norms - 1).abs().max() < 1e-5, f"vectors have norms {norms.tolist()}"


def check_batch_invariance(module: EmbeddingModule, tolerance: float = 1e-5) -> None:
    """An item's vector does not depend on its batch: together, one by one, and in another order."""
    items = accepted_items(module)
    together = embed_items(module, items).vector
    alone = torch.cat([embed_items(module, [item]).vector for item in items])
    turned = embed_items(module, items[::-1]).vector.flip(0)
    worst = max((together - alone).abs().max().item(), (together - turned).abs().max().item())
    assert worst <= tolerance, f"vectors differ by {worst:.2e} between batch and single item"
    assert torch.equal(together, embed_items(module, items).vector), "encoding the same batch twice gives other vectors"


def check_gradients(module: EmbeddingModule) -> None:
    """Every trainable parameter gets a gradient from one training batch."""
    module.train()
    module.zero_grad()
    batch = module.processor(training_samples(module))
    encoded = module._encoded(batch)
    assert module.objective is not None, "the module has no objective"
    module.objective(encoded, encoded)["loss"].backward()
    without = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, f"no gradient reaches {without}"
    module.zero_grad()


def check_learns(module: EmbeddingModule, steps: int = 20) -> None:
    """A few steps on one batch lower the loss: the mean of the last five against that of the first five, since dropout and
    mixing draw anew in each.
    """
    module.train()
    batch = module.processor(training_samples(module))
    assert module.objective is not None, "the module has no objective"
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(steps):
        encoded = module._encoded(batch)
        loss = module.objective(encoded, encoded)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    first, last = (sum(part) / len(part) for part in (losses[:5], losses[-5:]))
    assert last < first, f"the loss went from {first:.4f} to {last:.4f} in {steps} steps"


def check_chunking(module: EmbeddingModule, tolerance: float = 1e-6) -> None:
    """The gradient in chunks equals the gradient of the whole batch: relative error in the 2-norm.

    Measured in fp64, because sums formed in another order round differently; and without dropout and with fixed batch
    norms, which in training draw from, and average over, each chunk by itself. What is done to a batch before it is encoded
    (mixing, masked views) is as in training, with the same random numbers each time.
    """
    assert module.objective is not None, "the module has no objective"
    samples = training_samples(module)
    double = copy.deepcopy(module).double().eval()
    double.training = True
    batch = double.processor(samples)
    for inputs in batch.views.values():
        inputs.update({name: value.double() for name, value in inputs.items() if value.is_floating_point()})
    gradients = []
    for size in (None, 1, 3):
        double.chunk_size = size
        torch.manual_seed(0)
        double.zero_grad()
        encoded = double._encoded(batch)
        assert double.objective is not None
        double.objective(encoded, encoded)["loss"].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in double.parameters() if p.grad is not None]))
    scale = gradients[0].norm()
    for size, gradient in zip((1, 3), gradients[1:], strict=True):
        worst = ((gradient - gradients[0]).norm() / scale).item()
        assert worst <= tolerance, f"chunks of {size} change the gradient by {worst:.2e} of its norm"


def check_processor(module: EmbeddingModule) -> None:
    """The processor survives pickling, small, and gives the same tensors afterwards."""
    samples = training_samples(module)
    first = module.processor(samples)
    data = pickle.dumps(module.processor)
    assert len(data) < PROCESSOR_BYTES, f"the processor pickles to {len(data)} bytes: it must not hold weights"
    second = pickle.loads(data)(samples)
    for view, inputs in first.views.items():
        for name, value in inputs.items():
            assert torch.equal(value, second.views[view][name]), f"{view}/{name} differs after pickling the processor"


def check_state(module: EmbeddingModule) -> None:
    """State saved and loaded into the same module after disturbing it gives the same vectors."""
    items = accepted_items(module)
    expected = embed_items(module, items).vector
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1)
    assert not torch.allclose(expected, embed_items(module, items).vector), "vectors ignore the parameters"
    file.seek(0)
    module.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(expected, embed_items(module, items).vector), "saving and loading changed the vectors"


def check_training(module: EmbeddingModule) -> None:
    """What depends on the objective: gradients, chunks, learning. The module is trained a little."""
    check_gradients(module)
    check_chunking(module)
    check_learns(module)


def check_architecture(module: EmbeddingModule) -> None:
    """All checks but export. The module is trained a little by them."""
    check_embedding(module)
    check_batch_invariance(module)
    check_processor(module)
    check_state(module)
    check_training(module)


def check_export(module: EmbeddingModule, folder: Path, tolerance: float = 1e-4) -> None:
    """Every graph, in ONNX Runtime, at every example size, equals torch within `tolerance`. Of a probabilistic module, the
    runtime without torch does, too, if there is one for its processor.
    """
    from zoo.export.verify import export_and_verify

    if _probabilistic(module) and callable(getattr(module.processor, "export", None)):
        check_gaussian_runtime(module, folder, tolerance)
        return
    errors = export_and_verify(module.eval().export_graphs(), folder, tolerance=tolerance)
    for name, error in errors.items():
        assert error <= tolerance, f"graph '{name}' differs from torch by {error:.2e}"


def check_variances(module: EmbeddingModule) -> None:
    """Graphs that give vectors give log-variances exactly if `encode` does."""
    expected = _probabilistic(module)
    for graph in module.export_graphs():
        if "embeddings" in graph.outputs:
            assert ("log_var" in graph.outputs) == expected, (
                f"graph '{graph.name}' has the outputs {', '.join(graph.outputs)}, but `encode` gives vectors "
                f"{'with' if expected else 'without'} log-variances"
            )


def check_gaussian_runtime(module: EmbeddingModule, folder: Path, tolerance: float = 1e-4) -> None:
    """A probabilistic module, exported into `folder`, gives torch's means and log-variances without torch within `tolerance`
    (relative to the largest of them where that is above 1), for every example item that it takes.
    """
    from zoo.embedder import Embedder
    from zoo.export.folder import export_embedder, import_runtime
    from zoo.export.verify import max_difference

    check_variances(module)
    embedder = Embedder(module, {}, name="the checked module", weights=None)
    export_embedder(embedder, folder, tolerance=tolerance)
    runtime, items = import_runtime(folder), accepted_items(module)
    given = [runtime.Item(item.text, item.images, item.instruction) for item in items]
    found = runtime.Embedder(folder).encode_gaussian(given)
    for name, values, expected in zip(("means", "log-variances"), found, embedder.encode_gaussian(items), strict=True):
        error = max_difference(values, expected)
        assert error <= tolerance, f"{name} of the exported runtime differ from torch by {error:.2e}"


def _probabilistic(module: EmbeddingModule) -> bool:
    return embed_items(module, accepted_items(module)).log_var is not None
