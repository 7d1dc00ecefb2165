"""FLAIR's loss: pictures as each text sees them, and several texts per picture (arXiv:2412.03561).

N samples of all ranks, K texts per picture, r pictures of a block, L tokens, E width.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.objectives.contrastive import at_least_fp32, row_blocks
from zoo.objectives.counterparts import counterparts
from zoo.objectives.direction import Duplicates
from zoo.objectives.match import Match
from zoo.objectives.objective import Objective, view
from zoo.objectives.siglip import sigmoid_losses
from zoo.objectives.temperature import Learn, Temperature
from zoo.types import Embedding, Encoded


class Flair(nn.Module, Objective):
    """A picture says yes to its own texts, globally and as each of those texts sees it, and no to all others.

    Formula:
        L = (TCS + MPS) / 2 (equations 4 to 6; divisors of the official code)
        TCS = sum_i sum_j -log sigmoid(y_ij (s <v_ij, t_j> + b)) / (N + K - 1); v_ij = unit(pooling(t_j, tokens of i)), where
            j runs over the K own texts of i and one random text of every other picture
        MPS = sum_i sum_j -log sigmoid(y_ij (s <v_i, t_j> + b)) / (N K), over all texts of all pictures

    Inputs:
        a view of pictures with tokens (`tokens: true` of the model), one row per sample; a view of texts, K rows per sample.
        A sample that lacks one of them weighs nothing.

    Args:
        pooling: (texts (r, T, E), tokens (r, L, E), mask (r, L) or None) -> (r, T, E). It is trained and kept with the
            objective: `zoo.nn.conditioned_pooling.conditioned_scores` ranks with it. Whoever searches by vectors alone
            needs none of it.
        temperature: start value. bias: start value; -10 is official, log(1 / (N - 1)) is kinder to small batches.
        learn: as in `InfoNCE`; the bias is learned unless "no".
        max_scale: None = no cap.
        duplicates: what becomes of texts that are as right as the own ones (see `InfoNCE`); "keep" is official.
        queries: what asks the pooling. "unit" = unit vectors times sqrt(E), so that the eps of an LN weighs the same on all
            texts; "official" = texts as they were before they were made unit vectors.
        views: pictures, texts.

    Relations: without TCS and with K = 1 it is SigLIP's loss. Attention is computed in blocks of pictures, and again in the
    backward pass, so that memory does not grow with N x N.

    Raises:
        RecipeError: no tokens, or samples with different numbers of texts.
    """

    def __init__(
        self,
        pooling: nn.Module,
        temperature: float = 0.07,
        bias: float = -10.0,
        learn: Learn = "log",
        max_scale: float | None = None,
        duplicates: Duplicates = "keep",
        queries: Literal["unit", "official"] = "unit",
        views: tuple[str, str] = ("query", "target"),
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.temperature = Temperature(temperature, learn, max_scale)
        self.learn = learn
        self.bias = nn.Parameter(torch.tensor(float(bias)), requires_grad=learn != "no")
        self.duplicates = duplicates
        self.queries = queries
        self.pictures, self.texts = views

    def forward(self, local: Encoded, everyone: Encoded) -> dict[str, Tensor]:
        """See `Objective`. Besides `loss`: its halves `conditioned` and `whole`, `temperature` and `bias`."""
        scale = self.temperature()
        part = len(local.sample) / len(everyone.sample)
        local, everyone = counterparts(local, everyone, self.pictures, self.texts)
        samples, texts = len(everyone.owners[self.pictures]), len(view(everyone, self.texts).vector)
        each = texts_per_sample(everyone, self.texts)
        whole = sigmoid_losses(local, everyone, self.pictures, self.texts, scale, self.bias, self.duplicates)
        conditioned = self._conditioned(local, everyone, scale, each)
        weights = local.weights[torch.searchsorted(local.sample, local.owners[self.pictures])]
        mps = (whole * weights).sum() / max(1, texts)
        tcs = (conditioned * weights).sum() / max(1, samples + each - 1)
        return {
            "loss": (mps + tcs) / 2,
            "conditioned": tcs.detach() / part,
            "whole": mps.detach() / part,
            "temperature": (1 / scale).detach(),
            "bias": self.bias.detach(),
        }

    def pair_scores(self, pictures: Embedding, texts: Embedding) -> Tensor:
        """(r, C) cosines of every text with every picture as that text sees it: what FLAIR ranks by.

        r x C poolings: where there are many, rank by vectors first and score the best few hundred (official: 128 or 256).
        """
        if pictures.tokens is None:
            raise RecipeError("FLAIR looks at parts: the model needs tokens: true")
        tokens, vectors = at_least_fp32(pictures.tokens), at_least_fp32(texts.vector)
        queries = self._queries(texts).expand(len(tokens), -1, -1)
        pooled = self.pooling(queries, tokens, pictures.mask)
        return (F.normalize(pooled, dim=-1) * vectors).sum(-1)

    def _conditioned(self, local: Encoded, everyone: Encoded, scale: Tensor, each: int) -> Tensor:
        """Per picture the sum of the losses of the texts that look at it."""
        picture = view(local, self.pictures)
        if picture.tokens is None or picture.mask is None:
            raise RecipeError(f"FLAIR looks at parts: the view '{self.pictures}' needs tokens (model: tokens: true)")
        tokens, mask, texts = (
            at_least_fp32(picture.tokens),
            picture.mask,
            at_least_fp32(view(everyone, self.texts).vector),
        )
        queries = self._queries(view(everyone, self.texts))
        if not len(
            tokens
        ):  # attention refuses no rows at all; all that other processes learn from gets a gradient of 0
            learning = queries.sum() + sum(parameter.sum() for parameter in self.pooling.parameters())
            return tokens.sum((1, 2)) + 0 * learning
        match = Match(local, everyone, self.pictures, self.texts)
        samples = match.column_owner.unique()
        drawn = self.drawn(len(tokens), len(samples), each, texts.device)
        chosen = choose_texts(match.row_owner, samples, match.column_owner, drawn)
        masked = None if bool(mask.all()) else mask

        def block(part: slice) -> Tensor:
            place = chosen[part]
            with torch.autocast(tokens.device.type, enabled=False):
                pooled = self.pooling(queries[place], tokens[part], None if masked is None else masked[part])
                logits = (F.normalize(pooled, dim=-1) * texts[place]).sum(-1) * scale + self.bias
                yes = match.own(part).gather(1, place)
                same = yes if self.duplicates == "keep" else match.same(part).gather(1, place)
                losses = F.softplus(torch.where(same if self.duplicates == "positive" else yes, -logits, logits))
                return (losses.masked_fill(same & ~yes, 0.0) if self.duplicates == "mask" else losses).sum(1)

        return row_blocks(block, len(tokens), chosen.shape[1] * (tokens.shape[1] + texts.shape[1]))

    def _queries(self, texts: Embedding) -> Tensor:
        """(C, E), see `queries`."""
        vectors = at_least_fp32(texts.vector)
        if self.queries == "unit":  # an LN's eps would weigh on unit vectors: their variance is 1 / E
            return vectors * math.sqrt(vectors.shape[1])
        if texts.norm is None:
            raise RecipeError(
                f"`queries: official` needs the length of texts before they were made unit vectors: the view '{self.texts}' "
                "holds one text per row, and the model has tokens: true"
            )
        return vectors * texts.norm.to(vectors.dtype)[:, None]

    def drawn(self, pictures: int, samples: int, each: int, device: torch.device) -> Tensor:
        """Which of its texts every other sample shows to every picture: (pictures, samples), 0 to `each` - 1."""
        return torch.randint(each, (pictures, samples), device=device)


def texts_per_sample(encoded: Encoded, name: str) -> int:
    """K, 0 if no sample has any. RecipeError unless all samples that have rows in the view `name` have equally many."""
    counts = encoded.owners[name].unique(return_counts=True)[1]
    if not len(counts):
        return 0
    if int(counts.min()) != int(counts.max()):
        raise RecipeError(
            f"FLAIR needs equally many texts per sample; the view '{name}' has {int(counts.min())} to {int(counts.max())} "
            "(set `captions` of the source)"
        )
    return int(counts[0])


def choose_texts(pictures: Tensor, samples: Tensor, texts: Tensor, drawn: Tensor) -> Tensor:
    """Columns that every picture is compared with: its own K texts and one of every other sample.

    Args:
        pictures: (I,) owner of each.
        samples: (N,) all owners, ascending.
        texts: (N K,) owner of each.
        drawn: (I, N) which of their texts the samples show to each picture, 0 to K - 1.

    Returns:
        (I, N + K - 1) places in `texts`.
    """
    count = len(samples)
    places = texts.argsort(stable=True).view(count, -1)
    own = torch.searchsorted(samples, pictures)
    shown = places.expand(len(pictures), -1, -1).gather(2, drawn.unsqueeze(2)).squeeze(2)
    others = torch.arange(count, device=texts.device) != own[:, None]
    return torch.cat([places[own], shown[others].view(len(pictures), count - 1)], dim=1)
