"""The generalised Gaussian distribution: exp(-(|x - mu| / alpha)^beta), beta = 2 a Gaussian, beta = 1 a Laplacian.

Its variance is alpha^2 Gamma(3 / beta) / Gamma(1 / beta). All functions are elementwise; shapes broadcast.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_POWER = 60.0  # of e: a power of a residual is held at or below e^60, which still is a number in fp32
LARGEST_LOG_SHAPE = 10.0
_SMALLEST = 1e-12  # residuals below have no logarithm worth the name


def log_variance(log_alpha: Tensor, log_shape: Tensor) -> Tensor:
    """Log of the variance of the distribution with width e^log_alpha and exponent e^log_shape."""
    return 2 * log_alpha + _log_ratio(log_shape)


def log_width(log_var: Tensor, log_shape: Tensor) -> Tensor:
    """Log of alpha, given the log of the variance: the inverse of `log_variance`."""
    return (log_var - _log_ratio(log_shape)) / 2


def negative_log_likelihood(residual: Tensor, log_alpha: Tensor, log_shape: Tensor) -> Tensor:
    """(|r| / alpha)^beta - log(beta / alpha) + log Gamma(1 / beta), of residuals r (ProbVLM, arXiv:2307.00398).

    It leaves out the constant log 2, as the paper does. The power is taken in logarithms and held at or below e^60.
    """
    log_shape = _bounded(log_shape)
    shape = log_shape.exp()
    log_residual = residual.abs().clamp(min=_SMALLEST).log()
    power = (shape * (log_residual - log_alpha)).clamp(max=LARGEST_POWER).exp()
    return power - log_shape + log_alpha + torch.lgamma(1 / shape)


def official_negative_log_likelihood(residual: Tensor, log_alpha: Tensor, log_shape: Tensor) -> Tensor:
    """What the official code computes: the product |r| beta / alpha in place of the power, within 1e-4 and 1e3, and 1e-4
    added to 1 / alpha and to beta.
    """
    inverse, shape = (-log_alpha).clamp(max=LARGEST_POWER).exp() + 1e-4, _bounded(log_shape).exp() + 1e-4
    product = (residual.abs() * inverse * shape).clamp(1e-4, 1e3)
    return product - inverse.log() - shape.log() + torch.lgamma(1 / shape)


def _bounded(log_shape: Tensor) -> Tensor:
    return log_shape.clamp(-LARGEST_LOG_SHAPE, LARGEST_LOG_SHAPE)


def _log_ratio(log_shape: Tensor) -> Tensor:
    """Log of Gamma(3 / beta) / Gamma(1 / beta)."""
    inverse = (-_bounded(log_shape)).exp()
    return torch.lgamma(3 * inverse) - torch.lgamma(inverse)
