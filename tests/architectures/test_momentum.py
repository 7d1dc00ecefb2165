"""The slow copy of a dual encoder: its modes, when it follows, and what counts optimizer steps."""

from __future__ import annotations

from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader

from zoo.architectures.dual_encoder import DualEncoder
from zoo.data.source import Processor
from zoo.nn.discrete_tokens import FiniteDiscreteTokens
from zoo.nn.gaussian import GeneralizedPooling
from zoo.nn.towers import States
from zoo.objectives.infonce import InfoNCE
from zoo.objectives.soft_targets import MomentumDistillation, SoftenedInfoNCE
from zoo.types import Batch, Inputs

ROWS, WIDTH = 6, 5
M = 0.75


class Normed(nn.Module):
    """A tower whose vectors depend on its mode twice over."""

    width = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.5))

    def forward(self, values: Tensor, mask: Tensor | None = None) -> States:
        pooled = self.layers(values.flatten(1).float())
        return States(pooled, pooled[:, None])


class Plain(Normed):
    """A tower without batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Linear(8, WIDTH)


class Splitter(Processor):
    """The part of a processor that chunks need."""

    def split(self, inputs: Inputs, size: int) -> list[Inputs]:
        parts = {name: value.split(size) for name, value in inputs.items()}
        count = len(parts["rows"])
        own = [{name: value[n] for name, value in parts.items()} for n in range(count)]
        return [{n: v - v[0] if n.endswith("rows") else v for n, v in one.items()} for one in own]


def encoder(image: nn.Module | None = None, objective: Any = None, **settings: Any) -> DualEncoder:
    torch.manual_seed(0)
    objective = objective or MomentumDistillation(WIDTH, 24, alpha=0.4, ramp_steps=4)
    return DualEncoder(
        image=image or Plain(), text=Plain(), momentum=M, processor=Splitter(), objective=objective, **settings
    )


def batch(seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    rows = torch.arange(ROWS)
    pixels, ids = torch.randn(ROWS, 2, 4, generator=draw), torch.randint(9, (ROWS, 8), generator=draw)
    return Batch(
        views={
            "query": {"rows": rows, "image_rows": rows, "pixels": pixels},
            "target": {"rows": rows, "text_rows": rows, "input_ids": ids, "attention_mask": torch.ones_like(ids)},
        },
        owners={"query": rows, "target": rows},
        keys={"query": rows + ROWS * seed, "target": rows + ROWS * seed + 1000},
        labels=torch.full((ROWS,), -1),
        weights=torch.ones(ROWS),
        ids=[str(i) for i in range(ROWS)],
        sources=[""] * ROWS,
    )


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_a_frozen_tower_is_frozen_in_the_copy_as_well(chunk_size: int | None) -> None:
    module = encoder(Normed(), freeze=[r"image\."], chunk_size=chunk_size)
    module.setup("fit")
    module.train()
    first, second = (module._encoded(batch()).views["query_momentum"].vector for _ in range(2))
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first, module.eval().encode(batch().views["query"]).vector)  # nothing is trained yet
    module.train()
    copy = module.slow.model
    assert copy.training and copy.text.training and not copy.image.layers[2].training
    assert int(copy.image.layers[1].num_batches_tracked) == 0


def test_what_is_trained_drops_out_in_the_copy_as_well() -> None:
    """As the official code does (ALBEF's momentum encoders are in training mode)."""
    module = encoder(Normed())
    module.setup("fit")
    first, second = (module.train()._encoded(batch()).views["query_momentum"].vector for _ in range(2))
    assert not torch.allclose(first, second)


class Watched(DualEncoder):
    """Notes, at every batch, the optimizer step, the model's weight and that of the copy, and what the objective tells."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        logged = self.trainer.callback_metrics
        told = float(logged.get("train/alpha", logged.get("train/softness", torch.tensor(0.0))))
        weights = [part.image.layers.weight.detach().double().clone() for part in (self, self.slow.model)]
        self.notes.append((self.global_step, *weights, told, int(self.queue.filled)))
        return loss

    @property
    def queue(self) -> Any:
        return self.objective.queues["query"] if isinstance(self.objective, MomentumDistillation) else self.none

    notes: list[Any]


def fitted(accumulate: int, objective: Any, batches: int = 12) -> list[Any]:
    module = encoder(objective=objective)
    module.__class__, module.notes = Watched, []
    module.none = type("Empty", (), {"filled": 0})()
    trainer = lightning.Trainer(
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([batch(n) for n in range(batches)], batch_size=None))
    return module.notes


@pytest.mark.parametrize("accumulate", [1, 4, 5])
def test_the_copy_and_the_ramp_move_once_per_optimizer_step(accumulate: int) -> None:
    notes = fitted(accumulate, MomentumDistillation(WIDTH, 30, alpha=0.4, ramp_steps=4))
    slow = notes[0][1]
    for number, (step, fast, copied, alpha, filled) in enumerate(notes):
        assert step == number // accumulate
        if number and number % accumulate == 0:
            slow = M * slow + (1 - M) * fast
        torch.testing.assert_close(copied, slow, rtol=1e-5, atol=1e-7)
        assert alpha == pytest.approx(0.4 * min(1, step / 4))
        assert filled == min(30, ROWS * (number + 1)), "every batch adds its rows, as one batch of all of them would"
    assert (notes[-1][1] - notes[0][1]).abs().max() > 1e-3


def test_softening_grows_once_per_optimizer_step() -> None:
    told = [note[3] for note in fitted(3, SoftenedInfoNCE(softness=0.2, ramp_steps=2), 9)]
    assert told == pytest.approx([0.0] * 3 + [0.1] * 3 + [0.2] * 3)


def test_every_part_is_told_the_step() -> None:
    module = encoder()
    module.parts = nn.ModuleList([FiniteDiscreteTokens(8, 4, 8.0, decay=0.5, decay_every=10) for _ in range(2)])
    for step in (0, 10, 15):
        module.begin_step(step)
    assert [float(part.temperature) for part in module.parts] == [4.0, 4.0]


class Ordered(Plain):
    """Four tokens of two values."""

    def forward(self, values: Tensor, mask: Tensor | None = None) -> States:
        tokens = values.float().reshape(len(values), 4, 2)
        return States(tokens.mean(1), tokens)


class Stale(lightning.Callback):
    """How far the table of a pooling is from its weights, while validation runs."""

    def __init__(self) -> None:
        self.scores: list[float] = []
        self.distances: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.scores.append(float(module.image_head.score.weight.detach().sum()))

    def on_validation_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        pooling = module.image_head
        self.distances.append(float((pooling.table - pooling._weights(torch.arange(9))).abs().max()))
        assert float(pooling.score.weight.sum()) != pytest.approx(self.scores[-1], rel=1e-3), (
            "these are averaged weights"
        )


def test_averaged_weights_are_measured_with_their_own_table() -> None:
    torch.manual_seed(0)
    module = DualEncoder(
        image=Ordered(),
        text=Plain(),
        image_head=GeneralizedPooling(2, WIDTH, 8),
        processor=Splitter(),
        objective=InfoNCE(),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.05),
    )
    stale = Stale()
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[EMAWeightAveraging(decay=0.5), stale],
    )
    data = DataLoader([batch(n) for n in range(4)], batch_size=None)
    trainer.fit(module, data, DataLoader([batch(9)], batch_size=None))
    assert stale.distances == [0.0, 0.0]
