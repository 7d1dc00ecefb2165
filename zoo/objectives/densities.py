"""Logarithms of densities, and divergences, of distributions whose coordinates are independent. E, D: how many there are."""

from __future__ import annotations

import math

from torch import Tensor


def log_normal(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Log density (...) at z (..., E) of the normal distribution with this mean and log-variance (..., E)."""
    return -((z - mean).square() * (-log_var).exp() + log_var + math.log(2 * math.pi)).sum(-1) / 2


def log_mixture(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Log density (S,) at z (S, E) of N normal distributions (N, E) in equal shares."""
    return log_normal(z[:, None], mean, log_var).logsumexp(1) - math.log(len(mean))


def log_laplace(x: Tensor, mean: Tensor, scale: float) -> Tensor:
    """Log density (...) at x (..., D) of the Laplace distribution with this mean (..., D) and scale."""
    return -((x - mean).abs() / scale + math.log(2 * scale)).sum(-1)


def normal_divergence(mean: Tensor, log_var: Tensor, other: Tensor, other_log_var: Tensor) -> Tensor:
    """KL divergence (...) of the first normal distribution (..., E) from the second."""
    spread = (log_var - other_log_var).exp() + (mean - other).square() * (-other_log_var).exp()
    return (spread - 1 + other_log_var - log_var).sum(-1) / 2
