"""VLM2Vec: a checkpoint in the official layout (Qwen2-VL and a DoRA adapter) gives the official vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import official_layout
import pytest
import torch
import torch.nn.functional as F
from official_layout import Vlm2VecReference, picture
from torch import Tensor

from zoo.convert import vlm2vec
from zoo.convert.transformers_folder import Checkpoint, load_folder
from zoo.loading import build_model
from zoo.types import Embedding, Encoded, Item, Sample
from zoo.weights import load_strictly

WIDE, TALL = picture(1, 40, 23), picture(2, 20, 46)
QUERIES = {
    "<|image_pad|> Represent the given image for classification\n": Item(
        images=(WIDE,), instruction="Represent the given image for classification"
    ),
    "<|image_pad|> Answer: what is it?\n": Item(images=(TALL,), instruction="Answer:", text="what is it?"),
    "Find me an everyday image: a man, and a dog\n": Item(
        instruction="Find me an everyday image:", text="a man, and a dog"
    ),
}
TARGETS = {
    "a cat": Item(text="a cat"),
    "<|image_pad|> Represent the given image.": Item(images=(TALL,), instruction="Represent the given image."),
    "a much longer label than all the others": Item(text="a much longer label than all the others"),
}


def encoder(root: Path, **changes: Any) -> Any:
    """The recipe's module; `changes` replace init arguments."""
    raw = official_layout.tiny_recipe("vlm2vec-qwen2vl-2b")
    arguments = raw["model"]["init_args"]
    arguments["processor"]["init_args"]["tokenizer"] = str(root / "Qwen/Qwen2-VL-2B-Instruct/tokenizer.json")
    return build_model({"class_path": "VlmEncoder", "init_args": arguments | changes}, "vlm2vec").eval()


def checkpoints(root: Path) -> list[Checkpoint]:
    sources = official_layout.recipe("vlm2vec-qwen2vl-2b")["card"]["weights"]["official"]["source"]
    return [load_folder(root / source.removeprefix("hf:")) for source in sources]


def fill(module: Any, state: dict[str, Tensor]) -> None:
    """Strictly, but for the temperature: it is fixed, so no release holds it."""
    load_strictly(module, state, "official", {"objective.temperature.parameter", "objective.temperature.kind"})


def embed(module: Any, items: list[Item], view: str) -> Tensor:
    samples = [Sample(str(i), {view: item}) for i, item in enumerate(items)]
    with torch.no_grad():
        vectors: Tensor = module.encode(module.processor(samples).views[view]).vector
    return vectors


def difference(module: Any, reference: Vlm2VecReference) -> float:
    """Largest one over a mixed batch of queries and one of targets."""
    found = torch.cat([embed(module, list(QUERIES.values()), "query"), embed(module, list(TARGETS.values()), "target")])
    pictures = {p: i.images[0] if i.images else None for p, i in (QUERIES | TARGETS).items()}
    wanted = torch.stack([reference.embed(prompt, image) for prompt, image in pictures.items()])  # type: ignore[arg-type]
    return (found - wanted).abs().max().item()


@pytest.mark.parametrize("names", ["old", "new"])
def test_vectors_are_the_official_ones(names: str, tmp_path: Path) -> None:
    reference = Vlm2VecReference(tmp_path)
    if names == "old":  # as released
        official_layout.with_old_adapter_names(tmp_path / "TIGER-Lab/VLM2Vec-Qwen2VL-2B")
        official_layout.as_pickle(tmp_path / "TIGER-Lab/VLM2Vec-Qwen2VL-2B")
    else:
        official_layout.with_new_base_names(tmp_path / "Qwen/Qwen2-VL-2B-Instruct")
    module = encoder(tmp_path)
    fill(module, vlm2vec.with_adapter(*checkpoints(tmp_path)))
    worst = difference(module, reference)
    print(f"max difference {worst:.1e}")
    assert worst < 1e-5


