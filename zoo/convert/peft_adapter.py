"""LoRA adapters as peft saves them: merged into the weights they adapt, or attached to them.

Formulas: LoRA (arXiv:2106.09685) W' = W + s B A with s = alpha / r; DoRA (arXiv:2402.09353) W' = m (W + s B A) / norm,
norm being that of each row (output channel) of W + s B A.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zoo.convert.transformers_folder import Checkpoint
from zoo.errors import WeightsError, suggest

if TYPE_CHECKING:
    from torch import Tensor

_PREFIX = "base_model.model."
# peft up to 0.11 and its current save format leave out the adapter's name and, for the magnitude, `.weight`
_LORA = re.compile(r"(?P<path>.+)\.(?P<kind>lora_A|lora_B|lora_magnitude_vector)(\.(?!bias$)\w+)??(\.weight)?")


@dataclass(frozen=True)
class LowRank:
    """The update of one linear layer: down (r, in), up (out, r), and for DoRA the magnitude (out,)."""

    down: Tensor
    up: Tensor
    magnitude: Tensor | None = None


@dataclass(frozen=True)
class Adapter:
    """An adapter, by the path of the adapted layer.

    saved: tensors that were trained in full and stored along (peft's modules_to_save), under their names in the model.
    scale: alpha / r (alpha / sqrt(r) for rank-stabilised LoRA).
    """

    updates: Mapping[str, LowRank]
    saved: Mapping[str, Tensor]
    scale: float
    place: str


def read_adapter(checkpoint: Checkpoint, module_path: Callable[[str], str]) -> Adapter:
    """Parse an adapter; `module_path` turns the authors' name of a layer into ours.

    Raises:
        WeightsError: no adapter_config.json, a kind of adapter that is not LoRA or DoRA, half an update, or an update
            that is exactly zero (an adapter that never learned anything, or was saved under names that got lost).
    """
    scale = _scale(checkpoint)
    parts: dict[str, dict[str, Tensor]] = {}
    saved: dict[str, Tensor] = {}
    for key, value in checkpoint.tensors.items():
        name = key.removeprefix(_PREFIX)
        match = _LORA.fullmatch(name)
        if match is None:
            saved[name.replace(".modules_to_save.default.", ".")] = value
        else:
            parts.setdefault(module_path(match["path"]), {})[match["kind"]] = value
    if not parts:
        raise WeightsError(f"{checkpoint.place} holds no LoRA tensors; its keys begin {sorted(checkpoint.tensors)[:3]}")
    updates = {path: _low_rank(path, found, checkpoint.place) for path, found in parts.items()}
    return Adapter(updates, saved, scale, checkpoint.place)


def _scale(checkpoint: Checkpoint) -> float:
    config, place = checkpoint.config, checkpoint.place
    if "lora_alpha" not in config or "r" not in config:
        raise WeightsError(
            f"{place} has no adapter_config.json that states r and lora_alpha; copy it beside the weights"
        )
    if config.get("peft_type", "LORA") != "LORA":
        raise WeightsError(f"{place} is a {config['peft_type']} adapter; LoRA and DoRA can be read")
    for option in ("rank_pattern", "alpha_pattern"):
        if config.get(option):
            raise WeightsError(f"{place} uses {option}, which is not supported; merge it with peft and load the result")
    rank = float(config["r"])
    return float(config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _low_rank(path: str, found: Mapping[str, Tensor], place: str) -> LowRank:
    missing = [kind for kind in ("lora_A", "lora_B") if kind not in found]
    if missing:
        raise WeightsError(f"{place} lacks {missing[0]} of '{path}'; fetch or copy it again")
    if not found["lora_B"].any():
        raise WeightsError(
            f"the update of '{path}' in {place} is zero: the adapter was never trained, or not saved whole"
        )
    return LowRank(found["lora_A"], found["lora_B"], found.get("lora_magnitude_vector"))


def merged(base: Mapping[str, Tensor], adapter: Adapter) -> dict[str, Tensor]:
    """`base` with the updates folded in, computed in fp32 or better and rounded once to the type of `base`."""
    import torch

    _check_fits(base, adapter)
    state = dict(base)
    for path, update in adapter.updates.items():
        weight = base[f"{path}.weight"]
        precision = torch.promote_types(weight.dtype, torch.float32)
        folded = weight.to(precision) + adapter.scale * (update.up.to(precision) @ update.down.to(precision))
        if update.magnitude is not None:
            folded *= (update.magnitude.to(precision) / folded.norm(dim=1))[:, None]
        state[f"{path}.weight"] = folded.to(weight.dtype)
    return state


def attached(base: Mapping[str, Tensor], adapter: Adapter, scale: float) -> dict[str, Tensor]:
    """`base` and the updates under the names that peft's layers have in a module (`base_layer`, `lora_A.default`, ...).

    `scale` is alpha / r of those layers. Where the adapter was trained with another, B is multiplied by their ratio,
    which gives the same function.
    """
    _check_fits(base, adapter)
    state = {}
    for key, value in base.items():
        path, _, name = key.rpartition(".")
        state[f"{path}.base_layer.{name}" if path in adapter.updates else key] = value
    for path, update in adapter.updates.items():
        state[f"{path}.lora_A.default.weight"] = update.down
        state[f"{path}.lora_B.default.weight"] = update.up * (adapter.scale / scale)
        if update.magnitude is not None:
            state[f"{path}.lora_magnitude_vector.default.weight"] = update.magnitude
    return state


def _check_fits(base: Mapping[str, Tensor], adapter: Adapter) -> None:
    for path, update in adapter.updates.items():
        weight = base.get(f"{path}.weight")
        if weight is None:
            near = suggest(f"{path}.weight", base, most=1)
            hint = f"; the nearest is '{near[0]}'" if near else ""
            raise WeightsError(f"{adapter.place} adapts '{path}', which the model does not have{hint}")
        if weight.shape != (len(update.up), update.down.shape[1]):
            raise WeightsError(
                f"{adapter.place} adapts '{path}' of shape {(len(update.up), update.down.shape[1])}, the model's is "
                f"{tuple(weight.shape)}: it was trained on another size of the model"
            )
