"""PCME's loss: is this a match? asked of every pair of samples of two distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.objectives.bottleneck import kl_to_standard
from zoo.objectives.contrastive import row_blocks
from zoo.objectives.counterparts import counterparts
from zoo.objectives.direction import Duplicates
from zoo.objectives.draws import Draws
from zoo.objectives.match import Match
from zoo.objectives.objective import Objective, row_share, share, view
from zoo.objectives.sampled import Samples, sample_uniformity
from zoo.similarity.match_probability import MatchProbability, drawn, sample_logits
from zoo.similarity.similarity import gaussian
from zoo.types import Embedding, Encoded


class PCME(nn.Module, Objective):
    """Pairs that belong together are likely to match, all others not; a match is a matter of K samples of either side.

    Formula:
        p_ij = 1/K^2 sum_kl sigmoid(-a |z_i^k - z_j^l| + b), z = mu + sigma * noise
        L = 2/B sum_ij -log(p_ij where i and j belong together, else 1 - p_ij) + v (KL_x + KL_y) + u L_unif
        (PCME, arXiv:2101.05068). The factor 2 stands for the two directions, which are equal. KL: of a row, to the standard
        normal distribution, summed over coordinates. L_unif = log of the mean of exp(-2 |z - z'|^2) over pairs of samples.

    Inputs:
        the views `query` and `target` (named by `views`) with log_var, one row per sample or several. A row whose sample
        lacks the other view weighs nothing.

    Args:
        scale: start value of a. bias: start value of b. Both are learned, as they are, unless `learn` is "no".
        learn: "linear" or "no".
        samples: K.
        vib: v. uniformity: u; the official recipes have 0.
        duplicates: what becomes of cells that are as right as the own one (see `SigLIP`); "keep" is official.
        form: "official" computes what the official code does: a sigmoid of twice its argument; sums over samples, so that
            the loss is B times larger but for the uniformity; and log_var is taken for the logarithm of a standard
            deviation where samples are drawn, but for that of a variance in the KL, which is taken at the mean of the
            samples. "exact" computes the formula. In both, 1e-6 is added to squared distances. Scores, probabilities and
            uncertainties are those of the distributions that samples are drawn from, in either form (`distribution`).
        seed: of the noise, of which every rank draws the same.
        views: names of the two sides.

    Use with: dual encoders and projectors whose heads give log_var. Relations: with all variances 0 it is a sigmoid loss on
    distances. No tensor of N x N x K x K is held beyond blocks of rows. The weights of samples do not count in the
    uniformity, which the official code estimates from 128 random samples and which is exact here.

    Raises:
        RecipeError: a view has no log_var, or fewer than one sample is asked for.
    """

    def __init__(
        self,
        scale: float = 15.0,
        bias: float = 15.0,
        learn: Literal["linear", "no"] = "linear",
        samples: int = 7,
        vib: float = 1e-5,
        uniformity: float = 0.0,
        duplicates: Duplicates = "positive",
        form: Literal["exact", "official"] = "exact",
        seed: int = 0,
        views: tuple[str, str] = ("query", "target"),
    ) -> None:
        super().__init__()
        if samples < 1:
            raise RecipeError(f"PCME draws at least one sample of a distribution, not {samples}")
        self.learn = learn
        self.scale = nn.Parameter(torch.tensor(float(scale)), requires_grad=learn != "no")
        self.bias = nn.Parameter(torch.tensor(float(bias)), requires_grad=learn != "no")
        self.samples = samples
        self.vib = vib
        self.uniformity = uniformity
        self.duplicates = duplicates
        self.official = form == "official"
        self.draws = Draws(seed)
        self.query, self.target = views

    def forward(self, local: Encoded, everyone: Encoded) -> dict[str, Tensor]:
        """See `Objective`. Besides `loss`: `match`, `vib` and `uniformity` where in use, all without their weights;
        `scale` and `bias`.
        """
        part = len(local.sample) / len(everyone.sample)
        local, everyone = counterparts(local, everyone, self.query, self.target)
        sides = [self._sampled(local, everyone, name, stream) for stream, name in enumerate((self.query, self.target))]
        self.draws.advance()
        weighted = [("match", 2.0, self._match(local, everyone, sides[0].mine, sides[1].all))]
        if self.vib:
            weighted.append(("vib", self.vib, self._vib(local, everyone, [side.mine for side in sides])))
        if self.uniformity:
            weighted.append(("uniformity", self.uniformity, sample_uniformity(sides)))
        losses = [weight * term for _, weight, term in weighted]
        return {
            "loss": sum(losses[1:], losses[0]),
            **{name: term.detach() / part for name, _, term in weighted},
            "scale": self.scale.detach(),
            "bias": self.bias.detach(),
        }

    def pair_scores(self, pictures: Embedding, texts: Embedding) -> Tensor:
        """(r, C) logarithms of match probabilities, from `samples` samples of either side: of the distributions, and by the
        sigmoid, that are trained.
        """
        factor = 2 if self.official else 1
        scale, bias = (factor * float(part.detach()) for part in (self.scale, self.bias))
        sides = self.distribution(pictures), self.distribution(texts)
        scores: Tensor = MatchProbability(scale, bias, self.samples, self.draws.seed)(*sides)
        return scores

    def match_log_probability(self, pictures: Embedding, texts: Embedding) -> Tensor:
        """(r, C), the scores themselves."""
        return self.pair_scores(pictures, texts)

    def distribution(self, embedding: Embedding) -> Embedding:
        """The embedding whose log_var is the log variance of what is sampled: "official" takes it for log sigma."""
        if not self.official or embedding.log_var is None:
            return embedding
        return replace(embedding, log_var=2 * embedding.log_var)

    def _sampled(self, local: Encoded, everyone: Encoded, name: str, stream: int) -> Samples:
        mean, log_std = self._distribution(everyone, name)
        noise = self.draws.normal((len(mean), self.samples, mean.shape[1]), mean, stream)
        places = torch.isin(everyone.owners[name], local.sample).nonzero().squeeze(1)
        samples = drawn(mean, log_std, noise)
        if local is everyone:
            return Samples(samples, samples, places)
        return Samples(drawn(*self._distribution(local, name), noise[places]), samples, places)

    def _distribution(self, encoded: Encoded, name: str) -> tuple[Tensor, Tensor]:
        mean, log_var = gaussian(self.distribution(view(encoded, name)))
        return mean, log_var / 2

    def _match(self, local: Encoded, everyone: Encoded, left: Tensor, right: Tensor) -> Tensor:
        match = Match(local, everyone, self.query, self.target)
        factor = 2 if self.official else 1

        def block(part: slice) -> Tensor:
            logits = sample_logits(left[part], right, factor * self.scale, factor * self.bias)
            own = match.own(part)
            same = own if self.duplicates == "keep" else match.same(part)
            yes = same if self.duplicates == "positive" else own
            sign = torch.where(yes, 1.0, -1.0).to(logits.dtype)
            losses = math.log(logits.shape[2]) - F.logsigmoid(logits * sign[:, :, None]).logsumexp(2)
            return (losses.masked_fill(same & ~own, 0.0) if self.duplicates == "mask" else losses).sum(1)

        losses = row_blocks(block, len(left), len(right) * self.samples**2)
        found = share(losses, local, everyone, self.query)
        return found * len(everyone.sample) if self.official else found

    def _vib(self, local: Encoded, everyone: Encoded, samples: Sequence[Tensor]) -> Tensor:
        shares = []
        for name, drawn_rows in zip((self.query, self.target), samples, strict=True):
            mean, log_var = gaussian(view(local, name))
            at = drawn_rows.mean(1) if self.official else mean
            found = row_share(kl_to_standard(at, log_var).sum(1), local, everyone, name)
            shares.append(found * len(everyone.owners[name]) if self.official else found)
        return sum(shares[1:], shares[0])
