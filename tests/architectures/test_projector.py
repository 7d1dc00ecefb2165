"""Frozen stays frozen and is kept nowhere; cached latents give the vectors of raw inputs; mixing follows the formula."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pair_files import picture
from torch import nn

import zoo.testing
from zoo.architectures.projector import Projector
from zoo.bundle import write_bundle
from zoo.data.processors.dual import DualProcessor
from zoo.data.processors.dual_arrays import Caption, Picture
from zoo.errors import RecipeError, WeightsError
from zoo.loading import load
from zoo.nn.backbones.timm_image import TimmImage
from zoo.nn.backbones.transformers_text import TransformersText
from zoo.nn.heads import Projection
from zoo.nn.latent_heads import InvertedBottleneck, StatesHead, TokensAndPooled, TokensThenMlp, UniversalProjection
from zoo.nn.latent_mixing import LatentMixing
from zoo.objectives.infonce import InfoNCE
from zoo.types import Batch, Item, Sample

TEXT = {
    "vocab_size": 21727,
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
}
VIT = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "global_pool": "avg",
    "class_token": False,
}


def model(folder: Path | None = None, **arguments: Any) -> dict[str, Any]:
    """The `model:` of a recipe; the encoders' weights lie in `folder`, or are random."""
    pretrained = {name: None if folder is None else str(folder / name) for name in ("image", "text")}
    heads = {
        "image": {"class_path": "InvertedBottleneck", "init_args": {"width": 16, "dim": 8, "depth": 2}},
        "text": {"class_path": "Projection", "init_args": {"width": 12, "dim": 8}},
    }
    return {
        "class_path": "Projector",
        "init_args": {
            "processor": {
                "class_path": "DualProcessor",
                "init_args": {
                    "tokenizer": "packaged:emoji-tokenizer.json",
                    "picture": {"size": 32, "resize": "squash"},
                },
            },
            "encoders": {
                "image": {
                    "class_path": "TimmImage",
                    "init_args": {
                        "name": "vit_tiny_patch16_224",
                        "arguments": VIT,
                        "pretrained": pretrained["image"],
                    },
                },
                "text": {
                    "class_path": "TransformersText",
                    "init_args": {"kind": "bert", "config": TEXT, "pretrained": pretrained["text"]},
                },
            },
            "heads": heads,
            "objective": {"class_path": "InfoNCE"},
            **arguments,
        },
    }


def projector(**arguments: Any) -> Projector:
    torch.manual_seed(0)
    heads = {"image": InvertedBottleneck(16, 8, depth=1, dropout=0.1), "text": Projection(12, 8)}
    options: dict[str, Any] = {"heads": heads, "objective": InfoNCE(0.1)} | arguments
    processor = DualProcessor(
        "packaged:emoji-tokenizer.json", Picture(size=32, resize="squash"), Caption(max_length=32)
    )
    encoders = {"image": TimmImage("vit_tiny_patch16_224", VIT), "text": TransformersText("bert", TEXT)}
    return Projector(encoders, processor=processor, **options)


def samples(count: int = 6) -> list[Sample]:
    return [
        Sample(f"s{i}", {"query": Item(images=(picture(i, (20, 30)),)), "target": Item(text=f"thing {i}")}, label=-1)
        for i in range(count)
    ]


@pytest.mark.parametrize("kind", ["plain", "tokens", "universal"])
def test_contract(kind: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {}
    if kind == "tokens":
        arguments = {
            "heads": {"image": TokensAndPooled(16, 8), "text": TokensThenMlp(12, 8)},
            "tokens": ["image", "text"],
        }
    if kind == "universal":
        arguments = {"universal": UniversalProjection(8, ["image", "text"])}
    module = projector(**arguments)
    zoo.testing.check_embedding(module)
    zoo.testing.check_batch_invariance(module)
    zoo.testing.check_training(module)
    zoo.testing.check_export(module, tmp_path)


def test_encoders_are_frozen() -> None:
    module = projector().train()
    before = {name: value.clone() for name, value in module.encoders.state_dict().items()}
    assert module.heads.training and not any(part.training for part in module.encoders.modules())
    optimizer = module.configure_optimizers()
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not any(id(p) in trained or p.requires_grad for p in module.encoders.parameters())
    encoded = module._encoded(module.processor(samples()))
    module.objective(encoded, encoded)["loss"].backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in module.encoders.state_dict().items())


