"""Scores between the regions of a picture and a text: the order and the number of the regions do not matter.

r pictures, C texts, L regions, M words, E width. A score takes pictures and texts and returns (r, C).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.objectives.contrastive import at_least_fp32
from zoo.types import Embedding


class Score(Protocol):
    """Pictures (r rows) and texts (C rows) -> scores (r, C)."""

    def forward(self, pictures: Embedding, texts: Embedding) -> Tensor:
        """See the class."""
        ...

    if TYPE_CHECKING:  # as in `Objective`

        def __call__(self, pictures: Embedding, texts: Embedding) -> Tensor: ...


class BestMatch(nn.Module, Score):
    """Every word takes the region that fits it best.

    Formula:
        S_kl = sum over words t of l of max over regions i of k of v_i . s_t (DVSA, arXiv:1412.2306, equation 8)

    Args:
        reduce: "sum" over words (DVSA), or their "mean" (FILIP, arXiv:2111.07783), which does not favour long captions.
        mutual: average with the same seen from the regions, each of which takes its best word: the row-wise relaxation of
            a bipartite matching (LightCLIP, arXiv:2312.00674, has no code; this reading of it is ours).
        normalize: cosines instead of dot products.
    """

    def __init__(self, reduce: Literal["sum", "mean"] = "sum", mutual: bool = False, normalize: bool = False) -> None:
        super().__init__()
        self.reduce = reduce
        self.mutual = mutual
        self.normalize = normalize

    def forward(self, pictures: Embedding, texts: Embedding) -> Tensor:
        """See `Score`; both sides need tokens."""
        (regions, real), (words, spoken) = tokens(pictures, self.normalize), tokens(texts, self.normalize)
        cells = (regions.flatten(0, 1) @ words.flatten(0, 1).T).unflatten(1, words.shape[:2])
        cells = cells.unflatten(0, regions.shape[:2])  # (r, L, C, M)
        best = cells.masked_fill(~real[:, :, None, None], -torch.inf).amax(1)
        score = self._reduced(best, spoken.expand_as(best), 2)
        if self.mutual:
            best = cells.masked_fill(~spoken, -torch.inf).amax(3)
            score = (score + self._reduced(best, real[:, :, None].expand_as(best), 1)) / 2
        return score

    def _reduced(self, values: Tensor, kept: Tensor, dim: int) -> Tensor:
        total = values.masked_fill(~kept, 0.0).sum(dim)
        return total if self.reduce == "sum" else total / kept.sum(dim)


class RegionSentence(nn.Module, Score):
    """Multiple-instance score of a picture, a bag of regions, and a sentence (arXiv:2212.05561).

    Formula:
        s_n = cos(v_n, t); max, mean, 1/gamma log(1/L sum_n exp(gamma s_n)) ("lse"), or sum_n softmax(gamma s)_n s_n
        ("attention")

    Args:
        pool: how the scores of the regions become one. "lse" and "attention" lie between mean (gamma 0) and max.
        gamma: sharpness of "lse" and "attention" (5: ours).
    """

    def __init__(self, pool: Literal["max", "mean", "lse", "attention"] = "lse", gamma: float = 5.0) -> None:
        super().__init__()
        self.pool = pool
        self.gamma = gamma

    def forward(self, pictures: Embedding, texts: Embedding) -> Tensor:
        """See `Score`; pictures need tokens, texts count by their vector."""
        regions, real = tokens(pictures, normalize=True)
        scores = regions @ at_least_fp32(texts.vector).T  # (r, L, C)
        real = real[:, :, None]
        if self.pool == "mean":
            return scores.masked_fill(~real, 0.0).sum(1) / real.sum(1)
        if self.pool == "max":
            return scores.masked_fill(~real, -torch.inf).amax(1)
        sharp = (self.gamma * scores).masked_fill(~real, -torch.inf)
        if self.pool == "attention":
            return (sharp.softmax(1) * scores).sum(1)
        return (sharp.logsumexp(1) - real.sum(1).to(scores.dtype).log()) / self.gamma


class NonLocalSentence(nn.Module, Score):
    """Cosine of a sentence and the whole picture, whose regions have looked at one another.

    Formula:
        v'_n = v_n + W_o sum_m softmax_m(W_q v_n . W_k v_m / sqrt(H)) W_v v_m (non-local block, arXiv:1711.07971, equation
        6), score = cos(mean_n v'_n, t). Together with `RegionSentence` (by `Weighted`) this is "LSE+NL" of
        arXiv:2212.05561 as we read it: a local and a global score, each in a contrastive loss of its own.

    Args:
        dim: E. hidden: H; None = E / 2, as in the non-local paper.
    """

    def __init__(self, dim: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or max(1, dim // 2)
        self.query, self.key, self.value = (nn.Linear(dim, hidden) for _ in range(3))
        self.output = nn.Linear(hidden, dim)

    def forward(self, pictures: Embedding, texts: Embedding) -> Tensor:
        """See `Score`; pictures need tokens, texts count by their vector."""
        regions, real = tokens(pictures, normalize=False)
        seen = F.scaled_dot_product_attention(
            self.query(regions), self.key(regions), self.value(regions), attn_mask=real[:, None, :]
        )
        mixed = (regions + self.output(seen)).masked_fill(~real[:, :, None], 0.0)
        return F.normalize(mixed.sum(1), dim=-1) @ at_least_fp32(texts.vector).T


def best_regions(pictures: Embedding, texts: Embedding) -> Tensor:
    """(R, M) the region that each word of text i takes in picture i (by dot product); -1 for padding."""
    (regions, real), (words, spoken) = tokens(pictures, False), tokens(texts, False)
    found = (words @ regions.mT).masked_fill(~real[:, None, :], -torch.inf).argmax(2)
    return found.masked_fill(~spoken, -1)


def tokens(embedding: Embedding, normalize: bool) -> tuple[Tensor, Tensor]:
    """(R, L, E) tokens in fp32 or fp64 and (R, L) bool, which of them are real."""
    if embedding.tokens is None:
        raise RecipeError("this score looks at tokens, and there are none (model: tokens: true)")
    found = at_least_fp32(embedding.tokens)
    mask = found.new_ones(found.shape[:2]) if embedding.mask is None else embedding.mask
    return (F.normalize(found, dim=-1) if normalize else found), mask > 0
