"""Learning rates per part: `rates` multiplies the optimizer's by the first pattern that matches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from zoo.errors import RecipeError
from zoo.module import EmbeddingModule
from zoo.nn.schedules import WarmupCosine, WarmupLinear


class Towers(EmbeddingModule):
    """Two sides with a matrix and a vector each."""

    def __init__(self, rates: dict[str, float] | None, **training: Any) -> None:
        super().__init__(
            processor=None,  # type: ignore[arg-type]
            optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.1, weight_decay=0.01),
            rates=rates,
            **training,
        )
        self.image, self.text = nn.Linear(4, 6), nn.Linear(4, 6)


def rates_of(module: Towers, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    """Name of each parameter -> its learning rate and weight decay."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        names[id(parameter)]: (round(group["lr"], 9), group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_first_pattern_counts() -> None:
    module = Towers({r"image\.weight": 0.5, r"image\.": 0.1})
    assert rates_of(module, module.configure_optimizers()) == {
        "image.weight": (0.05, 0.01),
        "image.bias": (0.01, 0.0),
        "text.weight": (0.1, 0.01),
        "text.bias": (0.1, 0.0),
    }


def test_without_rates_there_are_two_groups() -> None:
    module = Towers(None)
    groups = module.configure_optimizers().param_groups
    assert [[tuple(p.shape) for p in group["params"]] for group in groups] == [[(6, 4)] * 2, [(6,)] * 2]
    assert [group["lr"] for group in groups] == [0.1, 0.1]


def test_a_schedule_keeps_the_ratio() -> None:
    module = Towers({r"image\.": 0.1}, scheduler=lambda optimizer: WarmupCosine(optimizer, 0, 10))
    found = module.configure_optimizers()
    optimizer, schedule = found["optimizer"], found["lr_scheduler"]["scheduler"]
    for _ in range(4):
        optimizer.step()
        schedule.step()
    rates = rates_of(module, optimizer)
    assert 0 < rates["text.weight"][0] < 0.1
    assert rates["image.weight"][0] == pytest.approx(0.1 * rates["text.weight"][0])


def one_cycle(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)


def cyclic(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, cycle_momentum=False)


def behind_another(optimizer: torch.optim.Optimizer) -> Any:
    first = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [first, one_cycle(optimizer)], [3])


@pytest.mark.parametrize("scheduler", [one_cycle, cyclic, behind_another])
def test_a_scheduler_that_sets_rates_itself_is_refused(scheduler: Any) -> None:
    with pytest.raises(RecipeError, match=r"`rates` has no effect under \w+LR, which sets the rate of every parameter"):
        Towers({r"image\.": 0.1}, scheduler=scheduler).configure_optimizers()
    found = Towers(None, scheduler=scheduler).configure_optimizers()  # nothing is lost without `rates`
    assert isinstance(found["lr_scheduler"]["scheduler"], torch.optim.lr_scheduler.LRScheduler)


KEEPING: list[Any] = [
    lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
    lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=5),
    lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o),
    lambda o: WarmupCosine(o, 5, 10),
    lambda o: WarmupLinear(o, 5, 10),  # 0 for all at first
]


@pytest.mark.parametrize("scheduler", KEEPING)
def test_schedulers_that_multiply_are_taken(scheduler: Any) -> None:
    module = Towers({r"image\.": 0.1}, scheduler=scheduler)
    optimizer = module.configure_optimizers()["optimizer"]
    rates = rates_of(module, optimizer)
    assert rates["image.weight"][0] == pytest.approx(0.1 * rates["text.weight"][0])


@pytest.mark.parametrize("rates", [{r"picture\.": 0.1}, {r"image\.": 0.1, r"image\.bias": 0.2}])
def test_an_idle_pattern_is_refused(rates: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="`rates` names"):
        Towers(rates).configure_optimizers()


def test_nothing_to_train() -> None:
    module = Towers(None).requires_grad_(False)
    with pytest.raises(RecipeError, match="nothing to train"):
        module.configure_optimizers()