@pytest.mark.parametrize("tokens", [False, True])
def test_latents_stand_for_raw_inputs(tokens: bool) -> None:
    heads = {"image": TokensAndPooled(16, 8), "text": TokensThenMlp(12, 8)} if tokens else None
    module = projector(**({"heads": heads, "tokens": ["image", "text"]} if heads else {})).eval()
    batch = module.processor(samples())
    for inputs in batch.views.values():
        latents = module.latents(inputs)
        assert not {"pixels", "input_ids"} & set(latents)
        assert torch.equal(
            module.latents(latents)[next(k for k in latents if k.endswith("pooled"))],
            next(v for k, v in latents.items() if k.endswith("pooled")),
        )
        torch.testing.assert_close(module.encode(latents).vector, module.encode(inputs).vector)
        parts = [module.encode(part).vector for part in module.processor.split(latents, 4)]
        torch.testing.assert_close(torch.cat(parts), module.encode(inputs).vector)


def test_mixing_is_the_formula_on_latents() -> None:
    """Same share and partners on both sides; owners, keys and labels belong to the mixtures; of 7 samples one is left."""
    module = projector(mixing=LatentMixing(), heads={"image": Projection(16, 8), "text": Projection(12, 8)}).train()
    batch = module.processor(samples(7))
    torch.manual_seed(3)
    share = float(torch.distributions.Beta(1.0, 1.0).sample())
    torch.manual_seed(3)
    encoded = module._encoded(batch)
    assert len(encoded.sample) == 4
    for view in ("query", "target"):
        name = "image" if view == "query" else "text"
        latents = module.latents(batch.views[view])[f"{name}_pooled"]
        rows = [share * latents[i] + (1 - share) * latents[i + 3] for i in range(3)] + [latents[6]]
        expected = nn.functional.normalize(module.heads[name](torch.stack(rows)), dim=-1)
        torch.testing.assert_close(encoded.views[view].vector, expected)
        assert encoded.owners[view].tolist() == [0, 1, 2, 3]
    assert module.eval()._encoded(batch).views["query"].vector.shape[0] == 7


def test_a_mixture_is_a_duplicate_where_both_parents_are() -> None:
    owner = torch.arange(4)
    view = {"rows": owner, "image_rows": owner, "image_pooled": torch.randn(4, 3)}
    labels = torch.tensor([5, 5, 6, 6])
    batch = Batch(
        {"query": view},
        {"query": owner},
        {"query": torch.tensor([1, 1, 2, 2])},
        labels,
        torch.ones(4),
        [*"abcd"],
        [""] * 4,
    )
    mixed = LatentMixing()(batch)
    assert mixed.keys["query"][0] == mixed.keys["query"][1] and mixed.labels[0] == mixed.labels[1] >= 0
    assert mixed.ids == ["a + c", "b + d"]
    other = LatentMixing()(
        Batch(
            **{name: getattr(batch, name) for name in ("views", "owners", "weights", "ids", "sources")},
            keys={"query": torch.tensor([1, 1, 2, 3])},
            labels=torch.tensor([5, 5, 6, -1]),
        )
    )
    assert other.keys["query"][0] != other.keys["query"][1] and other.labels.tolist()[1] == -1


def test_mixing_refuses_what_it_cannot_mix() -> None:
    module = projector(mixing=LatentMixing()).train()
    both = [Sample("x", {"query": Item("a", (picture(1),)), "target": Item(text="b")}) for _ in range(2)]
    with pytest.raises(RecipeError, match="one part of one modality per sample; the view 'query'"):
        module._encoded(module.processor(both))
    with pytest.raises(RecipeError, match="alpha is 0"):
        LatentMixing(0.0)


