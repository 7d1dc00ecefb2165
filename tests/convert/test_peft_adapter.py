"""Adapters as peft saves them: parsed, merged, attached; and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.convert.peft_adapter import attached, merged, read_adapter
from zoo.convert.transformers_folder import Checkpoint
from zoo.errors import WeightsError

CONFIG = {"r": 2, "lora_alpha": 6, "peft_type": "LORA"}


def own(path: str) -> str:
    return path


def tensors(magnitude: bool = False, layer: str = "a.q_proj") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    prefix = f"base_model.model.{layer}."
    found = {
        prefix + "lora_A.weight": torch.randn(2, 5, generator=generator),
        prefix + "lora_B.weight": torch.randn(3, 2, generator=generator),
    }
    return found | ({prefix + "lora_magnitude_vector": torch.rand(3, generator=generator) + 1} if magnitude else {})


BASE = {"a.q_proj.weight": torch.randn(3, 5), "a.q_proj.bias": torch.randn(3), "a.k_proj.weight": torch.randn(3, 5)}


def read(found: dict[str, Tensor], **config: Any) -> Any:
    return read_adapter(Checkpoint(found, CONFIG | config, "the adapter"), own)


def test_merging_adds_the_scaled_product_and_touches_nothing_else() -> None:
    before = {k: v.clone() for k, v in BASE.items()}
    state = merged(BASE, read(tensors()))
    down, up = tensors().values()
    torch.testing.assert_close(state["a.q_proj.weight"], BASE["a.q_proj.weight"] + 3.0 * up @ down)
    assert torch.equal(state["a.q_proj.bias"], BASE["a.q_proj.bias"])
    assert torch.equal(state["a.k_proj.weight"], BASE["a.k_proj.weight"])
    assert all(torch.equal(BASE[k], v) for k, v in before.items()), "the input was changed"


def test_merging_dora_gives_rows_of_the_learned_length() -> None:
    state = merged(BASE, read(tensors(magnitude=True)))
    magnitude = tensors(magnitude=True)["base_model.model.a.q_proj.lora_magnitude_vector"]
    torch.testing.assert_close(state["a.q_proj.weight"].norm(dim=1), magnitude)


def test_half_precision_is_rounded_once() -> None:
    base = {k: v.bfloat16() for k, v in BASE.items()}
    down, up = tensors().values()
    exact = base["a.q_proj.weight"].double() + 3.0 * up.double() @ down.double()
    assert torch.equal(merged(base, read(tensors()))["a.q_proj.weight"], exact.float().bfloat16())


def test_rank_stabilised_scale() -> None:
    assert read(tensors(), use_rslora=True).scale == pytest.approx(6 / 2**0.5)


@pytest.mark.parametrize("suffix", [".default.weight", ".weight", ".default", ""])
def test_names_of_all_peft_releases(suffix: str) -> None:
    found = {key.removesuffix(".weight") + suffix: value for key, value in tensors(magnitude=True).items()}
    update = read(found).updates["a.q_proj"]
    assert update.down.shape == (2, 5) and update.up.shape == (3, 2) and update.magnitude.shape == (3,)


def test_attached_to_layers_of_another_scale_is_the_same_function() -> None:
    adapter = read(tensors(magnitude=True))
    state = attached(BASE, adapter, scale=12.0)
    assert set(state) == {
        "a.q_proj.base_layer.weight",
        "a.q_proj.base_layer.bias",
        "a.q_proj.lora_A.default.weight",
        "a.q_proj.lora_B.default.weight",
        "a.q_proj.lora_magnitude_vector.default.weight",
        "a.k_proj.weight",
    }
    ours = 12.0 * state["a.q_proj.lora_B.default.weight"] @ state["a.q_proj.lora_A.default.weight"]
    down, up = tensors().values()
    torch.testing.assert_close(ours, 3.0 * up @ down)


def test_tensors_trained_in_full_are_handed_on() -> None:
    extra = {
        "base_model.model.head.weight": torch.ones(1),
        "base_model.model.t.modules_to_save.default.w": torch.ones(1),
    }
    assert set(read(tensors() | extra).saved) == {"head.weight", "t.w"}


@pytest.mark.parametrize(
    ("found", "config", "message"),
    [
        (tensors(), {"lora_alpha": None}, ""),
        (tensors(), {"peft_type": "LOHA"}, "LOHA"),
        (tensors(), {"alpha_pattern": {"q_proj": 3}}, "alpha_pattern"),
        ({"base_model.model.head.weight": torch.ones(1)}, {}, "no LoRA tensors"),
        (dict(list(tensors().items())[:1]), {}, "lacks lora_B of 'a.q_proj'"),
        ({k: v * ("lora_A" in k) for k, v in tensors().items()}, {}, "is zero"),
    ],
)
def test_what_can_not_be_read_is_refused(found: dict[str, Tensor], config: dict[str, Any], message: str) -> None:
    settings = {k: v for k, v in (CONFIG | config).items() if v is not None}
    with pytest.raises(WeightsError, match=message or "adapter_config.json"):
        read_adapter(Checkpoint(found, settings, "the adapter"), own)


def test_bias_of_an_update_is_not_taken_for_the_update() -> None:
    found = tensors() | {"base_model.model.a.q_proj.lora_B.bias": torch.ones(3)}
    assert read(found).updates["a.q_proj"].up.shape == (3, 2)
    assert "a.q_proj.lora_B.bias" in read(found).saved  # which every converter refuses


@pytest.mark.parametrize("use", [merged, lambda base, adapter: attached(base, adapter, 1.0)])
def test_an_adapter_of_another_model_is_refused(use: Any) -> None:
    with pytest.raises(WeightsError, match=r"adapts 'a.qq_proj'.*nearest is 'a.q_proj.weight'"):
        use(BASE, read(tensors(layer="a.qq_proj")))
    with pytest.raises(WeightsError, match=r"shape \(3, 5\).*\(3, 6\).*another size"):
        use({"a.q_proj.weight": torch.zeros(3, 6)}, read(tensors()))
