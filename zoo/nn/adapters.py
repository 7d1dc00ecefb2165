"""Low-rank adapters, through peft."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.errors import RecipeError


@dataclass
class Lora:
    """LoRA (arXiv:2106.09685) on the linear layers whose path matches `targets`, one regular expression over the path.

    Args:
        targets: must match the whole path below the backbone, e.g. `.*language_model.*(q_proj|v_proj)`. A full path, not a
            suffix: the suffixes `gate_proj`, `up_proj`, `down_proj` also exist in some vision towers and would adapt them
            silently.
        r, alpha, dropout: rank, scale (the update is multiplied by alpha / r), dropout in front of it.
        dora: weight-decomposed variant (arXiv:2402.09353).
        init: "default" (B zero, A uniform) or "gaussian".
        when: "always", or "instruction" = only for rows whose item has an instruction (ABC's second stage: candidates and
            plain items stay in the space of the first).
    """

    r: int
    alpha: float
    targets: str
    dropout: float = 0.0
    dora: bool = False
    init: Literal["default", "gaussian"] = "default"
    when: Literal["always", "instruction"] = "always"
    _layers: list[nn.Module] = field(default_factory=list, init=False, repr=False)

    def inject(self, model: nn.Module) -> None:
        """Add the adapters in place and freeze every other parameter of `model`. RecipeError if nothing matches."""
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        if self.dora and self.when == "instruction":
            raise RecipeError(
                "dora changes the norm of the whole weight, so it can't be switched per row: set dora: false"
            )
        config = LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft types it int, computes with floats
            target_modules=self.targets,
            lora_dropout=self.dropout,
            use_dora=self.dora,
            init_lora_weights=True if self.init == "default" else "gaussian",
        )
        try:
            inject_adapter_in_model(config, model)
        except ValueError as error:
            linear = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
            raise RecipeError(
                f"lora targets '{self.targets}' match no layer; linear layers are {linear[:8]} ..."
            ) from error
        self._layers = [part for part in model.modules() if isinstance(part, LoraLayer)]
        for layer in self._layers:
            layer.gated = self.when != "always"  # type: ignore[assignment]  # a mark for `gated_layers`

    @contextmanager
    def gated(self, instructed: Tensor) -> Iterator[None]:
        """Within, the adapters act on the rows (R,) of `instructed` only, if that is when they should."""
        if self.when == "always":
            yield
            return
        gate = instructed.to(torch.float32)[:, None, None]
        scales = [dict(layer.scaling) for layer in self._layers]  # type: ignore[arg-type]
        try:
            for layer, scale in zip(self._layers, scales, strict=True):
                layer.scaling = {name: value * gate for name, value in scale.items()}  # type: ignore[assignment]
            yield
        finally:
            for layer, scale in zip(self._layers, scales, strict=True):
                layer.scaling = scale  # type: ignore[assignment]


def merge_adapters(model: nn.Module) -> None:
    """Fold all adapters of `model` into the weights below them, in place; it is then a model that never had any."""
    from peft.tuners.lora import LoraLayer

    layers = {name: part for name, part in model.named_modules() if isinstance(part, LoraLayer)}
    for name, layer in layers.items():
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())


def beneath_adapters(state: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], set[str]]:
    """Weights of a model without adapters, for `model`, which may have some.

    Returns:
        the weights under the names they have in `model`, and the names of the adapters' own parameters, which keep
        their start. DoRA's magnitudes start as the norms of the rows they scale, so they come with the weights.
    """
    expected = model.state_dict()
    placed, kept = {}, {key for key in expected if ".lora_" in key}
    for key, value in state.items():
        path, _, name = key.rpartition(".")
        below, magnitude = f"{path}.base_layer.{name}", f"{path}.lora_magnitude_vector.default.weight"
        placed[below if below in expected else key] = value
        if name == "weight" and magnitude in expected:
            placed[magnitude] = value.to(torch.promote_types(value.dtype, torch.float32)).norm(dim=1)
            kept.remove(magnitude)
    return placed, kept


def gated_layers(model: nn.Module) -> dict[str, dict[str, float]]:
    """Name of every layer whose adapter acts on some rows only -> its scales: merged, it would act on all rows."""
    return {name: dict(part.scaling) for name, part in model.named_modules() if getattr(part, "gated", False)}
