"""Lightning's averaging of weights puts other ones into the model when its validation has begun: vectors must be theirs."""

from __future__ import annotations

from typing import Any

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import WeightAveraging
from torch.utils.data import DataLoader

from zoo.module import EmbeddingModule
from zoo.nn.gaussian import GeneralizedPooling
from zoo.nn.towers import States
from zoo.objectives.infonce import InfoNCE
from zoo.types import Batch, Embedding, Inputs


class Sorted(EmbeddingModule):
    """Pools tokens by weights of their ranks, which evaluation reads from a table."""

    def __init__(self) -> None:
        super().__init__(
            processor=None,  # type: ignore[arg-type]
            objective=InfoNCE(0.1, "linear"),
            optimizer=lambda groups: torch.optim.SGD(groups, lr=20.0),
        )
        torch.manual_seed(0)
        self.pooling = GeneralizedPooling(4, 6, max_length=5)
        self.differences: list[float] = []

    def encode(self, inputs: Inputs) -> Embedding:
        return Embedding(F.normalize(self.pooling(States(inputs["x"][:, 0], inputs["x"])), dim=-1))

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Embedding]:
        found = super().validation_step(batch, batch_idx, dataloader_idx)
        self.pooling.training = True  # computes its weights, and has nothing else that training changes
        exact = self.encode(batch.views["query"]).vector
        self.pooling.training = False
        self.differences.append(float((found["query"].vector - exact).abs().max()))
        return found


def batches() -> list[Batch]:
    draw, owner = torch.Generator().manual_seed(0), torch.arange(8)
    return [
        Batch(
            views={name: {"x": torch.randn(8, 5, 4, generator=draw)} for name in ("query", "target")},
            owners={"query": owner, "target": owner},
            keys={"query": owner, "target": owner + 10},
            labels=torch.full((8,), -1),
            weights=torch.ones(8),
            ids=[str(i) for i in range(8)],
            sources=[""] * 8,
        )
        for _ in range(6)
    ]


def test_pooling_follows_averaged_weights() -> None:
    module, quiet = Sorted(), {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options: dict[str, Any] = quiet | {"accelerator": "cpu", "enable_model_summary": False}
    trainer = lightning.Trainer(max_epochs=2, num_sanity_val_steps=0, callbacks=[WeightAveraging()], **options)
    loader = DataLoader(batches(), batch_size=None)
    trainer.fit(module, loader, loader)
    assert len(module.differences) == 12
    assert max(module.differences) < 1e-6
