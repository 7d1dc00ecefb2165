"""ABC: a checkpoint in the official layout gives the official vectors, whatever names its keys have.

The reference is transformers and peft with the authors' few lines around them, one item at a time (official_layout.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import official_layout
import pytest
import torch
import torch.nn.functional as F
from official_layout import AbcReference, picture
from torch import Tensor

from zoo.convert.transformers_folder import load_folder
from zoo.loading import build_model, converter
from zoo.nn.start import start_from
from zoo.types import Batch, Encoded, Item, Sample
from zoo.weights import load_strictly

LEFT, RIGHT = "what is the animal on the left?", "what is the animal on the right?"
WIDE = picture(1, 40, 23)
LARGE = picture(2, 62, 40)  # resized once it would get another grid than resized twice


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AbcReference]:
    """The three repositories on disk, and what wrote them."""
    root = tmp_path_factory.mktemp("hub")
    return root, AbcReference(root)


def encoder(root: Path, stem: str = "abc-qwen2vl") -> Any:
    """The module of the recipe, filled by the recipe's own converter from the recipe's own sources."""
    raw = official_layout.tiny_recipe(stem)
    released = raw["card"]["weights"]["official"]
    folders = [root / source.removeprefix("hf:") for source in released["source"]]
    processor = raw["model"]["init_args"]["processor"]["init_args"]
    processor["tokenizer"] = str(folders[0] / "tokenizer.json")
    module = build_model(raw["model"], stem)
    load_strictly(module, converter(released["convert"])(*map(load_folder, folders)), stem)
    return module.eval()


def embed(module: Any, items: list[Item], view: str = "query") -> Tensor:
    samples = [Sample(str(i), {view: item}) for i, item in enumerate(items)]
    with torch.no_grad():
        vectors: Tensor = module.encode(module.processor(samples).views[view]).vector
    return vectors


ITEMS = [
    Item(text="a dog"),
    Item(images=(WIDE,)),
    Item(images=(WIDE,), instruction=LEFT),
    Item(images=(WIDE,), instruction=RIGHT),
    Item(images=(LARGE,), instruction=LEFT),
    Item(text="Stop! Look: a much longer text, with the token that the official pooling drops!"),
]


def expected(reference: AbcReference) -> Tensor:
    return torch.stack(
        [reference.embed(i.text, i.images[0] if i.images else None, i.instruction) for i in ITEMS]  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("names", ["old", "new"])
def test_vectors_are_the_official_ones(names: str, tmp_path: Path) -> None:
    """One mixed batch: texts, pictures, pictures under an instruction; the adapter is on for the last kind only."""
    reference = AbcReference(tmp_path)
    if names == "old":
        for stage in ("Pretrain", "Instruct"):
            official_layout.with_old_adapter_names(tmp_path / f"TIGER-Lab/ABC-Qwen2VL-{stage}")
            official_layout.as_pickle(tmp_path / f"TIGER-Lab/ABC-Qwen2VL-{stage}")
    else:
        official_layout.with_new_base_names(tmp_path / "Qwen/Qwen2-VL-7B-Instruct")
    vectors = embed(encoder(tmp_path), ITEMS)
    difference = (vectors - expected(reference)).abs().max().item()
    print(f"max difference {difference:.1e}")
    assert difference < 1e-5


def test_adapters_matter_and_are_gated_row_by_row(official: tuple[Path, AbcReference]) -> None:
    """Had a converter lost the adapters, or the gate leaked, the comparison above could pass on tiny differences."""
    root, _ = official
    module = encoder(root)
    gated = embed(module, ITEMS)
    module.adapter.when = "always"
    always = embed(module, ITEMS)
    for layer in module.adapter._layers:
        layer.scaling = dict.fromkeys(layer.scaling, 0.0)
    never = embed(module, ITEMS)
    instructed = torch.tensor([bool(item.instruction) for item in ITEMS])
    torch.testing.assert_close(gated[instructed], always[instructed], atol=1e-6, rtol=0)
    torch.testing.assert_close(gated[~instructed], never[~instructed], atol=1e-6, rtol=0)
    assert (always - never).abs().amax(dim=1).min() > 1e-3


def test_first_stage(official: tuple[Path, AbcReference]) -> None:
    """Base and first adapter, kept as an adapter on both towers, equal what the second stage starts from."""
    root, reference = official
    module = encoder(root, "abc-qwen2vl-pretrain")
    plain = [item for item in ITEMS if not item.instruction]
    kept = torch.tensor([not item.instruction for item in ITEMS])
    torch.testing.assert_close(embed(module, plain), expected(reference)[kept], atol=1e-5, rtol=0)
    assert any("visual" in name and "lora_B" in name for name in module.state_dict())


def test_second_stage_starts_where_the_first_ended(official: tuple[Path, AbcReference]) -> None:
    """Its weights are those of the first with the adapter merged, head and temperature included; its own is new."""
    root, _ = official
    first = encoder(root, "abc-qwen2vl-pretrain")
    plain = [item for item in ITEMS if not item.instruction]
    wanted = embed(first, plain)
    raw = official_layout.tiny_recipe("abc-qwen2vl")
    raw["model"]["init_args"]["processor"]["init_args"]["tokenizer"] = first.processor.tokenizer
    second = build_model(raw["model"], "abc-qwen2vl").eval()
    temperature = first.objective.temperature.parameter.item()
    start_from(second, first, "abc-qwen2vl-pretrain")
    torch.testing.assert_close(embed(second, plain), wanted, atol=1e-5, rtol=0)
    with_instruction, without = ([Item(images=(WIDE,), instruction=i)] for i in (LEFT, None))
    second.adapter.when = "always"
    torch.testing.assert_close(embed(second, without), embed(first, without), atol=1e-5, rtol=0)
    torch.testing.assert_close(embed(second, with_instruction), embed(first, with_instruction), atol=1e-5, rtol=0)
    assert second.objective.temperature.parameter.item() == temperature


def test_head_and_temperature_come_from_the_first_adapter(official: tuple[Path, AbcReference]) -> None:
    root, reference = official
    for stem in ("abc-qwen2vl", "abc-qwen2vl-pretrain"):
        objective = encoder(root, stem).objective
        assert 1 / objective.temperature().item() == pytest.approx(reference.temperature)
        assert reference.temperature != pytest.approx(0.07)


# ---- loss ------------------------------------------------------------------------------------------------------------


def encoded(batch: Batch, vectors: dict[str, Tensor]) -> Encoded:
    from zoo.types import Embedding

    return Encoded(
        views={name: Embedding(v) for name, v in vectors.items()},
        owners=batch.owners,
        keys=batch.keys,
        labels=batch.labels,
        weights=batch.weights,
        sample=torch.arange(len(batch.ids)),
    )


def training_batch(module: Any, negatives: int) -> Batch:
    rows = []
    for i, seed in enumerate((1, 2, 3, 1)):  # the last two share picture or text: the official loss masks nothing
        views: dict[str, Any] = {"query": Item(images=(picture(seed, 24, 24),), instruction=f"what is {i}")}
        views["target"] = Item(text=f"a thing {min(i, 2)}")
        if negatives:
            views["negatives"] = tuple(Item(text=f"not {i} {k}") for k in range(negatives))
        rows.append(Sample(str(i), views))
    batch: Batch = module.processor(rows)
    return batch


@pytest.mark.parametrize(("stem", "negatives"), [("abc-qwen2vl-pretrain", 7), ("abc-qwen2vl", 0)])
def test_loss_is_the_official_one(official: tuple[Path, AbcReference], stem: str, negatives: int) -> None:
    """Scores over own positives, then all negatives, divided by the learned temperature; label smoothing 0.1. fp64."""
    root, _ = official
    module = encoder(root, stem)
    batch = training_batch(module, negatives)
    with torch.no_grad():
        vectors = {name: module.encode(inputs).vector.double() for name, inputs in batch.views.items()}
    module.objective.double()
    candidates = torch.cat([vectors["target"], *([vectors["negatives"]] if negatives else [])])
    for temperature in (0.07, 0.031):
        module.objective.temperature.parameter.data.fill_(temperature)
        scores = vectors["query"] @ candidates.T / temperature
        official_loss = F.cross_entropy(scores, torch.arange(4), label_smoothing=0.1)
        everything = encoded(batch, vectors)
        ours = module.objective(everything, everything)["loss"]
        assert ours.item() == pytest.approx(official_loss.item(), abs=1e-8, rel=0)


def test_temperature_learns_without_a_logarithm(official: tuple[Path, AbcReference]) -> None:
    """The gradient reaches the temperature itself, as in scores / t; and with stage 2's freezing it is not trained."""
    root, _ = official
    module = encoder(root, "abc-qwen2vl-pretrain")
    batch = training_batch(module, 2)
    with torch.no_grad():
        vectors = {name: module.encode(inputs).vector.double() for name, inputs in batch.views.items()}
    module.objective.double()
    everything = encoded(batch, vectors)
    module.objective(everything, everything)["loss"].backward()
    t = module.objective.temperature.parameter.detach().clone().requires_grad_()
    scores = vectors["query"] @ torch.cat([vectors["target"], vectors["negatives"]]).T / t
    F.cross_entropy(scores, torch.arange(4), label_smoothing=0.1).backward()
    torch.testing.assert_close(module.objective.temperature.parameter.grad, t.grad, atol=1e-8, rtol=0)


def test_what_each_stage_trains(official: tuple[Path, AbcReference]) -> None:
    root, _ = official
    for stem, parts in (
        ("abc-qwen2vl-pretrain", {"lora language", "lora vision", "head", "temperature"}),
        ("abc-qwen2vl", {"lora language"}),
    ):
        module = encoder(root, stem)
        module.apply_freeze()
        trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        kinds = {_kind(name) for name in trained}
        assert kinds == parts, stem


def _kind(name: str) -> str:
    if ".lora_" in name:
        return "lora vision" if ".visual." in name else "lora language"
    return {"head": "head", "objective": "temperature"}.get(name.partition(".")[0], name)


def test_candidates_of_the_second_stage_get_no_gradient(official: tuple[Path, AbcReference]) -> None:
    """Their adapters are off, so they stay in the space of the first stage (officially they run without grad)."""
    root, _ = official
    module = encoder(root)
    module.apply_freeze()
    batch = training_batch(module, 0)
    module.encode(batch.views["target"]).vector.square().sum().backward()
    reached = [n for n, p in module.named_parameters() if p.grad is not None and p.grad.any()]
    assert reached == []
