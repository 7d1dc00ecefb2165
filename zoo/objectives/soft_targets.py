"""Contrastive losses whose targets are softened: by a momentum model (ALBEF), or by the model itself (LightCLIP)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.objectives.contrastive import at_least_fp32, softmax_losses
from zoo.objectives.counterparts import counterparts
from zoo.objectives.match import Match
from zoo.objectives.momentum_queue import MomentumQueue, next_sample, past
from zoo.objectives.objective import Objective, share, view
from zoo.objectives.temperature import Learn, Temperature
from zoo.types import Encoded


class MomentumDistillation(nn.Module, Objective):
    """InfoNCE against a momentum model's columns and a queue of past ones, half believing that model's own ranking.

    Formula:
        columns C = momentum embeddings of the batch and of the queue, without gradient
        q_i = a softmax(m_i . C / tau) + (1 - a) onehot_i, L = -sum_j q_ij log softmax(x_i . C / tau)_j, mean over i and over
        both directions (ALBEF, arXiv:2107.07651, equations 1, 2 and 6)

    Inputs:
        the views `query` and `target` (named by `views`), and `query_momentum` and `target_momentum` with the same rows from
        the momentum encoders (the architecture's business). Without those two, the model's own embeddings stand in,
        detached: a memory queue without a momentum model. A row whose sample lacks the other view weighs nothing.

    Args:
        dim: width of the embeddings. queue_size: rows kept per view (official: 65,536).
        temperature: start value. learn, max_scale, limits: as in `InfoNCE` (official: "linear", held between 0.001 and 0.5).
        alpha: a. ramp_steps: a grows from 0 to `alpha` over so many optimizer steps (official: the first epoch).
        duplicates: "mask" leaves out columns as right as the own one: equal content on either side or a label in common, in
            the batch and in the queue; "keep" is official. What the two sides of a past sample had in common is known
            as long as both are in their queues.
        views: names of the two sides.

    Use with: dual encoders with momentum copies. Relations: `alpha` 0, no queue and no momentum views is InfoNCE,
    symmetric, with gradient to the rows only.

    Differs from the official code: the columns are those of all ranks, not of one; the queue starts empty, not with
    random vectors; a batch need not divide the queue.

    Raises:
        RecipeError: a momentum view whose rows are not as many as those of its view.
    """

    steps: Tensor

    def __init__(
        self,
        dim: int,
        queue_size: int = 65536,
        temperature: float = 0.07,
        learn: Learn = "linear",
        max_scale: float | None = None,
        alpha: float = 0.4,
        ramp_steps: int = 0,
        duplicates: Literal["mask", "keep"] = "mask",
        limits: tuple[float, float] | None = None,
        views: tuple[str, str] = ("query", "target"),
    ) -> None:
        super().__init__()
        self.temperature = Temperature(temperature, learn, max_scale, limits)
        self.alpha = alpha
        self.ramp_steps = ramp_steps
        self.duplicates = duplicates
        self.query, self.target = views
        self.queues = nn.ModuleDict({name: MomentumQueue(queue_size, dim) for name in views})
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, local: Encoded, everyone: Encoded) -> dict[str, Tensor]:
        """See `Objective`. Besides `loss`: `temperature` and `alpha`. In training it also moves the queues."""
        scale, alpha = self.temperature(), ramp(self.alpha, int(self.steps), self.ramp_steps)
        local, everyone = counterparts(local, everyone, self.query, self.target)
        loss = self._share(local, everyone, self.query, self.target, scale, alpha)
        loss = (loss + self._share(local, everyone, self.target, self.query, scale, alpha)) / 2
        if self.training:
            self._remember(everyone)
        return {"loss": loss, "temperature": (1 / scale).detach(), "alpha": scale.new_tensor(alpha)}

    def anneal(self, step: int) -> None:
        """Set how far the ramp is: optimizer step `step` begins."""
        self.steps.fill_(step)

    def _share(self, local: Encoded, everyone: Encoded, rows: str, columns: str, scale: Tensor, alpha: float) -> Tensor:
        old, _ = self.queues[columns].held()  # type: ignore[operator]
        now = momentum(everyone, columns)
        every = torch.cat([now, old.to(now.dtype)])
        match, teacher = Match(local, everyone, rows, columns), momentum(local, rows)
        older = Match(local, past(self.queues), rows, columns)  # type: ignore[arg-type]

        def hidden(part: slice) -> Tensor:
            if self.duplicates == "keep":
                return torch.zeros(1, 1, dtype=torch.bool, device=every.device)
            return torch.cat([match.same(part) & ~match.own(part), older.same(part)], dim=1)

        def target(part: slice) -> Tensor:
            own = F.pad(match.own(part), (0, len(old))).to(every.dtype)
            believed = ((teacher[part] * scale.detach()) @ every.T).masked_fill(hidden(part), -torch.inf).softmax(1)
            return alpha * believed + (1 - alpha) * own / own.sum(1, keepdim=True)

        adjust = (
            None if self.duplicates == "keep" else lambda logits, part: logits.masked_fill(hidden(part), -torch.inf)
        )
        losses = softmax_losses(view(local, rows).vector, every, scale, target, adjust).rows
        return share(losses, local, everyone, rows)

    def _remember(self, everyone: Encoded) -> None:
        """Put the rows of all ranks into the queues."""
        start = next_sample(self.queues)  # type: ignore[arg-type]
        for name, queue in self.queues.items():
            place = torch.searchsorted(everyone.sample, everyone.owners[name])
            known = everyone.keys[name], everyone.labels[place], place + start
            queue.put(momentum(everyone, name), *known)  # type: ignore[operator]


class SoftenedInfoNCE(nn.Module, Objective):
    """InfoNCE that believes more and more in what the model itself finds similar.

    Formula:
        q_i = (1 - e_t) onehot_i + e_t softmax(x_i . Y / tau) without gradient, L = -sum_j q_ij log softmax(x_i . Y / tau)_j,
        mean over i and over both directions; e_t grows from 0 to e over `ramp_steps`

    Inputs:
        the views `query` and `target` (named by `views`), one row per sample or several. A row whose sample lacks the other
        view weighs nothing.

    Args:
        temperature, learn, max_scale: as in `InfoNCE`.
        softness: e (0.2: ours). ramp_steps: optimizer steps until it is reached; 0 = from the start.
        views: names of the two sides.

    Use with: dual encoders, projectors; noisy pairs. Relations: `softness` 0 is InfoNCE, symmetric, with duplicates kept:
    here they are what softening is for. It is the progressively softened loss of LightCLIP (arXiv:2312.00674), of which
    there is no code: the paper softens the labels of negatives step by step, the softmax as their weight and the linear
    ramp are our reading.
    """

    steps: Tensor

    def __init__(
        self,
        temperature: float = 0.07,
        learn: Learn = "log",
        max_scale: float | None = 100.0,
        softness: float = 0.2,
        ramp_steps: int = 0,
        views: tuple[str, str] = ("query", "target"),
    ) -> None:
        super().__init__()
        self.temperature = Temperature(temperature, learn, max_scale)
        self.softness = softness
        self.ramp_steps = ramp_steps
        self.query, self.target = views
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, local: Encoded, everyone: Encoded) -> dict[str, Tensor]:
        """See `Objective`. Besides `loss`: `temperature` and `softness`."""
        scale, softness = self.temperature(), ramp(self.softness, int(self.steps), self.ramp_steps)
        local, everyone = counterparts(local, everyone, self.query, self.target)
        loss = self._share(local, everyone, self.query, self.target, scale, softness)
        loss = (loss + self._share(local, everyone, self.target, self.query, scale, softness)) / 2
        return {"loss": loss, "temperature": (1 / scale).detach(), "softness": scale.new_tensor(softness)}

    def anneal(self, step: int) -> None:
        """Set how far the ramp is: optimizer step `step` begins."""
        self.steps.fill_(step)

    @staticmethod
    def _share(local: Encoded, everyone: Encoded, rows: str, columns: str, scale: Tensor, softness: float) -> Tensor:
        left, right = at_least_fp32(view(local, rows).vector), at_least_fp32(view(everyone, columns).vector)
        match = Match(local, everyone, rows, columns)

        def target(part: slice) -> Tensor:
            own = match.own(part).to(left.dtype)
            found = ((left.detach()[part] * scale.detach()) @ right.detach().T).softmax(1)
            return softness * found + (1 - softness) * own / own.sum(1, keepdim=True)

        return share(softmax_losses(left, right, scale, target).rows, local, everyone, rows)


def ramp(end: float, step: int, steps: int) -> float:
    """A number that grows from 0 at step 0 to `end` at step `steps` and stays there; 0 steps = `end` at once."""
    return end * min(1.0, step / steps) if steps else end


def momentum(encoded: Encoded, name: str) -> Tensor:
    """The momentum model's rows of a view in fp32 or fp64, without gradient; the model's own where there are none."""
    rows, found = view(encoded, name).vector, encoded.views.get(f"{name}_momentum")
    if found is not None and len(found.vector) != len(rows):
        raise RecipeError(
            f"the view '{name}_momentum' has {len(found.vector)} rows, '{name}' has {len(rows)}: they must be the same rows"
        )
    return at_least_fp32((rows if found is None else found.vector).detach())
