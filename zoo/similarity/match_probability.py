"""The probability that two distributions match, from samples of both (PCME).

R rows, C columns, K samples, E width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.similarity.similarity import Similarity, gaussian
from zoo.similarity.tiles import tiled
from zoo.types import Embedding

SOFT_ROOT = 1e-6
"""Is added to squared distances before the root is taken, as in the official code: there is no gradient at 0 without it."""


class MatchProbability(nn.Module, Similarity):
    """Log of the mean, over all pairs of a sample of one and a sample of the other, of the probability that they match.

    Formula:
        log p = log 1/K^2 sum_kl sigmoid(-a |z_q^k - z_k^l| + b), z = mu + sigma * noise
        (PCME, arXiv:2101.05068)

    Args:
        scale: a. bias: b. The official code's sigmoid is that of twice its argument: give twice its a and b for its values.
        samples: K.
        seed: of the noise.

    All queries share one draw of K noise vectors, and all keys another: scores do not depend on what else is scored with
    them, and comparing keys is less noisy than with draws of their own. Each score is unbiased all the same (as a
    probability). It stays a logarithm, so that improbable pairs are still ranked.
    """

    def __init__(self, scale: float = 15.0, bias: float = 15.0, samples: int = 7, seed: int = 0) -> None:
        super().__init__()
        self.scale, self.bias = scale, bias
        self.samples = samples
        self.seed = seed

    def forward(self, queries: Embedding, keys: Embedding) -> Tensor:
        """See `Similarity`; both sides need log_var."""
        (mean, log_var), (other, other_log_var) = gaussian(queries), gaussian(keys)
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(2, 1, self.samples, mean.shape[1], generator=generator).to(mean)
        left, right = drawn(mean, log_var / 2, noise[0]), drawn(other, other_log_var / 2, noise[1])

        def score(rows: slice, columns: slice) -> Tensor:
            logits = sample_logits(left[rows], right[columns], self.scale, self.bias)
            return mean_log_sigmoid(logits)

        return tiled(score, len(mean), len(other), self.samples**2)


def drawn(mean: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
    """Samples (R, K, E) of means and log standard deviations (R, E), for standard normal noise (R or 1, K, E)."""
    return mean[:, None] + log_std.exp()[:, None] * noise


def sample_logits(left: Tensor, right: Tensor, scale: Tensor | float, bias: Tensor | float) -> Tensor:
    """(r, C, K^2): -a |x - y| + b for every pair of a sample of `left` (r, K, E) and one of `right` (C, K, E)."""
    (rows, samples, width), columns = left.shape, len(right)
    x, y = left.reshape(-1, width), right.reshape(-1, width)
    with torch.autocast(x.device.type, enabled=False):
        squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
        distances = (squares.clamp(min=0) + SOFT_ROOT).sqrt()
        logits = bias - distances * scale
    return logits.view(rows, samples, columns, samples).transpose(1, 2).flatten(2)


def mean_log_sigmoid(logits: Tensor) -> Tensor:
    """Log of the mean of sigmoid(logits) over the last axis; finite, however small every one of them is."""
    return F.logsigmoid(logits).logsumexp(-1) - math.log(logits.shape[-1])