def test_the_adapter_reaches_what_theirs_reaches(tmp_path: Path) -> None:
    """Their list of suffixes and our full paths choose the same layers: q, k, v, o and down of the language model."""
    reference = Vlm2VecReference(tmp_path)
    theirs = {_layer(name) for name in reference.peft.state_dict() if "lora_A" in name}
    ours = {_layer(name) for name in encoder(tmp_path).state_dict() if "lora_A" in name}
    assert ours == theirs and len(ours) == 10


def _layer(name: str) -> str:
    return name.partition(".lora_A")[0].rpartition("model.")[2]


@pytest.mark.parametrize("dora", [True, False])
def test_merged_and_attached_are_the_same_model(dora: bool, tmp_path: Path) -> None:
    """Also where the adapter's alpha is not the recipe's: the scale is read from adapter_config.json."""
    reference = Vlm2VecReference(tmp_path, use_dora=dora, alpha=20)
    plain = encoder(tmp_path, adapter=None)
    fill(plain, vlm2vec.without_adapter(*checkpoints(tmp_path)))
    assert difference(plain, reference) < 1e-5
    adapter = official_layout.recipe("vlm2vec-qwen2vl-2b")["model"]["init_args"]["adapter"]
    kept = encoder(tmp_path, adapter=adapter | {"dora": dora})
    fill(kept, vlm2vec.with_adapter(*checkpoints(tmp_path)))
    assert difference(kept, reference) < 1e-5


def test_a_release_that_is_merged_already(tmp_path: Path) -> None:
    reference = Vlm2VecReference(tmp_path)
    reference.merge()
    official_layout.save_base(reference.model, tmp_path / "merged")
    plain = encoder(tmp_path, adapter=None)
    fill(plain, vlm2vec.without_adapter(load_folder(tmp_path / "merged")))
    assert difference(plain, reference) < 1e-5


def test_fitting_starts_from_the_base_with_an_adapter_that_does_nothing(tmp_path: Path) -> None:
    """`load_pretrained` finds the weights below the adapters; DoRA's magnitudes are those of the weights just read."""
    reference = Vlm2VecReference(tmp_path)
    module = encoder(tmp_path)
    module.backbone.pretrained = str(tmp_path / "Qwen/Qwen2-VL-2B-Instruct")
    module.setup("fit")
    with reference.peft.disable_adapter():
        assert difference(module, reference) < 1e-5
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trained and all(".lora_" in name and ".language_model." in name for name in trained)


def test_loss_is_the_official_one() -> None:
    """One-sided, every target of the batch, temperature 0.02 which is not learned; fp64."""
    module = build_objective()
    generator = torch.Generator().manual_seed(0)
    query, target = (F.normalize(torch.randn(6, 16, generator=generator, dtype=torch.float64), dim=1) for _ in range(2))
    rows = torch.arange(6)
    everything = Encoded(
        views={"query": Embedding(query), "target": Embedding(target)},
        owners={"query": rows, "target": rows},
        keys={"query": rows, "target": torch.zeros_like(rows)},  # equal targets are not masked by the official loss
        labels=torch.full((6,), -1),
        weights=torch.ones(6, dtype=torch.float64),
        sample=rows,
    )
    official = F.cross_entropy(query @ target.T / module.temperature.parameter.item(), rows)
    assert module.temperature.parameter.item() == pytest.approx(0.02, rel=1e-7)  # fp32
    assert module(everything, everything)["loss"].item() == pytest.approx(official.item(), abs=1e-8, rel=0)
    assert not any(parameter.requires_grad for parameter in module.parameters())


def build_objective() -> Any:
    from zoo.objectives.infonce import InfoNCE

    arguments = official_layout.recipe("vlm2vec-qwen2vl-2b")["model"]["init_args"]["objective"]
    assert arguments["class_path"] == "InfoNCE"
    return InfoNCE(**arguments["init_args"]).double()
