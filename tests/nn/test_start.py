"""What a further stage of training takes over from the model that it starts from, and what begins anew."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from pair_files import picture
from torch import nn
from toy import build

from zoo import load
from zoo.architectures.dual_encoder import DualEncoder
from zoo.data.processors.dual import DualProcessor
from zoo.data.processors.dual_arrays import Caption, Picture
from zoo.errors import RecipeError, WeightsError
from zoo.nn.adapters import Lora
from zoo.nn.backbones.timm_image import TimmImage
from zoo.nn.conditioned_pooling import ConditionedPooling
from zoo.nn.heads import Projection
from zoo.nn.partial_pairs import PartialPairs
from zoo.nn.recurrent import BiRnnText
from zoo.nn.start import start_from
from zoo.objectives.combined import Weighted
from zoo.objectives.flair import Flair
from zoo.objectives.infonce import InfoNCE
from zoo.objectives.objective import Objective
from zoo.objectives.pcme import PCME
from zoo.objectives.pcmepp import PCMEPP
from zoo.objectives.prolip import ProLIP
from zoo.objectives.siglip import SigLIP
from zoo.objectives.soft_targets import MomentumDistillation, SoftenedInfoNCE
from zoo.testing import embed_items
from zoo.types import Item

# ---- the objective ---------------------------------------------------------------------------------------------------


def trained(objective: Any) -> Any:
    """As after some steps: every number is another one, also those that count."""
    with torch.no_grad():
        for parameter in objective.parameters():
            if parameter.requires_grad:
                parameter.mul_(0.9)
        for name, buffer in objective.named_buffers():
            if not name.endswith("kind"):
                buffer.add_(3)
    return objective


def started(tmp_path: Path, old: Objective | None, new: Objective | None, fresh: tuple[str, ...] = ()) -> Any:
    model = build(tmp_path, seed=1, objective=new)
    other = build(tmp_path, seed=2, objective=trained(old) if old is not None else None)
    start_from(model, other, "the old one", fresh)
    assert torch.equal(model.linear.weight, other.linear.weight)
    return model.objective


# pairs whose numbers mean something else, or belong to something else: the new objective starts as it says
APART: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "log to no": (lambda: InfoNCE(0.07, "log"), lambda: InfoNCE(0.02, "no")),
    "log to linear": (lambda: InfoNCE(0.07, "log"), lambda: InfoNCE(0.02, "linear")),
    "no to log": (lambda: InfoNCE(0.05, "no"), lambda: InfoNCE(0.02, "log")),
    "another fixed number": (lambda: InfoNCE(0.05, "no"), lambda: InfoNCE(0.02, "no")),
    "InfoNCE to SigLIP": (lambda: InfoNCE(0.05, "log"), lambda: SigLIP(0.1, -4.0)),
    "SigLIP to InfoNCE": (lambda: SigLIP(0.1, -4.0), lambda: InfoNCE(0.02, "log")),
    "SigLIP to ProLIP": (lambda: SigLIP(0.1, -4.0), lambda: ProLIP(0.2, -3.0)),
    "SigLIP to a fixed one": (lambda: SigLIP(0.1, -4.0), lambda: SigLIP(0.2, -3.0, "no")),
    "PCME++ to a fixed one": (lambda: PCMEPP(5.0, 5.0), lambda: PCMEPP(4.0, 3.0, "no")),
    "a fixed PCME to one that learns": (lambda: PCME(15.0, 15.0, "no"), lambda: PCME(14.0, 13.0)),
    "one to several": (lambda: InfoNCE(0.05, "log"), lambda: Weighted({"a": InfoNCE(0.02, "log")})),
    "none to one": (lambda: None, lambda: InfoNCE(0.02, "log")),
}


@pytest.mark.parametrize("name", APART)
def test_objectives_that_keep_something_else_start_as_they_say(tmp_path: Path, name: str) -> None:
    old, new = APART[name]
    found, wanted = started(tmp_path, old(), new()).state_dict(), new().state_dict()
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key


def test_an_objective_is_dropped_where_there_is_none(tmp_path: Path) -> None:
    assert started(tmp_path, SigLIP(), None) is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: InfoNCE(0.07, "log"),
        lambda: InfoNCE(0.07, "linear"),
        lambda: SigLIP(0.1, -4.0),
        lambda: PCME(),
        lambda: Weighted({"a": InfoNCE(0.05, "log"), "b": SigLIP()}),
        lambda: Flair(ConditionedPooling(4, 2)),
    ],
)
def test_what_is_learned_in_the_same_way_comes_along(tmp_path: Path, make: Callable[[], Any]) -> None:
    found = dict(started(tmp_path, make(), make()).named_parameters())
    for name, value in make().named_parameters():
        assert value.requires_grad
        if not name.startswith("pooling"):
            torch.testing.assert_close(found[name], value * 0.9)


def test_a_learned_part_of_the_objective_comes_along(tmp_path: Path) -> None:
    old, new = (Flair(ConditionedPooling(4, 2)) for _ in range(2))
    wanted = {name: p * 0.9 for name, p in old.pooling.named_parameters()}
    assert not torch.allclose(new.pooling.attn.in_proj_weight, wanted["attn.in_proj_weight"])
    started(tmp_path, old, new)
    for name, value in new.pooling.named_parameters():
        torch.testing.assert_close(value, wanted[name])


def test_parts_of_a_sum_agree_one_by_one(tmp_path: Path) -> None:
    old = Weighted({"a": InfoNCE(0.05, "log"), "b": SigLIP(0.1, -4.0)})
    new = Weighted({"a": InfoNCE(0.02, "linear"), "b": SigLIP(0.3, -5.0), "c": InfoNCE(0.04, "log")})
    found = started(tmp_path, old, new).objectives
    assert 1 / found["a"].temperature().item() == pytest.approx(0.02)
    assert found["b"].bias.item() == pytest.approx(-4.0 * 0.9)
    assert found["b"].temperature().item() == pytest.approx(math.exp(math.log(10) * 0.9))
    assert 1 / found["c"].temperature().item() == pytest.approx(0.04)


def test_counters_and_queues_begin_anew(tmp_path: Path) -> None:
    """A ramp of 200 steps is one of this training."""
    for make in (lambda: SoftenedInfoNCE(ramp_steps=10), lambda: MomentumDistillation(4, 6, ramp_steps=10)):
        found = started(tmp_path, make(), make())
        empty = dict(make().named_buffers())
        assert "steps" in empty
        for name, value in found.named_buffers():
            assert torch.equal(value, empty[name]), name
        assert found.temperature.parameter.item() != make().temperature.parameter.item()


def test_what_is_named_fresh_stays_as_it_is(tmp_path: Path) -> None:
    """Also where the old model has it."""
    found = started(tmp_path, InfoNCE(0.07, "log"), InfoNCE(0.02, "log"), fresh=("objective",))
    assert 1 / found.temperature().item() == pytest.approx(0.02)
    model, other = (build(tmp_path, seed, objective=InfoNCE()) for seed in (1, 2))
    before = model.linear.bias.clone()
    start_from(model, other, "the old one", ["linear.bias"])
    assert torch.equal(model.linear.bias, before) and torch.equal(model.linear.weight, other.linear.weight)


def test_the_packaged_entry_starts_other_objectives(tmp_path: Path) -> None:
    """clip-emoji learns log(1 / temperature), and had 20 or more when it was done."""
    for objective, temperature in ((InfoNCE(0.02, "no"), 0.02), (SigLIP(0.1), 0.1)):
        model = load("clip-emoji").module
        model.objective = objective
        start_from(model, load("clip-emoji").module, "clip-emoji")
        assert 1 / model.objective.temperature().item() == pytest.approx(temperature)


# ---- what mixing learns ----------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    def __init__(self, mixing: nn.Module | None) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.mixing = mixing


def test_what_mixing_has_learned_comes_along() -> None:
    old, new = (PartialPairs({"image": 3, "text": 4}, 2) for _ in range(2))
    for parameter in old.parameters():
        nn.init.normal_(parameter)
    wanted = [parameter.clone() for parameter in old.parameters()]
    start_from(Mixed(new), Mixed(old), "the old one")
    assert wanted and all(torch.equal(a, b) for a, b in zip(new.parameters(), wanted, strict=True))
    start_from(Mixed(None), Mixed(old), "the old one")
    start_from(Mixed(old), Mixed(None), "the old one")
    assert all(torch.equal(a, b) for a, b in zip(old.parameters(), wanted, strict=True))


# ---- a slow copy -----------------------------------------------------------------------------------------------------


def dual(seed: int, momentum: float | None) -> DualEncoder:
    torch.manual_seed(seed)
    vit = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3, "global_pool": "avg"}
    return DualEncoder(
        image=TimmImage("vit_tiny_patch16_224", vit | {"class_token": False, "fc_norm": False}),
        text=BiRnnText(257, 8, 6),
        image_head=Projection(24, 16),
        text_head=Projection(12, 16),
        processor=DualProcessor("packaged:bytes-tokenizer.json", Picture(size=32), Caption(pad="<pad>")),
        objective=InfoNCE(),
        momentum=momentum,
    )


@pytest.mark.parametrize("before", [None, 0.9])
def test_a_slow_copy_starts_where_the_model_does(before: float | None) -> None:
    """Whether the old model had one or not."""
    model, other = dual(1, 0.995), dual(2, before)
    start_from(model, other, "the old one")
    items = [Item("a cat"), Item(images=(picture(1),))]
    wanted = embed_items(other, items).vector
    torch.testing.assert_close(embed_items(model, items).vector, wanted, atol=0, rtol=0)
    assert model.slow is not None
    torch.testing.assert_close(embed_items(model.slow.model, items).vector, wanted, atol=0, rtol=0)
    assert not any(parameter.requires_grad for parameter in model.slow.parameters())


def test_a_slow_copy_starts_from_what_a_new_part_reads() -> None:
    """The part is named in `start_fresh` and read when fitting begins; that of the copy is told to read nothing."""
    model, other = dual(1, 0.995), dual(2, None)
    start_from(model, other, "the old one", ["text"])
    model.text.pretrained = "somewhere"  # type: ignore[union-attr, assignment]
    model.text.load_pretrained = lambda: [nn.init.normal_(p) for p in model.text.parameters()]  # type: ignore
    model.setup("fit")
    assert model.slow is not None
    slow = dict(model.slow.model.named_parameters())
    for name, parameter in model.named_parameters():
        assert name.startswith(("slow.", "objective.")) or torch.equal(parameter, slow[name]), name


def test_a_slow_copy_is_dropped_where_there_is_none() -> None:
    start_from(dual(1, None), dual(2, 0.9), "the old one")


# ---- adapters --------------------------------------------------------------------------------------------------------

ITEMS = [Item("a cat"), Item("a cat", instruction="find a dog"), Item("red", instruction="find")]
LORA = {"r": 2, "alpha": 6, "targets": r".*(q_proj|up_proj)"}


def adapted(folder: Path, seed: int, **settings: Any) -> Any:
    """A tiny VLM whose adapter is trained."""
    module = tiny.vlm_encoder(folder, seed, adapter=Lora(**(LORA | settings)), objective=InfoNCE())
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return module.eval()


def test_gated_adapters_go_on_gated(tmp_path: Path) -> None:
    model, other = (adapted(tmp_path, seed, when="instruction") for seed in (1, 2))
    wanted = embed_items(other, ITEMS).vector
    start_from(model, other, "the old one")
    torch.testing.assert_close(embed_items(model, ITEMS).vector, wanted, atol=0, rtol=0)
    assert (wanted[0] - wanted[1]).abs().max() > 1e-3


@pytest.mark.parametrize("settings", [None, {}, {"when": "instruction", "alpha": 3}])
def test_gated_adapters_are_not_merged(tmp_path: Path, settings: dict[str, Any] | None) -> None:
    """None, one for all rows, one of another scale."""
    other = adapted(tmp_path, 2, when="instruction")
    wanted = embed_items(other, ITEMS).vector
    model = adapted(tmp_path, 1, **settings) if settings is not None else tiny.vlm_encoder(tmp_path, 1)
    with pytest.raises(RecipeError, match=r"the adapters of the old one act on rows with an instruction alone"):
        start_from(model, other, "the old one")
    torch.testing.assert_close(embed_items(other, ITEMS).vector, wanted, atol=0, rtol=0)


def test_gated_adapters_of_another_rank_do_not_fit(tmp_path: Path) -> None:
    model, other = adapted(tmp_path, 1, when="instruction", r=3, alpha=9), adapted(tmp_path, 2, when="instruction")
    with pytest.raises(WeightsError, match=r"of another shape: .*lora_A"):
        start_from(model, other, "the old one")


def test_other_adapters_are_merged(tmp_path: Path) -> None:
    other = adapted(tmp_path, 2)
    wanted = embed_items(other, ITEMS).vector
    model = tiny.vlm_encoder(tmp_path, 1, adapter=Lora(**LORA, when="instruction"), objective=InfoNCE())
    start_from(model, other, "the old one")
    torch.testing.assert_close(embed_items(model.eval(), ITEMS).vector, wanted, atol=1e-5, rtol=0)
