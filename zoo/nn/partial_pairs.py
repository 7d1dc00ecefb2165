"""Pairs of which a side is missing, as MEME trains with them. B samples, R rows of a view, N pseudo-inputs, D width."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.types import Batch, Inputs

NOBODY = -(2**62)
"""The owner of pseudo-inputs: no sample has it, on whatever rank."""


class PartialPairs(nn.Module):
    """Some samples of a batch lose one of their two views; learned pseudo-inputs stand for what is lost (MEME,
    arXiv:2106.12570).

    Formula:
        of B samples, round(share B) lose a view, every other one of them the first and the rest the second; the views
        `NAME_pseudo` hold N latents u_i of the modality of the view NAME, which are learned and encoded as all others are

    The pseudo-inputs of a modality are the prior of the other one where that stands alone. They start from random numbers;
    the official ones start from a batch of data, which would be another one on every rank.

    Args:
        widths: modality -> D of its pooled latents.
        count: N (official: the batch size, 128).
        share: of the samples that lose a view; the paper goes up to 15/16. 0 where the data itself has samples without one.
        spread: standard deviation of the numbers that pseudo-inputs start from.

    Random numbers are those of torch's global generator, as dropout's.

    Raises:
        RecipeError: settings that make no sense; a batch without exactly two views of pooled latents, one modality each.
    """

    def __init__(self, widths: dict[str, int], count: int = 128, share: float = 0.25, spread: float = 0.5) -> None:
        super().__init__()
        if count < 1 or not 0 <= share < 1 or not widths:
            raise RecipeError(
                f"PartialPairs needs widths of latents, at least one pseudo-input and a share in [0, 1), not "
                f"{dict(widths)}, {count} and {share}"
            )
        self.inputs = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(count, width) * spread) for name, width in widths.items()}
        )
        self.share = share

    def forward(self, batch: Batch) -> Batch:
        """Batch of latents -> the same with fewer rows, and with the views of pseudo-inputs."""
        kinds = self._modalities(batch)
        if len(kinds) != 2:
            raise RecipeError(f"PartialPairs needs two views, one for each side; the data gives {sorted(kinds)}")
        views, owners, keys = dict(batch.views), dict(batch.owners), dict(batch.keys)
        size = len(batch.ids)
        lost = torch.randperm(size)[: min(round(self.share * size), size - 1)].to(batch.labels.device)
        for place, (name, modality) in enumerate(kinds.items()):
            kept = ~torch.isin(batch.owners[name], lost[place::2])
            views[name] = _rows(batch.views[name], modality, kept)
            owners[name], keys[name] = owners[name][kept], keys[name][kept]
            views[f"{name}_pseudo"] = self._pseudo(modality)
            numbers = torch.arange(len(self.inputs[modality]), device=batch.labels.device)
            owners[f"{name}_pseudo"], keys[f"{name}_pseudo"] = torch.full_like(numbers, NOBODY), numbers
        return replace(batch, views=views, owners=owners, keys=keys)

    def _modalities(self, batch: Batch) -> dict[str, str]:
        """The modality of each view; of a view that no sample of the batch has, the one that the other view has not."""
        known = {name: self._modality(name, batch.views[name]) for name in batch.views if len(batch.owners[name])}
        left = sorted(set(self.inputs) - set(known.values())) or sorted(self.inputs)
        if len(known) < len(batch.views) and len(left) > 1:
            raise RecipeError(
                f"PartialPairs can't tell which of the modalities {left} a view without rows has: give `widths` of the two "
                "that the views have"
            )
        return {name: known.get(name, left[0]) for name in batch.views}

    def _modality(self, name: str, inputs: Inputs) -> str:
        """The modality of a view; RecipeError unless each row is one part of it, and it has pseudo-inputs."""
        kinds = [key.removesuffix("_pooled") for key in inputs if key.endswith("_pooled")]
        if len(kinds) != 1 or kinds[0] not in self.inputs or len(inputs[f"{kinds[0]}_pooled"]) != len(inputs["rows"]):
            raise RecipeError(
                f"PartialPairs needs one part of one of the modalities {sorted(self.inputs)} in each row; the view '{name}' "
                f"has {len(inputs['rows'])} rows of {' and '.join(kinds) or 'nothing'}"
            )
        return kinds[0]

    def _pseudo(self, modality: str) -> Inputs:
        latents = self.inputs[modality]
        rows = torch.arange(len(latents), device=latents.device)
        return {"rows": rows, f"{modality}_rows": rows, f"{modality}_pooled": latents}


def _rows(inputs: Inputs, modality: str, kept: Tensor) -> Inputs:
    """The rows of a view that are kept, a mask (R,)."""
    rows = torch.arange(int(kept.sum()), device=kept.device)
    parts = {key: inputs[key][kept] for key in inputs if key.startswith(f"{modality}_")}
    return {**parts, "rows": rows, f"{modality}_rows": rows}
