"""MEME's loss: two variational autoencoders, one for each modality, of which either is the prior of the other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.objectives.contrastive import at_least_fp32
from zoo.objectives.densities import log_laplace, log_mixture, log_normal, normal_divergence
from zoo.objectives.draws import Draws
from zoo.objectives.objective import Objective, row_mean, view
from zoo.objectives.own_pairs import own_pairs
from zoo.similarity.distances import Wasserstein2
from zoo.similarity.similarity import gaussian
from zoo.types import Embedding, Encoded


@dataclass(frozen=True, slots=True)
class _Side:
    """This rank's rows of a view: mean and log_var (R, E), samples (R, K + 1, E), and the latents (R, D) to rebuild."""

    name: str
    mean: Tensor
    log_var: Tensor
    samples: Tensor
    latents: Tensor


class MEME(nn.Module, Objective):
    """A sample of what one modality says must rebuild the latents of both, and be likely under what the other one says.

    Formula:
        L(s, t) = w (log p(s|z) + log q(z|t) - log q(z|s) - log q(t|z)) + a log q(t|s), z ~ q(z|s)
        q(t|s) = mean of q(t|z_k) over z and K further samples of q(z|s); w = q(t|z) / q(t|s), without gradient
        L(s) = log p(s|z) + log 1/N sum_i q(z|u_i) - log q(z|s), of a sample that has no t; u_i: pseudo-inputs of t
        loss = -(sum over pairs of (L(s, t) + L(t, s)) / 2 + sum over the others of L(s)) / number of both
        (MEME, arXiv:2106.12570). q(z|s) is the row's distribution; p(s|z) and q(t|z) are Laplacians around what a decoder
        makes of z; s and t are frozen latents, of norm sqrt(D), so that a coordinate is of size 1.

    Inputs:
        the views `query` and `target` (named by `views`) with log_var and `given`, and, where a sample may lack one of them,
        `query_pseudo` and `target_pseudo`: the pseudo-inputs of that side, encoded (`PartialPairs` gives them).

    Args:
        dim: E.
        widths: view -> D of what is given there.
        hidden: inner width of the decoders, which have two hidden layers with ReLU (official: 512).
        samples: K (official: 10).
        classifier: a. 1 makes L(s, t) + log p(t) a lower bound; the official code has 10.
        scale: of the Laplacians (official: 1).
        form: "official" takes the divergence of q(z|s) from q(z|t) in closed form, not at z, and adds the two directions up
            without halving them.
        seed: of the noise, of which every rank draws the same.
        views: names of the two sides.

    Means are of unit norm here, as every vector of the zoo, and free in the paper. A learned radius common to both sides
    would change nothing: densities of z only occur as quotients, and the first layer of a decoder scales what it reads.
    The weight w lies between 0 and K + 1. Pairs are ranked by 2-Wasserstein distances, by which the paper relates them.
    The official code alternates between batches of pairs and batches of one modality, and uses the first B pseudo-inputs.

    Use with: `GaussianHead` with `given: true` on frozen encoders (Projector).

    Raises:
        RecipeError: settings that do not fit; a view without log_var or `given`, or of another width; no pseudo-inputs for
            samples that lack a view.
    """

    def __init__(
        self,
        dim: int,
        widths: dict[str, int],
        hidden: int = 512,
        samples: int = 10,
        classifier: float = 10.0,
        scale: float = 1.0,
        form: Literal["exact", "official"] = "exact",
        seed: int = 0,
        views: tuple[str, str] = ("query", "target"),
    ) -> None:
        super().__init__()
        if set(widths) != set(views) or samples < 1 or scale <= 0:
            raise RecipeError(
                f"MEME needs the widths of the views {sorted(views)}, at least one sample and a scale above 0, not widths "
                f"{dict(widths)}, {samples} samples and the scale {scale}"
            )
        self.decoders = nn.ModuleDict({name: _decoder(dim, hidden, widths[name]) for name in views})
        self.widths = dict(widths)
        self.samples = samples
        self.classifier = classifier
        self.scale = scale
        self.official = form == "official"
        self.draws = Draws(seed)
        self.views = views

    def forward(self, local: Encoded, everyone: Encoded) -> dict[str, Tensor]:
        """See `Objective`. Besides `loss`: `pairs` and `alone`, the means of -(L(s, t) + L(t, s)) / 2 and of -L(s);
        `rebuilt`, the mean of -log p(s|z) of a coordinate; `weight`, the mean of w.
        """
        query, target = (self._side(local, everyone, name, stream) for stream, name in enumerate(self.views))
        self.draws.advance()
        pairs = own_pairs(local, everyone, query.name, target.name)
        forth, forth_weight = self._supervised(query, target, pairs.left, pairs.right)
        back, back_weight = self._supervised(target, query, pairs.right, pairs.left)
        paired = -((forth + back) if self.official else (forth + back) / 2)
        sums, count = [], 0
        for own, other in ((query, target), (target, query)):
            bounds, weights, total = self._alone(local, everyone, own, other)
            sums.append(-(bounds * weights).sum())
            count += total
        alone = sums[0] + sums[1]
        return {
            "loss": (pairs.share(paired) * pairs.total + alone) / max(1, pairs.total + count),
            "pairs": row_mean(paired),
            "alone": alone.detach() / max(count, 1) * (len(everyone.sample) / len(local.sample)),
            "weight": row_mean(torch.cat([forth_weight, back_weight])),
            "rebuilt": self._rebuilt(query, target),
        }

    def pair_scores(self, pictures: Embedding, texts: Embedding) -> Tensor:
        """(r, C) negative squared 2-Wasserstein distances of the distributions."""
        scores: Tensor = Wasserstein2()(pictures, texts)
        return scores

    # ---- the two bounds ---------------------------------------------------------------------------------------------

    def _supervised(self, own: _Side, other: _Side, rows: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """L(s, t) and w (P,) of pairs of the rows `rows` of s and `others` of t."""
        samples = own.samples[rows]
        told = self._likelihood(other.name, samples, other.latents[others][:, None])
        expected = told.logsumexp(1) - math.log(told.shape[1])
        weight = (told[:, 0] - expected).detach().exp()
        mean, log_var = own.mean[rows], own.log_var[rows]
        prior_mean, prior_log_var = other.mean[others], other.log_var[others]
        z = samples[:, 0]
        if self.official:
            divergence = normal_divergence(mean, log_var, prior_mean, prior_log_var)
        else:
            divergence = log_normal(z, mean, log_var) - log_normal(z, prior_mean, prior_log_var)
        rebuilt = self._likelihood(own.name, z, own.latents[rows])
        return weight * (rebuilt - divergence - told[:, 0]) + self.classifier * expected, weight

    def _alone(self, local: Encoded, everyone: Encoded, own: _Side, other: _Side) -> tuple[Tensor, Tensor, int]:
        """L(s) (S,) of the rows that have no t, the weights of their samples (S,), and how many all ranks have.

        Pseudo-inputs are part of the loss even where no row needs them: every rank then has the same gradients to share.
        """
        rows, total = _lone(local, own.name, other.name), len(_lone(everyone, own.name, other.name))
        weights = local.weights[torch.searchsorted(local.sample, local.owners[own.name][rows])]
        pseudo = f"{other.name}_pseudo"
        if not total and pseudo not in local.views:
            return own.mean.new_zeros(0), weights, 0
        z = own.samples[rows, 0]
        prior = log_mixture(z, *gaussian(view(local, pseudo)))
        rebuilt = self._likelihood(own.name, z, own.latents[rows])
        return rebuilt + prior - log_normal(z, own.mean[rows], own.log_var[rows]), weights, total

    # ---- what they are made of ----------------------------------------------------------------------------------------

    def _side(self, local: Encoded, everyone: Encoded, name: str, stream: int) -> _Side:
        mean, log_var = gaussian(view(local, name))
        noise = self.draws.normal((len(everyone.owners[name]), self.samples + 1, mean.shape[1]), mean, stream)
        noise = noise[torch.isin(everyone.owners[name], local.sample)]
        samples = mean[:, None] + (log_var / 2).exp()[:, None] * noise
        return _Side(name, mean, log_var, samples, self._latents(local, name))

    def _latents(self, local: Encoded, name: str) -> Tensor:
        given, width = view(local, name).given, self.widths[name]
        if not len(local.owners[name]):  # no head was asked, so nothing says how wide its latents are
            return local.views[name].vector.new_zeros(0, width)
        if given is None:
            raise RecipeError(
                f"MEME rebuilds the frozen latents of the view '{name}', which come with none: set `given: true` in the "
                "GaussianHead of its modality"
            )
        if given.shape[1] != width:
            raise RecipeError(
                f"the latents of the view '{name}' have {given.shape[1]} values; `widths` of MEME says {width}"
            )
        return at_least_fp32(given.detach()) * math.sqrt(width)

    def _likelihood(self, name: str, z: Tensor, latents: Tensor) -> Tensor:
        """Log density (...) of the latents of a view, given z (..., E)."""
        return log_laplace(latents, self.decoders[name](z), self.scale)

    @torch.no_grad()
    def _rebuilt(self, *sides: _Side) -> Tensor:
        found = [
            -row_mean(self._likelihood(side.name, side.samples[:, 0], side.latents)) / self.widths[side.name]
            for side in sides
        ]
        return torch.stack(found).mean()


def _decoder(dim: int, hidden: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, width)
    )


def _lone(encoded: Encoded, name: str, other: str) -> Tensor:
    """Places (S,) of the rows of a view whose sample has none in the other."""
    return (~torch.isin(encoded.owners[name], encoded.owners[other])).nonzero().squeeze(1)
