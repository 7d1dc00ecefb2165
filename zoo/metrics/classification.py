"""Zero-shot classification: one vector per class from many prompts, then ranking as everywhere.

Shapes: C prompts, K classes, E width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from zoo.errors import SampleError
from zoo.types import RetrievalTask


def class_vectors(prompts: Tensor, groups: Sequence[int], name: str = "task") -> Tensor:
    """The normalised mean of the normalised vectors of each class's prompts: (C, E) -> (K, E) fp32.

    Computed in fp64, so that classes whose prompts have one vector get one vector however many prompts they have. A class
    whose vectors cancel out gets zeros and so scores 0 everywhere.

    Args:
        prompts: (C, E), any float type.
        groups: per prompt its class, 0, 1, ... without gaps.
        name: what error messages call the data.

    Raises:
        SampleError: groups that do not fit.

    Source: CLIP (arXiv:2103.00020, section 3.1.4), as open_clip's `build_zero_shot_classifier` does it.
    """
    count = checked_groups(groups, len(prompts), name)
    which = torch.tensor(groups)
    units = torch.nn.functional.normalize(prompts.cpu().double(), dim=1)  # on the CPU: some devices know no fp64
    sums = units.new_zeros(count, units.shape[1]).index_add_(0, which, units)
    return (
        torch.nn.functional.normalize(sums / which.bincount(minlength=count)[:, None], dim=1).float().to(prompts.device)
    )


def checked_groups(groups: Sequence[int], prompts: int, name: str) -> int:
    """The number of classes. SampleError unless every prompt has a class and every class a prompt."""
    if len(groups) != prompts:
        raise SampleError(f"{name}: {prompts} candidates, but {len(groups)} groups")
    found = set(groups)
    if found != set(range(len(found))):
        raise SampleError(f"{name}: groups are numbered 0, 1, ... without gaps; these are {sorted(found)[:6]}...")
    return len(found)


def by_class(task: RetrievalTask) -> RetrievalTask:
    """The task as it is ranked: with `groups`, each class has one candidate, its first prompt; else the task itself."""
    if task.groups is None:
        return task
    first: dict[int, int] = {}
    for prompt, group in enumerate(task.groups):
        first.setdefault(group, prompt)
    checked_groups(task.groups, len(task.candidates), f"task '{task.name}'")
    return replace(task, candidates=[task.candidates[first[k]] for k in range(len(first))], groups=None)
