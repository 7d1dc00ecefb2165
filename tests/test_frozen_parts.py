"""Parts that `freeze` names stay in evaluation mode, through a whole fit; others do not."""

from __future__ import annotations

import warnings
from typing import Any

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from zoo.errors import RecipeError, ZooWarning
from zoo.module import EmbeddingModule
from zoo.objectives.infonce import InfoNCE
from zoo.types import Batch, Embedding, Inputs


def tower() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 5))


class Towers(EmbeddingModule):
    """One tower with batch norm and dropout per side."""

    def __init__(self, freeze: list[str]) -> None:
        super().__init__(processor=None, objective=InfoNCE(0.1), freeze=freeze)  # type: ignore[arg-type]
        self.image, self.text = tower(), tower()
        self.modes: list[dict[str, bool]] = []

    def encode(self, inputs: Inputs) -> Embedding:
        part = self.image if "pixels" in inputs else self.text
        return Embedding(nn.functional.normalize(part(next(iter(inputs.values()))), dim=-1))

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.modes.append({name: part.training for name, part in self.named_modules() if name})


def trained(module: Towers) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def test_fewer_patterns_freeze_less() -> None:
    """A second fit of one module trains what only the first one froze, and not what others hold fixed."""
    module = Towers([r"image\.", r"text\.0\."])
    module.text[3].bias.requires_grad_(False)
    module.train()
    everything = set(dict(module.named_parameters())) - {"objective.temperature.parameter"}
    module.setup("fit")
    assert trained(module) == {"text.1.weight", "text.1.bias", "text.3.weight"}
    assert not module.image.training
    module.setup("fit")
    module.freeze_patterns = (r"text\.0\.",)
    module.setup("fit")
    assert trained(module) == everything - {"text.0.weight", "text.0.bias", "text.3.bias"}
    assert module.image.training and module.image[2].training and not module.text[0].training
    module.freeze_patterns = ()
    module.setup("fit")
    assert trained(module) == everything - {"text.3.bias"}


def batches(count: int) -> list[Batch]:
    owner = torch.arange(8)
    return [
        Batch(
            views={"query": {"pixels": torch.randn(8, 4)}, "target": {"words": torch.randn(8, 4)}},
            owners={"query": owner, "target": owner},
            keys={"query": owner, "target": owner + 10},
            labels=torch.full((8,), -1),
            weights=torch.ones(8),
            ids=[str(i) for i in range(8)],
            sources=[""] * 8,
        )
        for _ in range(count)
    ]


def fit(module: Towers) -> None:
    torch.manual_seed(0)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    data = DataLoader(batches(2), batch_size=None)
    trainer.fit(module, data, data)  # validation switches modes back and forth


def test_a_locked_tower_stays_as_it_is() -> None:
    module = Towers([r"image\."])
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fit(module)
    assert len(module.modes) == 4
    for modes in module.modes:
        assert not any(on for name, on in modes.items() if name == "image" or name.startswith("image."))
        assert all(on for name, on in modes.items() if name == "text" or name.startswith("text."))
    after = module.state_dict()
    assert all(
        torch.equal(after[name], before[name]) for name in before if name.startswith("image.")
    )  # statistics, too
    assert not torch.equal(after["text.1.running_mean"], before["text.1.running_mean"])
    assert not torch.equal(after["text.0.weight"], before["text.0.weight"])


def test_parts_that_are_trained_in_part_keep_training() -> None:
    module = Towers([r"image\.[01]\.", r"text\.3\.weight"])
    module.setup("fit")
    module.train()
    assert module.image.training and not module.image[0].training and not module.image[1].training
    assert module.image[2].training and module.image[3].training
    assert module.text.training and module.text[3].training  # its bias is trained
    module.eval()
    assert not any(part.training for part in module.modules())


def test_nothing_frozen_changes_nothing_and_unknown_names_are_refused() -> None:
    module = Towers([])
    module.setup("fit")
    assert all(part.training for part in module.train().modules())
    with pytest.raises(RecipeError, match="matches no parameter"):
        Towers(["picture"]).setup("fit")


class Headed(Towers):
    """With names that begin with one another."""

    def __init__(self, freeze: list[str], rates: dict[str, float] | None = None) -> None:
        super().__init__(freeze)
        self.rates = rates or {}
        self.image_head = nn.Linear(5, 5)
        self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(11))


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("image", "'image' matches 'image_head.bias' as well as 'image.0.bias'.*write 'image[.]'"),
        (r"blocks\.1", r"'blocks\\.1' matches 'blocks.10.bias' as well as 'blocks.1.bias'.*write 'blocks\\.1[.]'"),
        ("image|text", "'image|text' matches 'image_head.bias'"),
    ],
)
def test_patterns_that_end_inside_of_a_name_are_told(pattern: str, found: str) -> None:
    said = found.replace("[.]", r"\[\.\]").replace("|", r"\|")
    with pytest.warns(ZooWarning, match=f"`freeze`: the pattern {said}"):
        Headed([pattern]).setup("fit")
    with pytest.warns(ZooWarning, match=f"`rates`: the pattern {said}"):
        Headed([], {pattern: 0.1}).configure_optimizers()


@pytest.mark.parametrize(
    "pattern", [r"image\.", "image[.]", "image.*", "image_head", ".*bias", r"blocks\.10", "im", "text"]
)
def test_patterns_that_mean_what_they_match_are_silent(pattern: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ZooWarning)
        Headed([pattern]).setup("fit")
        Headed([], {pattern: 0.1}).configure_optimizers()
