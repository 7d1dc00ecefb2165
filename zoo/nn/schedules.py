"""Learning-rate schedules that torch does not have in this form."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class WarmupCosine(LambdaLR):
    """Linear warm-up, then half a cosine down to `floor` times the learning rate at `total_steps`.

    The first step has 1 / `warmup_steps` of the learning rate, the last one of the warm-up all of it (open_clip's
    `cosine_lr`). big_vision and transformers begin at 0, with a step that changes nothing.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int, total_steps: int, floor: float = 0.0) -> None:
        def factor(step: int) -> float:
            if step < warmup_steps:
                return (step + 1) / warmup_steps
            done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
            return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))

        super().__init__(optimizer, factor)


class WarmupLinear(LambdaLR):
    """Linear warm-up from 0, then linearly down to 0 at `total_steps` (transformers' "linear")."""

    def __init__(self, optimizer: Optimizer, warmup_steps: int, total_steps: int) -> None:
        def factor(step: int) -> float:
            if step < warmup_steps:
                return step / max(1, warmup_steps)
            return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))

        super().__init__(optimizer, factor)