def test_as_many_rows_as_samples_are_not_one_of_each() -> None:
    """One sample has two texts and another one none: rows would be mixed with those of other samples."""
    given = [Sample(f"s{i}", {"query": Item(images=(picture(i),)), "target": Item(text=f"word {i}")}) for i in range(4)]
    texts = given[0].views["target"]
    given[0] = Sample("s0", {"query": given[0].views["query"], "target": (texts, Item(text="again"))})
    given[1] = Sample("s1", {"query": given[1].views["query"], "target": ()})
    module = projector(mixing=LatentMixing()).train()
    with pytest.raises(RecipeError, match="needs one row per sample; the view 'target' has 4 rows of 3 of 4 samples"):
        module._encoded(module.processor(given))


def test_mixing_encodes_no_more_rows_at_a_time_than_a_chunk_has() -> None:
    """The same latents are mixed, and the same vectors come of it."""
    seen, found = [], []
    module = projector(mixing=LatentMixing(), heads={"image": Projection(16, 8), "text": Projection(12, 8)}).train()
    for encoder in module.encoders.values():
        encoder.register_forward_pre_hook(lambda _, inputs: seen.append((module.chunk_size, len(inputs[0]))))
    for size in (None, 2):
        module.chunk_size = size
        torch.manual_seed(3)
        encoded = module._encoded(module.processor(samples(7)))
        found.append({name: e.vector for name, e in encoded.views.items()})
    assert max(rows for size, rows in seen if size is None) == 7
    assert max(rows for size, rows in seen if size) == 2
    for name, vectors in found[0].items():
        torch.testing.assert_close(found[1][name], vectors)


def test_encoders_and_heads_must_belong_together() -> None:
    with pytest.raises(RecipeError, match="needs both for each"):
        projector(heads={"image": Projection(16, 8)})
    with pytest.raises(RecipeError, match="`tokens` names"):
        projector(tokens=["audio"])
    with pytest.raises(RecipeError, match=r"the heads of \['image'\] look at tokens"):
        projector(heads={"image": TokensAndPooled(16, 8), "text": TokensThenMlp(12, 8)}, tokens=["text"])


def test_bundles_hold_heads_alone_and_refuse_other_encoders(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from zoo.loading import build_model

    torch.manual_seed(0)
    first = build_model(model(), "first")
    for name, tower in first.encoders.items():
        (tmp_path / name).mkdir()
        state = {key: value.contiguous() for key, value in tower.model.state_dict().items()}
        save_file(state, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "bert"}), "utf-8")
    recipe = {"card": {"title": "t", "family": "projector", "license": "MIT"}, "model": model(tmp_path)}
    module = build_model(recipe["model"], "mine")
    module.setup("fit")
    folder = write_bundle(module, recipe, tmp_path / "bundle")
    assert all(key.startswith(("heads.", "objective.")) for key in load_file(folder / "model.safetensors"))
    loaded = load(f"path:{folder}")
    assert torch.equal(torch.from_numpy(loaded.encode("thing 3")), _encoded(module, "thing 3"))
    half = load(f"path:{folder}", dtype="bfloat16")
    assert torch.from_numpy(half.encode("thing 3")) @ _encoded(module, "thing 3") > 0.99
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    assert all(key.startswith(("heads.", "objective.")) for key in checkpoint["state_dict"])
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    measured = build_model(recipe["model"], "mine")
    measured.setup("validate")  # which reads the encoders, as a checkpoint does not bring them
    measured.on_load_checkpoint(checkpoint)
    measured.load_state_dict(checkpoint["state_dict"])
    assert torch.equal(_encoded(measured, "thing 3"), _encoded(module, "thing 3"))
    changed = load_file(tmp_path / "text" / "model.safetensors")
    changed["embeddings.word_embeddings.weight"][0] += 1
    save_file(changed, tmp_path / "text" / "model.safetensors")
    with pytest.raises(WeightsError, match=r"'encoders\.text' has other weights than those that the bundle 'bundle'"):
        load(f"path:{folder}")


def _encoded(module: Projector, text: str) -> torch.Tensor:
    inputs = module.processor([Sample("x", {"query": Item(text=text)})]).views["query"]
    with torch.inference_mode():
        return module.eval().encode(inputs).vector[0].clone()


def test_a_head_on_states_is_told_apart() -> None:
    assert isinstance(TokensAndPooled(4, 2), StatesHead) and not isinstance(Projection(4, 2), StatesHead)
