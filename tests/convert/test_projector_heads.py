"""Official layouts of trained heads, written here with random weights, load with no key left over and give their vectors."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from zoo.convert.projector_heads import freeze_align, fusemix, sail
from zoo.convert.transformers_folder import Checkpoint
from zoo.errors import WeightsError
from zoo.nn.latent_heads import InvertedBottleneck, StarMlp, TokensAndPooled, TokensThenMlp
from zoo.nn.towers import States
from zoo.objectives.infonce import InfoNCE


class OfficialBlock(nn.Module):
    """Pre-LN residual with an inner width of 4 D, named as in layer6ai-labs/fusemix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(width)
        self.fn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.6), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fn(self.ln(x)) + x


def own(state: dict[str, torch.Tensor], modality: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(f"heads.{modality}."): v for k, v in state.items() if k.startswith(f"heads.{modality}.")}


def check_temperature(state: dict[str, torch.Tensor], expected: float) -> None:
    """It is the checkpoint's, however the objective keeps its own."""
    names = [name for name in state if name.startswith("objective.temperature.")]
    stored = {name.removeprefix("objective."): state.pop(name) for name in names}
    for learn in ("log", "linear", "no"):
        objective = InfoNCE(0.3, learn=learn, max_scale=None)
        objective.load_state_dict(stored)
        assert 1 / objective.temperature().item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("recipe", ["fusemix-paper", "freeze-align-paper"])
def test_the_recipe_learns_the_temperature_as_the_official_code(recipe: str) -> None:
    """Files of before the kind was stored are read as the recipe says; the limits are those of the official code."""
    objective = build_objective(recipe)
    objective.load_state_dict({"temperature.parameter": torch.tensor(0.07)}, strict=True)
    assert objective.temperature().item() == pytest.approx(1 / 0.07)
    for value, held in ((0.0001, 0.001), (0.7, 0.5)):
        objective.load_state_dict({"temperature.parameter": torch.tensor(value)})
        assert 1 / objective.temperature().item() == pytest.approx(held)


def build_objective(recipe: str) -> torch.nn.Module:
    raw = yaml.safe_load((Path(__file__).parents[2] / "recipes" / f"{recipe}.yaml").read_text("utf-8"))
    settings = raw["model"]["init_args"]["objective"]
    assert settings["class_path"] == "InfoNCE"
    return InfoNCE(**settings["init_args"])


def test_fusemix() -> None:
    torch.manual_seed(0)
    sides = {
        name: nn.Sequential(*(OfficialBlock(width) for _ in range(4)), nn.LayerNorm(width), nn.Linear(width, 5)).eval()
        for name, width in (("vis_proj", 6), ("text_proj", 4))
    }
    tensors = {f"{name}.{key}": value for name, side in sides.items() for key, value in side.state_dict().items()}
    state = fusemix(Checkpoint(tensors | {"temp": torch.tensor(0.05)}))
    check_temperature(state, 0.05)
    for modality, name, width in (("image", "vis_proj", 6), ("text", "text_proj", 4)):
        head = InvertedBottleneck(width, 5).eval()
        head.load_state_dict(own(state, modality))
        x = torch.randn(3, width)
        torch.testing.assert_close(head(x), sides[name](x))


def test_sail() -> None:
    torch.manual_seed(0)
    tensors = {"logit_scale": torch.tensor([3.0]), "logit_bias": torch.tensor([-9.5])}
    for side, width in (("vision", 6), ("text", 4)):
        parts = {f"{side}_layer_norm": nn.LayerNorm(width)}
        parts |= {
            f"{side}_mapping_network.{n}": nn.Linear(*s)
            for n, s in {"f1": (width, 8 * width), "f2": (width, 8 * width), "g": (8 * width, 5)}.items()
        }
        tensors |= {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
        tensors[f"{side}_mapping_network.f2.weight"] *= 5e3  # beyond the clamp
    state = sail(Checkpoint(tensors))
    check_temperature(state, math.exp(-3))
    assert state.pop("objective.bias").item() == -9.5
    head = StarMlp(6, 5)
    head.load_state_dict(own(state, "image"))
    x = torch.randn(3, 6) * 30
    seen = nn.functional.layer_norm(x, (6,), tensors["vision_layer_norm.weight"], tensors["vision_layer_norm.bias"])
    f1, f2 = (
        seen @ tensors[f"vision_mapping_network.{n}.weight"].T + tensors[f"vision_mapping_network.{n}.bias"]
        for n in ("f1", "f2")
    )
    f1, f2 = f1.clamp(-1e3, 1e3), f2.clamp(-1e3, 1e3)
    g = (f1.clamp(0, 6) * f2) @ tensors["vision_mapping_network.g.weight"].T + tensors["vision_mapping_network.g.bias"]
    torch.testing.assert_close(head(x), g)


class OfficialPatch(nn.Module):
    """Linear and non-linear in parallel, named as in mayug/freeze-align."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.linear_projection = nn.Sequential(nn.Linear(width, dim))
        self.non_linear_projection = nn.Sequential(nn.Linear(width, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear_projection(x) + self.non_linear_projection(x)


class OfficialHead(nn.Module):
    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.projection, self.fc = nn.Linear(width, dim), nn.Linear(dim, dim)
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        projected = self.projection(x)
        return self.layer_norm(self.fc(nn.functional.gelu(projected)) + projected)


def test_freeze_align() -> None:
    torch.manual_seed(0)
    official = {
        name: nn.Sequential(nn.LayerNorm(width), nn.Dropout(0.1), OfficialPatch(width, 5)).eval()
        for name, width in (("local_vision_proj", 6), ("cls_vision_proj", 6), ("local_text_proj", 4))
    } | {"text_proj": OfficialHead(5, 5)}
    tensors = {f"{name}.{key}": value for name, part in official.items() for key, value in part.state_dict().items()}
    others = {"visual_encoder.x.weight": torch.zeros(2), "text_encoder.y": torch.zeros(1), "temp": torch.tensor(0.05)}
    state = freeze_align(Checkpoint(tensors | others))
    check_temperature(state, 0.05)
    image, text = TokensAndPooled(6, 5, prefix=1).eval(), TokensThenMlp(4, 5).eval()
    image.load_state_dict(own(state, "image"))
    text.load_state_dict(own(state, "text"))
    tokens, words, mask = torch.randn(3, 4, 6), torch.randn(3, 2, 4), torch.tensor([[1, 1], [1, 0], [1, 1]])
    patches = official["local_vision_proj"](tokens)[:, 1:].mean(1)
    expected = patches + official["cls_vision_proj"](tokens[:, 0])
    torch.testing.assert_close(image(States(tokens[:, 0], tokens)), expected)
    mean = (official["local_text_proj"](words) * mask[..., None]).sum(1) / mask.sum(1)[:, None]
    torch.testing.assert_close(text(States(words[:, 0], words, mask)), official["text_proj"](mean))


def test_another_system_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"holds 'visual\.proj'"):
        fusemix(Checkpoint({"visual.proj": torch.zeros(2)}))
