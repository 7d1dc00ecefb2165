"""Training whose weights themselves are half precision (`precision: bf16-true`): what moves in small steps keeps fp32."""

from __future__ import annotations

import math
from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from zoo.errors import RecipeError
from zoo.module import EmbeddingModule
from zoo.nn.conditioned_pooling import ConditionedPooling
from zoo.nn.momentum import Momentum
from zoo.objectives.flair import Flair
from zoo.objectives.infonce import InfoNCE
from zoo.objectives.objective import Objective
from zoo.objectives.pcmepp import PCMEPP
from zoo.objectives.siglip import SigLIP
from zoo.types import Batch, Embedding, Inputs


class Tower(EmbeddingModule):
    """One layer for both sides, with tokens and variances. The momentum copy follows it where there is one."""

    def __init__(self, objective: Objective, momentum: float | None = None) -> None:
        super().__init__(
            processor=None,  # type: ignore[arg-type]
            objective=objective,
            optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.0),
        )
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 8)
        self.slow = None if momentum is None else Momentum(nn.ModuleDict({"layer": self.layer}), momentum)

    def encode(self, inputs: Inputs) -> Embedding:
        tokens = self.layer(inputs["x"])
        vector = F.normalize(tokens.float().mean(1), dim=-1)
        mask = torch.ones(tokens.shape[:2], dtype=torch.int64)
        return Embedding(vector, log_var=vector - 3, tokens=tokens, mask=mask)

    def begin_step(self, step: int) -> None:
        super().begin_step(step)
        if self.slow is not None:
            self.slow.follow(nn.ModuleDict({"layer": self.layer}))


def batches() -> list[Batch]:
    draw, owner = torch.Generator().manual_seed(0), torch.arange(8)
    return [
        Batch(
            views={name: {"x": torch.randn(8, 3, 4, generator=draw)} for name in ("query", "target")},
            owners={"query": owner, "target": owner},
            keys={"query": owner, "target": owner + 10},
            labels=torch.full((8,), -1),
            weights=torch.ones(8),
            ids=[str(i) for i in range(8)],
            sources=[""] * 8,
        )
        for _ in range(20)
    ]


def fitted(objective: Any, precision: Any, momentum: float | None = None) -> Any:
    module = Tower(objective, momentum)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(batches(), batch_size=None))
    return module.objective


def flair() -> Flair:
    torch.manual_seed(0)
    loss = Flair(ConditionedPooling(8, 2), 0.1, -1.0)
    loss.drawn = lambda pictures, samples, each, device: torch.zeros(pictures, samples, dtype=torch.long)  # type: ignore[method-assign]
    return loss


@pytest.mark.parametrize(
    "make", [lambda: InfoNCE(0.07, "log"), lambda: InfoNCE(0.07, "linear"), lambda: SigLIP(), flair, lambda: PCMEPP()]
)
def test_learned_numbers_move_as_in_full_precision(make: Any) -> None:
    """20 steps of 1e-3; bfloat16 has no number between 2.656 and 2.672."""
    start = {name: p.item() for name, p in make().named_parameters() if p.ndim == 0}
    exact, found = (dict(fitted(make(), one).named_parameters()) for one in ("32-true", "bf16-true"))
    assert max(abs(exact[name].item() - value) for name, value in start.items()) > 4e-3
    for name in start:
        assert found[name].dtype == torch.float32
        assert found[name].item() == pytest.approx(exact[name].item(), abs=1.2e-3)


def test_the_rest_is_half() -> None:
    module = Tower(InfoNCE(0.07, "log")).to(torch.bfloat16)
    assert module.layer.weight.dtype == torch.bfloat16
    assert module.objective.temperature.parameter.item() == pytest.approx(math.log(1 / 0.07), rel=1e-6)  # type: ignore[union-attr]
    assert module.double().objective.temperature.parameter.dtype == torch.float64  # type: ignore[union-attr]


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_a_slow_copy_in_half_precision_is_refused(precision: str) -> None:
    with pytest.raises(
        RecipeError, match=r"`momentum: 0.995` moves the slow copy by less than half precision can tell"
    ):
        fitted(InfoNCE(), precision, momentum=0.995)
    fitted(InfoNCE(), "bf16-mixed", momentum=0.995)
