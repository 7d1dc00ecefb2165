"""ProbVLM's adapter: how uncertain a frozen vector is, told from the vector alone. R rows, E width, H inner width."""

from __future__ import annotations

import math

from torch import nn

from zoo.nn.gaussian import DistributionHead, Gaussian, LogVariance
from zoo.nn.limits import held
from zoo.nn.towers import States


class BayesCap(DistributionHead):
    """A generalised Gaussian around the frozen vector of an item (ProbVLM, arXiv:2307.00398; official code, `BayesCap_MLP`).

    Formula:
        h = z + W3 Dropout(ReLU(W2 ReLU(W1 z))), z the frozen vector
        mean = f(h), log_var = g(h), log_shape = k(h); f, g and k are each Linear, ReLU, Linear

    The mean has to be rebuilt from z, and is rebuilt worse where items are unusual: that is what variances are learned from.
    The official branches give 1 / alpha and beta through a ReLU, which has no gradient where it is off; here they give the
    logarithms of the variance and of the exponent, from which alpha follows.

    Args:
        dim: E.
        hidden: H (official: 256).
        dropout: official 0.1.
        start: the log-variance to start from; the exponent starts at 2, which is a Gaussian.
        limits: the log-variance is held between these. shapes: so is the exponent; a Laplacian has the exponent 1.

    Use with: `ProbVLM` in a Projector whose encoders give the vectors of a frozen entry (`EntryImage`, `EntryText`).
    """

    def __init__(
        self,
        dim: int,
        hidden: int = 256,
        dropout: float = 0.1,
        start: float = -6.5,
        limits: tuple[float, float] = (-20.0, 5.0),
        shapes: tuple[float, float] = (0.25, 8.0),
    ) -> None:
        super().__init__()
        first, middle = nn.Linear(dim, hidden), nn.Linear(hidden, hidden)
        self.trunk = nn.Sequential(first, nn.ReLU(), middle, nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, dim))
        self.mean = _branch(dim, nn.Linear(dim, dim))
        self.log_var = _branch(dim, LogVariance(dim, dim, start))
        self.log_shape = _branch(dim, LogVariance(dim, dim, math.log(2.0)))
        self.limits = limits
        self.log_shapes = (math.log(shapes[0]), math.log(shapes[1]))

    @property
    def needs_tokens(self) -> bool:
        """The frozen vector is all it reads."""
        return False

    def forward(self, states: States) -> Gaussian:
        """States whose pooled state is the frozen vector -> its distribution."""
        vector = states.pooled
        read = vector + self.trunk(vector)
        log_var, log_shape = held(self.log_var(read), *self.limits), held(self.log_shape(read), *self.log_shapes)
        return Gaussian(self.mean(read), log_var, vector, log_shape)


def _branch(dim: int, last: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), last)
