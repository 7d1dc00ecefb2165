"""PCME++'s loss: is this a match? asked of every pair of distributions, in closed form."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.objectives.bottleneck import bottleneck
from zoo.objectives.contrastive import row_blocks
from zoo.objectives.counterparts import counterparts
from zoo.objectives.direction import Duplicates
from zoo.objectives.objective import Objective, row_mean, row_share, view
from zoo.objectives.soft_match import SoftMatch
from zoo.similarity.distances import CSD, csd_sides
from zoo.types import Embedding, Encoded


class PCMEPP(nn.Module, Objective):
    """Every pair is a binary question, answered from the closed-form sampled distance of the two distributions.

    Formula:
        z_ij = -a CSD(x_i, y_j) + b, CSD = |mu_i - mu_j|^2 + sum_d (sigma_i^2 + sigma_j^2)
        L = 2 mean_ij BCE(z_ij, m_ij) + p (mean BCE(z_ij, m+_ij) + mean BCE(z_ij, m-_ij)) + v (KL_x + KL_y)
        (arXiv:2305.18171, equations 1 and 2, and the official code)
        m_ij is 1 for matches, else 0, and the shares of the mixture where samples were mixed. m+ also says yes, to the
        degree of the own match, to every y_j at least as near to x_i as its own; m- is the same seen from y_j. No gradient
        passes through these pseudo-positives. KL: mean over rows and coordinates, to the standard normal distribution.

    Inputs:
        the views `query` and `target` (named by `views`) with log_var, one row per sample or several. A row whose sample
        lacks the other view weighs nothing.

    Args:
        scale: start value of a. bias: start value of b. Both are learned, as they are, unless `learn` is "no".
        learn: "linear" or "no".
        pseudo_positives: p; 0 = none.
        vib: v.
        label_smoothing: s; labels m become s + (1 - 2 s) m (official with mixed samples: 1e-4).
        duplicates: what becomes of cells that are as right as the own one (see `SoftMatch`); "positive" is official.
        form: "official" leaves out a KL whose mean is above 10,000.
        views: names of the two sides.

    Use with: dual encoders and projectors whose heads give log_var. Relations: with all variances 0 it is a sigmoid loss on
    squared distances. The own match of a row that has several is the most probable of them (official: the first).

    Raises:
        RecipeError: a view has no log_var.
    """

    reads_mixtures = True

    def __init__(
        self,
        scale: float = 5.0,
        bias: float = 5.0,
        learn: Literal["linear", "no"] = "linear",
        pseudo_positives: float = 0.1,
        vib: float = 1e-4,
        label_smoothing: float = 0.0,
        duplicates: Duplicates = "positive",
        form: Literal["exact", "official"] = "exact",
        views: tuple[str, str] = ("query", "target"),
    ) -> None:
        super().__init__()
        self.learn = learn
        self.scale = nn.Parameter(torch.tensor(float(scale)), requires_grad=learn != "no")
        self.bias = nn.Parameter(torch.tensor(float(bias)), requires_grad=learn != "no")
        self.pseudo_positives = pseudo_positives
        self.vib = vib
        self.label_smoothing = label_smoothing
        self.duplicates = duplicates
        self.official = form == "official"
        self.query, self.target = views

    def forward(self, local: Encoded, everyone: Encoded) -> dict[str, Tensor]:
        """See `Objective`. Besides `loss`: `match` and, where in use, `pseudo` and `vib`, all without their weights;
        `pseudo_positives`, how many a row has on average; `scale` and `bias`.
        """
        part = len(local.sample) / len(everyone.sample)
        local, everyone = counterparts(local, everyone, self.query, self.target)
        match, pseudo, found = self._terms(local, everyone, self.query, self.target).unbind(1)
        terms = {"match": row_share(match, local, everyone, self.query)}
        weights = {"match": 2.0, "pseudo": self.pseudo_positives, "vib": self.vib}
        reports = {"scale": self.scale.detach(), "bias": self.bias.detach()}
        if self.pseudo_positives:
            _, other, _ = self._terms(local, everyone, self.target, self.query).unbind(1)
            terms["pseudo"] = row_share(pseudo, local, everyone, self.query)
            terms["pseudo"] = terms["pseudo"] + row_share(other, local, everyone, self.target)
            reports["pseudo_positives"] = row_mean(found)
        if self.vib:
            terms["vib"] = bottleneck(local, everyone, (self.query, self.target), guarded=self.official)
        losses = [weights[name] * term for name, term in terms.items()]
        return {
            "loss": sum(losses[1:], losses[0]),
            **{name: term.detach() / part for name, term in terms.items()},
            **reports,
        }

    def pair_scores(self, pictures: Embedding, texts: Embedding) -> Tensor:
        """(r, C) negative distances: what the paper ranks by."""
        scores: Tensor = CSD()(pictures, texts)
        return scores

    def match_log_probability(self, pictures: Embedding, texts: Embedding) -> Tensor:
        """(r, C) log sigmoid(-a CSD + b)."""
        return F.logsigmoid(self.scale.detach() * self.pair_scores(pictures, texts) + self.bias.detach())

    def _terms(self, local: Encoded, everyone: Encoded, rows: str, columns: str) -> Tensor:
        """(R, 3): mean over the columns of the loss, the same with pseudo-positives, and how many of these there are."""
        left, right = csd_sides(view(local, rows), view(everyone, columns))
        match = SoftMatch(local, everyone, rows, columns, self.duplicates, self.label_smoothing)

        def block(part: slice) -> Tensor:
            with torch.autocast(left.device.type, enabled=False):
                logits = (left[part] * (2 * self.scale)) @ right.T + self.bias
            labels = match.labels(part, logits.dtype)
            counted = (labels >= 0).to(logits.dtype)
            plain = _binary(logits, labels, counted)
            if not self.pseudo_positives:
                return torch.stack([plain, plain, torch.zeros_like(plain)], dim=1)
            raised = with_pseudo_positives(labels, logits.detach())
            count = (raised > labels).sum(1).to(plain.dtype)
            return torch.stack([plain, _binary(logits, raised, counted), count], dim=1)

        return row_blocks(block, len(left), len(right))


def _binary(logits: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
    """Binary cross-entropy of every row (r,): the mean over its cells."""
    losses = F.binary_cross_entropy_with_logits(logits, labels, counted, reduction="none")
    return losses.sum(1) / max(1, losses.shape[1])


def with_pseudo_positives(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels (r, C), but every cell at least as probable as its row's own match gets the label of that match.

    The own match is the cell with the largest label, the most probable of them where there are several.
    """
    if not labels.shape[1]:
        return labels
    best = labels.amax(1, keepdim=True)
    threshold = logits.masked_fill(labels < best, -torch.inf).amax(1, keepdim=True)
    return torch.where((logits >= threshold) & (labels >= 0), best, labels)
