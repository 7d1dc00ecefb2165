"""Both sides of a pair must point at the same words: swapped prediction of assignments to frozen word embeddings (VLAP)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.objectives.contrastive import TILE_CELLS, at_least_fp32, row_blocks
from zoo.objectives.counterparts import counterparts
from zoo.objectives.objective import Objective, row_mean
from zoo.objectives.pairs import mean_share, paired
from zoo.types import Encoded


class Words(Protocol):
    """-> word embeddings (K, E) and how likely each word is (K,), all above 0 and summing to 1. See `WordEmbeddings`."""

    def forward(self) -> tuple[Tensor, Tensor]:
        """See the class."""
        ...

    if (
        TYPE_CHECKING
    ):  # jsonargparse takes a protocol that has `__call__` for a factory; modules are called all the same

        def __call__(self) -> tuple[Tensor, Tensor]: ...


class SwappedAssignment(nn.Module, Objective):
    """What one side is assigned to, the other one must predict; the classes are the words of a language model.

    Formula:
        s_ik = cosine of sample i and word k, p_i = softmax(s_i / temperature), q_i = the assignment of i, without gradient
        L = mean over i of (H(q_target, p_query) + H(q_query, p_target)) / 2, H(q, p) = -sum_k q_k log p_k
        "exact":    Q maximises <Q, S> + epsilon H(Q) where samples have equal mass and word k has the mass prior_k: the
                    optimal transport problem of the paper (arXiv:2404.09632, section 3.2), by Sinkhorn's iterations
        "official": q_i = softmax(s_i / epsilon + iterations log prior), what the released code computes for one vector per
                    picture: it leaves the step out that gives every word its mass, so nothing balances the words

    Inputs:
        the views `query` and `target` (named by `views`), one row per sample each. A sample that lacks one of them
        weighs nothing.

    Args:
        words: the frozen word embeddings, as wide as the embeddings of the model.
        assignment: "exact" or "official".
        temperature: of the predictions (official: 0.01, not learned). epsilon: of the assignments (official: 0.01).
        iterations: of Sinkhorn (official: 3).
        views: names of the two sides.

    Use with: projectors, the text side as the language model has it. Relations: SwAV (arXiv:2006.09882) with words in the
    place of learned prototypes. The paper's second loss, captioning by the frozen language model, is not part of it.

    Everything is computed in the log domain in fp32, where the official code overflows above a cosine of 0.887, and in
    blocks: memory does not grow with samples x words. `exact` balances over the samples of all ranks.

    Raises:
        RecipeError: word embeddings of another width, or a view with several rows of a sample.
    """

    def __init__(
        self,
        words: Words,
        assignment: Literal["exact", "official"] = "exact",
        temperature: float = 0.01,
        epsilon: float = 0.01,
        iterations: int = 3,
        views: tuple[str, str] = ("query", "target"),
    ) -> None:
        super().__init__()
        if iterations < 1:
            raise RecipeError(f"SwappedAssignment: iterations is {iterations}, it is at least 1")
        self.words = words
        self.assignment = assignment
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.query, self.target = views

    def forward(self, local: Encoded, everyone: Encoded) -> dict[str, Tensor]:
        """See `Objective`. Besides `loss`: `same_word`, the share of samples whose sides have the same first word."""
        local, everyone = counterparts(local, everyone, self.query, self.target)
        words, log_prior = self._words(local)
        sides = [paired(local, name) for name in (self.query, self.target)]
        self._check_width(sides[0], words)
        with torch.autocast(words.device.type, enabled=False):
            biases = [self._bias(paired(everyone, name), words, log_prior) for name in (self.query, self.target)]

            def block(part: slice) -> Tensor:
                return self._terms([side[part] for side in sides], words, biases)

            found = row_blocks(block, len(sides[0]), 2 * len(words))
        return {"loss": mean_share(found[:, 0], local, everyone, self.query), "same_word": row_mean(found[:, 1])}

    def _words(self, local: Encoded) -> tuple[Tensor, Tensor]:
        """Unit word embeddings and log prior, as precise as the rows."""
        with torch.no_grad():
            words, prior = self.words()
            dtype = at_least_fp32(local.views[self.query].vector).dtype if self.query in local.views else torch.float32
            return F.normalize(words.to(dtype), dim=-1), prior.to(dtype).log()

    def _check_width(self, rows: Tensor, words: Tensor) -> None:
        if rows.shape[1] != words.shape[1]:
            raise RecipeError(
                f"the embeddings have {rows.shape[1]} values, the word embeddings {words.shape[1]}: give both sides heads "
                "that end in the width of the words"
            )

    @torch.no_grad()
    def _bias(self, rows: Tensor, words: Tensor, log_prior: Tensor) -> Tensor:
        """(K,) what is added to s / epsilon before the softmax over words."""
        if self.assignment == "official":
            return self.iterations * log_prior
        return word_potentials(rows, words, log_prior, self.epsilon, self.iterations)

    def _terms(self, sides: list[Tensor], words: Tensor, biases: list[Tensor]) -> Tensor:
        """(r, 2): the loss of each sample, and whether its two sides agree on the most likely word."""
        scores = [side @ words.T for side in sides]
        assigned = [(one.detach() / self.epsilon + bias).softmax(1) for one, bias in zip(scores, biases, strict=True)]
        predicted = [(one / self.temperature).log_softmax(1) for one in scores]
        losses = -((assigned[1] * predicted[0]).sum(1) + (assigned[0] * predicted[1]).sum(1)) / 2
        agreed = assigned[0].argmax(1) == assigned[1].argmax(1)
        return torch.stack([losses, agreed.to(losses.dtype)], dim=1)


def word_potentials(
    rows: Tensor, words: Tensor, log_prior: Tensor, epsilon: float, iterations: int, cells: int = TILE_CELLS
) -> Tensor:
    """(K,) b such that softmax(s_i / epsilon + b) over words is Sinkhorn's assignment of every sample.

    Each iteration gives the words their mass, then every sample its own; the softmax is the last of these steps. After few
    iterations the words have about their mass, exactly so in the limit.

    Args:
        rows: (N, E), unit norm.
        words: (K, E), unit norm.
        log_prior: (K,).
        epsilon: weight of the entropy.
        iterations: how many.
        cells: scores that are held at a time; at least those of one sample are.
    """
    parts = rows.split(max(1, cells // len(words)))
    bias = torch.zeros_like(log_prior)
    for number in range(iterations):
        given = torch.full_like(log_prior, -torch.inf)
        for part in parts:
            scores = part @ words.T / epsilon
            if number:
                scores = scores - (scores + bias).logsumexp(1, keepdim=True)
            given = torch.logaddexp(given, scores.logsumexp(0))
        bias = log_prior - given  # up to a constant, which a softmax over words does not see
    return bias
