"""Parameters by name: which ones a pattern means, and at what rates an optimizer trains them."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer

from zoo.errors import RecipeError, ZooWarning
from zoo.weights import plain


def matching(pattern: str, names: Iterable[str], option: str) -> list[str]:
    """The names that a pattern matches from their start. Warns if it ends inside of some and at the end of a part of others:
    `image` also matches `image_head`.
    """
    found = {name: match.end() for name in names if (match := re.match(pattern, plain(name)))}
    cut = sorted(name for name, end in found.items() if re.fullmatch(r"\w\w", plain(name)[end - 1 : end + 1]))
    if cut and len(cut) < len(found):
        whole = min(set(found) - set(cut))
        warnings.warn(
            ZooWarning(
                f"`{option}`: the pattern '{pattern}' matches '{cut[0]}' as well as '{whole}', because it ends inside of a "
                f"name; write '{pattern}[.]' for that part alone, or '{pattern}.*' if all are meant"
            ),
            stacklevel=2,
        )
    return list(found)


def built_optimizer(module: nn.Module, build: Callable[[Any], Optimizer], rates: Mapping[str, float]) -> Optimizer:
    """`build`, given the trained parameters in groups: weight decay for matrices only, and the rates of `rates`.

    Args:
        module: whose parameters are trained.
        build: groups of parameters -> optimizer.
        rates: pattern -> factor of the learning rate; of several patterns that match, the first one counts.

    Raises:
        RecipeError: nothing is trained, a pattern matches nothing that is, or settings that the optimizer refuses.
    """
    groups = _groups(module, list(rates))
    with _settings_of("optimizer"):
        optimizer = build(
            [{"params": found} | ({} if decays else {"weight_decay": 0.0}) for (_, decays), found in groups.items()]
        )
    if bad := [group["lr"] for group in optimizer.param_groups if not math.isfinite(group["lr"])]:
        raise RecipeError(f"model.optimizer: the learning rate is {bad[0]}; set a number, such as lr: 1.0e-3")
    for group, (pattern, _) in zip(optimizer.param_groups, groups, strict=True):
        if pattern in rates:
            group["lr"] = group["lr"] * rates[pattern]
    return optimizer


def built_scheduler(build: Callable[[Optimizer], Any], optimizer: Optimizer, keeps_ratios: bool) -> Any:
    """`build`, given the optimizer.

    Raises:
        RecipeError: settings that the scheduler refuses; or with `keeps_ratios`, if it sets the rates of the groups in other
            ratios than they had.
    """
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    with _settings_of("scheduler"):
        scheduler = build(optimizer)
    if keeps_ratios:
        _check_ratios(rates, optimizer, scheduler)
    return scheduler


def _groups(module: nn.Module, patterns: Sequence[str]) -> dict[tuple[str, bool], list[nn.Parameter]]:
    """(pattern, whether weights decay) -> trained parameters; "" = those that no pattern matches."""
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {
        (pattern, decays): [] for decays in (True, False) for pattern in ("", *patterns)
    }
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    rated = {pattern: set(matching(pattern, trained, "rates")) for pattern in patterns}
    for name, parameter in trained.items():
        pattern = next((one for one, found in rated.items() if name in found), "")
        groups[pattern, parameter.ndim >= 2].append(parameter)
    groups = {key: found for key, found in groups.items() if found}
    if not groups:
        raise RecipeError("nothing to train: every parameter is frozen")
    if idle := sorted(set(patterns) - {pattern for pattern, _ in groups}):
        raise RecipeError(f"`rates` names {idle}, which no trained parameter matches that an earlier pattern does not")
    return groups


def _check_ratios(rates: Sequence[float], optimizer: Optimizer, scheduler: object) -> None:
    """Raise RecipeError if a scheduler set the rates of the groups itself, in other ratios than `rates` had put them."""
    now = [float(group["lr"]) for group in optimizer.param_groups]
    if not all(math.isclose(rates[0] * lr, now[0] * rate, rel_tol=1e-6) for rate, lr in zip(rates, now, strict=True)):
        raise RecipeError(
            f"`rates` has no effect under {type(scheduler).__name__}, which sets the rate of every parameter itself: take a "
            "scheduler that multiplies the optimizer's rate, such as WarmupCosine, or leave `rates` out"
        )


@contextmanager
def _settings_of(part: str) -> Iterator[None]:
    """What torch says of settings that a recipe gives, as a RecipeError that names the part."""
    try:
        yield
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise RecipeError(f"model.{part}: {error}") from error
