"""Low-rank adapters: what they reach, when they act, how they are folded away and how weights get below them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.errors import RecipeError, WeightsError
from zoo.nn.adapters import Lora, beneath_adapters, merge_adapters
from zoo.weights import load_strictly


class Tower(nn.Module):
    """Two stacks of which one is adapted."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.language = nn.ModuleDict({"up_proj": nn.Linear(6, 8), "down_proj": nn.Linear(8, 6, bias=False)})
        self.visual = nn.ModuleDict({"up_proj": nn.Linear(6, 6)})

    def forward(self, x: Tensor) -> Tensor:
        """(R, T, 6) -> (R, T, 6)."""
        x = self.visual["up_proj"](x).tanh()
        result: Tensor = self.language["down_proj"](self.language["up_proj"](x).tanh())
        return result


def adapted(**settings: Any) -> tuple[Tower, Lora]:
    """A tower with a trained adapter on `language`."""
    tower = Tower()
    lora = Lora(**({"r": 2, "alpha": 6, "targets": r"language\.(up|down)_proj"} | settings))
    lora.inject(tower)
    for name, parameter in tower.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
        if "magnitude" in name:
            parameter.data *= 1.5
    return tower.eval(), lora


def folded(tower: Tower, name: str) -> Tensor:
    layer: Any = tower.language[name]
    return layer.base_layer.weight + 3.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight


X = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(1))


def test_the_full_path_decides_what_is_adapted() -> None:
    """`up_proj` is the name of a layer in both stacks; the pattern means one of them."""
    tower, _ = adapted()
    assert {n.partition(".lora_A")[0] for n in tower.state_dict() if "lora_A" in n} == {
        "language.up_proj",
        "language.down_proj",
    }
    with pytest.raises(RecipeError, match=r"match no layer.*language.up_proj"):
        adapted(targets="up_proj")


def test_the_update_is_scaled_by_alpha_over_r() -> None:
    tower, _ = adapted()
    plain = Tower()
    plain.language["up_proj"].weight.data = folded(tower, "up_proj").detach()
    plain.language["down_proj"].weight.data = folded(tower, "down_proj").detach()
    torch.testing.assert_close(tower(X), plain(X))


@pytest.mark.parametrize("gate", [[True, False, True, False], [True] * 4, [False] * 4])
def test_gated_rows(gate: list[bool]) -> None:
    """In one batch, rows with an instruction are those of the adapted tower, the others those of the plain one."""
    tower, lora = adapted(when="instruction")
    with lora.gated(torch.tensor(gate)):
        mixed = tower(X)
    on, off = tower(X), Tower()(X)
    assert (on - off).abs().amax(dim=(1, 2)).min() > 1e-3
    torch.testing.assert_close(mixed, torch.where(torch.tensor(gate)[:, None, None], on, off))


def test_gating_ends_with_its_block_and_after_an_error() -> None:
    tower, lora = adapted(when="instruction")
    before = tower(X)
    with pytest.raises(ZeroDivisionError), lora.gated(torch.zeros(4, dtype=torch.bool)):
        _ = 1 / 0
    torch.testing.assert_close(tower(X), before)


def test_always_ignores_the_gate() -> None:
    tower, lora = adapted()
    with lora.gated(torch.zeros(4, dtype=torch.bool)):
        torch.testing.assert_close(tower(X), tower(X))
        assert (tower(X) - Tower()(X)).abs().max() > 1e-3


def test_gated_rows_that_are_off_give_no_gradient() -> None:
    tower, lora = adapted(when="instruction")
    with lora.gated(torch.tensor([False] * 4)):
        tower(X).square().sum().backward()
    assert all(not p.grad.any() for n, p in tower.named_parameters() if "lora_" in n and p.grad is not None)


def test_dora_can_not_be_gated() -> None:
    with pytest.raises(RecipeError, match="dora"):
        adapted(dora=True, when="instruction")


@pytest.mark.parametrize("dora", [False, True])
def test_merging_changes_nothing_but_the_names(dora: bool) -> None:
    tower, _ = adapted(dora=dora)
    before = tower(X)
    merge_adapters(tower)
    torch.testing.assert_close(tower(X), before, atol=1e-6, rtol=1e-5)
    assert set(tower.state_dict()) == set(Tower().state_dict())
    assert (before - Tower()(X)).abs().max() > 1e-3


@pytest.mark.parametrize("dora", [False, True])
def test_weights_read_below_fresh_adapters(dora: bool) -> None:
    """A fresh adapter does nothing, also over weights that were not there when it was made."""
    tower = Tower()
    Lora(2, 6, r"language\.(up|down)_proj", dora=dora).inject(tower)
    published = copy.deepcopy(Tower())
    for parameter in published.parameters():
        nn.init.normal_(parameter)
    load_strictly(tower, *_arguments(published.state_dict(), tower))
    torch.testing.assert_close(tower.eval()(X), published(X), atol=1e-5, rtol=1e-5)


def test_weights_of_another_model_are_still_refused() -> None:
    tower, _ = adapted()
    state = Tower().state_dict()
    state["language.gate_proj.weight"] = state.pop("language.up_proj.weight")
    with pytest.raises(WeightsError, match=r"gate_proj.*1 missing: language.up_proj.base_layer.weight"):
        load_strictly(tower, *_arguments(state, tower))


def _arguments(state: dict[str, Tensor], tower: Tower) -> tuple[dict[str, Tensor], str, set[str]]:
    placed, kept = beneath_adapters(state, tower)
    return placed, "the release", kept
