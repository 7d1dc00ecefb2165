"""A further stage of training: the weights of a trained model as the start of another (ABC's second stage)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from zoo.errors import RecipeError
from zoo.nn.adapters import beneath_adapters, gated_layers, merge_adapters
from zoo.nn.momentum import Momentum

_LEARNED_IN_TRAINING = ("objective", "mixing")  # parts that matter in training alone
_TRAINING_STATE = (*(f"{name}." for name in _LEARNED_IN_TRAINING), "slow.")


def start_from(model: nn.Module, other: nn.Module, source: str, fresh: Sequence[str] = ()) -> None:
    """Give `model` the weights of `other`, so that both give the same vectors afterwards.

    The adapters of `other` become part of its weights, in place; those of `model` stay fresh. Adapters that act on some rows
    only can't be merged: they are taken over where `model` has the same ones. The two must agree in everything else, except
    for parts named in `fresh`: they stay as they are, whether `other` lacks them (the head of a modality that is added to a
    trained space) or has them.

    Training itself begins anew. What an objective and `mixing` have learned comes along where both models have a part of one
    class that learns in the same way (`learn`); fixed numbers, counters and queues are those of `model`, and a slow copy is
    one of the new start.

    Raises:
        WeightsError: they do not agree; `source` names `other` in the message. RecipeError: `fresh` names no part, or the
            adapters of `other` act on some rows only, and `model` has not the same ones.
    """
    from zoo.weights import load_strictly

    if gates := gated_layers(other):
        if gates != gated_layers(model):
            raise RecipeError(
                f"the adapters of {source} act on rows with an instruction alone, so they can't become part of the weights: "
                "give the model the same adapter (r, alpha, targets and `when: instruction`), or start from the stage before"
            )
    else:
        merge_adapters(other)
    state, kept = beneath_adapters(other.state_dict(), model)
    learned = {
        f"{part}.{name}"
        for part in _LEARNED_IN_TRAINING
        for name in _learned(getattr(model, part, None), getattr(other, part, None))
    }
    new = _fresh(model, fresh) | {key for key in model.state_dict() if key.startswith(_TRAINING_STATE)} - learned
    taken = {k: v for k, v in state.items() if k not in new and (k in learned or not k.startswith(_TRAINING_STATE))}
    load_strictly(model, taken, source, kept | new)
    slow = getattr(model, "slow", None)
    if isinstance(slow, Momentum):
        slow.restart(model)


def _learned(model: nn.Module | None, other: nn.Module | None) -> Iterator[str]:
    """Names of what is trained in parts of one class that learn in the same way, and of the statistics beside it (of a batch
    norm).
    """
    if model is None or type(model) is not type(other):
        return
    trained = [name for name, parameter in model.named_parameters(recurse=False) if parameter.requires_grad]
    if trained and getattr(model, "learn", None) == getattr(other, "learn", None):
        yield from (*trained, *(name for name, _ in model.named_buffers(recurse=False)))
    others = dict(other.named_children())
    for name, part in model.named_children():
        yield from (f"{name}.{inner}" for inner in _learned(part, others.get(name)))


def _fresh(model: nn.Module, parts: Sequence[str]) -> set[str]:
    """Keys of the parts. RecipeError for one that there is none of."""
    found = set()
    for name in parts:
        keys = {key for key in model.state_dict() if key == name or key.startswith(f"{name}.")}
        if not keys:
            raise RecipeError(f"`start_fresh` names '{name}', but the model has no such part")
        found |= keys
    return found


# ---- what the start brings is not read again ---------------------------------------------------------------------------


def reads_its_own(module: nn.Module, fresh: Sequence[str] = ()) -> tuple[str, ...]:
    """Prefixes of parts that still read what `pretrained` names: frozen encoders, which no bundle holds, and new parts."""
    return tuple(f"{name}." for name in [*module.kept_elsewhere(), *fresh])  # type: ignore[operator]  # an EmbeddingModule


def without_pretrained(module: nn.Module, fresh: Sequence[str] = ()) -> None:
    """Have all other parts read nothing when fitting begins."""
    kept = reads_its_own(module, fresh)
    for name, part in module.named_modules():
        if getattr(part, "pretrained", None) is not None and not f"{name}.".startswith(kept):
            part.pretrained = None


def recipe_without_pretrained(part: Any, kept: tuple[str, ...], path: str = "") -> Any:
    """The same of a recipe's `model`: what says `pretrained` below a path that is not `kept` says null."""
    if isinstance(part, list):
        return [recipe_without_pretrained(entry, kept, path) for entry in part]
    if not isinstance(part, Mapping):
        return part
    return {
        key: None
        if key == "pretrained" and not path.startswith(kept)
        else recipe_without_pretrained(value, kept, path if key == "init_args" else f"{path}{key}.")
        for key, value in part.items()
    }
