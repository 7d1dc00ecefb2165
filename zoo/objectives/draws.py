"""Random numbers of a training batch that are the same on all ranks and come again after resuming."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Draws(nn.Module):
    """Counts training batches (the count is saved with the weights) and draws by that count: where several batches make one
    optimizer step, each has its own draw, as in the official codes.

    The global generator will not do where all ranks must agree: each has a seed of its own. It is left untouched.

    Args:
        seed: another one gives other numbers.
    """

    step: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def beta(self, concentrations: Sequence[float]) -> list[float]:
        """One draw of Beta(c, c) for each c > 0."""
        with torch.random.fork_rng(devices=[]):
            # not torch.manual_seed: that would reseed the accelerators, too
            torch.default_generator.manual_seed(self.seed * 1_000_003 + int(self.step))
            values = torch.tensor(list(concentrations), dtype=torch.float64)
            return [float(share) for share in torch.distributions.Beta(values, values).sample()]

    def normal(self, shape: Sequence[int], like: Tensor, stream: int = 0) -> Tensor:
        """Standard normal numbers, of the type and on the device of `like`.

        Ranks agree where their devices are of one kind. `stream` tells several draws for one batch apart.
        """
        generator = torch.Generator(like.device).manual_seed((self.seed * 1_000_003 + int(self.step)) * 16 + stream)
        return torch.randn(*shape, generator=generator, dtype=like.dtype, device=like.device)

    def advance(self) -> None:
        """The next batch draws anew; nothing happens outside of training."""
        if self.training:
            self.step += 1
