"""Several objectives as one."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.objectives.objective import Objective
from zoo.types import Embedding, Encoded


class Weighted(nn.Module, Objective):
    """The weighted sum of several objectives.

    Formula:
        L = sum_n w_n L_n

    Inputs:
        what the objectives take.

    Args:
        objectives: name -> objective. What each reports is logged under its name: `NAME` its own loss, unweighted,
            `NAME/temperature` and so on.
        weights: name -> weight; 1 where a name is missing.

    Use with: every architecture. Relations: each objective keeps its own temperature.

    Raises:
        RecipeError: a weight for an objective that there is none of, or no objective at all.
    """

    def __init__(self, objectives: dict[str, Objective], weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        unknown = set(weights or {}) - set(objectives)
        if unknown or not objectives:
            raise RecipeError(f"Weighted has the objectives {sorted(objectives)}; weights name also {sorted(unknown)}")
        self.objectives = nn.ModuleDict(objectives)  # type: ignore[arg-type]  # every objective is a module
        self.reads_mixtures = all(getattr(one, "reads_mixtures", False) for one in objectives.values())
        self.weights = {name: (weights or {}).get(name, 1.0) for name in objectives}

    def pair_scores(self, pictures: Embedding, texts: Embedding) -> Tensor:
        """(r, C) weighted sum of the scores of those objectives that rank pairs. RecipeError if none does."""
        scoring = ((name, getattr(one, "pair_scores", None)) for name, one in self.objectives.items())
        parts = [(self.weights[name], score) for name, score in scoring if score is not None]
        if not parts:
            raise RecipeError(f"none of the objectives {sorted(self.objectives)} scores pairs")
        terms: list[Tensor] = [weight * score(pictures, texts) for weight, score in parts]
        return sum(terms[1:], terms[0])

    def forward(self, local: Encoded, everyone: Encoded) -> dict[str, Tensor]:
        """See `Objective`."""
        part = len(local.sample) / len(everyone.sample)
        terms, reports = [], {}
        for name, objective in self.objectives.items():
            found = objective(local, everyone)
            loss = found.pop("loss")
            terms.append(self.weights[name] * loss)
            reports[name] = loss.detach() / part
            reports |= {f"{name}/{key}": value for key, value in found.items()}
        return {"loss": sum(terms[1:], terms[0]), **reports}
