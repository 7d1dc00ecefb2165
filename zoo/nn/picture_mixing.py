"""Mixed pictures with mixed labels: Mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899), as PCME++ trains with them.

R rows of a view, each one picture.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.types import Batch, Inputs, Mixture


class PictureMixing(nn.Module):
    """Mixes some pictures of a batch with others; objectives with soft labels then count each as a match of both, in its
    share (`Batch.mixed`).

    Formula:
        x_i = l_i x_i + (1 - l_i) x_j, j = R - 1 - i, l_i ~ Beta(a, a) (Mixup), or x_i with a rectangle of x_j whose share of
        the area is 1 - l_i (CutMix)

    Args:
        mixup: a of Mixup; 0 = no Mixup. cutmix: a of CutMix; 0 = no CutMix. With both, every row takes one or the other.
        share: of the rows that are mixed; the others stay as they are. The official code of PCME++ has 0.25, and 2 and 2.
        per: "row" draws l for each row, "batch" one for all. chance: of a batch to be mixed at all. ZeroVL mixes every row
            of half of the batches with one l: mixup 0.1, cutmix 0, share 1, per "batch", chance 0.5.

    Views that hold nothing but one picture per row are mixed. Cached latents have no area: pooled ones are mixed by Mixup,
    and CutMix is refused. Random numbers are those of torch's global generator, as dropout's.

    Raises:
        RecipeError: settings that mix nothing, or CutMix of latents.
    """

    def __init__(
        self,
        mixup: float = 2.0,
        cutmix: float = 2.0,
        share: float = 0.25,
        per: Literal["row", "batch"] = "row",
        chance: float = 1.0,
    ) -> None:
        super().__init__()
        if min(mixup, cutmix) < 0 or not (mixup or cutmix) or not 0 < share <= 1:
            raise RecipeError(
                f"PictureMixing needs mixup or cutmix above 0 and a share in (0, 1], not {mixup}, {cutmix} and {share}"
            )
        self.mixup, self.cutmix, self.share = mixup, cutmix, share
        self.per, self.chance = per, chance

    def forward(self, batch: Batch) -> Batch:
        """The batch with mixed pictures. `mixed` tells of every view, of those that stay as they are with shares of 1: ranks
        that draw differently must have the same views to gather.
        """
        views, mixed = dict(batch.views), dict(batch.mixed)
        mixes = self.chance >= 1 or float(torch.rand(())) < self.chance
        for name, inputs in batch.views.items():
            owners = batch.owners[name]
            mixed[name] = Mixture(owners.flip(0), torch.ones(len(owners), device=owners.device))
            kind = _pictures(inputs)
            if mixes and kind:
                views[name], mixed[name].share = self._mixed(name, inputs, kind)
        return replace(batch, views=views, mixed=mixed)

    def _mixed(self, name: str, inputs: Inputs, kind: str) -> tuple[Inputs, Tensor]:
        """The inputs of a view, and how much of each row is its own."""
        own = inputs[kind]
        cut = (
            torch.rand(len(own)) < (0.5 if self.mixup else 1.0)
            if self.cutmix
            else torch.zeros(len(own), dtype=torch.bool)
        )
        if self.cutmix and kind != "pixels":
            raise RecipeError(f"PictureMixing: the view '{name}' holds latents, which CutMix can't cut; set cutmix: 0")
        chosen = torch.zeros(len(own), dtype=torch.bool)
        chosen[torch.randperm(len(own))[: max(1, round(self.share * len(own)))]] = True
        share = torch.ones(len(own))
        for alpha, rows in ((self.mixup, chosen & ~cut), (self.cutmix, chosen & cut)):
            if alpha:
                drawn = torch.distributions.Beta(alpha, alpha).sample((len(own) if self.per == "row" else 1,))
                share = torch.where(rows, drawn, share)
        keep = share.to(own)[(...,) + (None,) * (own.ndim - 1)]
        values = keep * own + (1 - keep) * own.flip(0)
        if self.cutmix:
            pasted, left = _pasted(own, share)
            values = torch.where((chosen & cut).to(own.device)[:, None, None, None], pasted, values)
            share = torch.where(chosen & cut, left, share)
        return {**inputs, kind: values}, share.to(own.device, torch.float32)


def refuse_unread(mixing: object, objective: object | None) -> None:
    """Raise RecipeError for mixed pictures beside an objective that does not say that it looks at their shares.

    Such an objective says so by `reads_mixtures = True`. To any other one a mixture is its first picture alone: the
    partner would be a negative of what it shows.
    """
    if isinstance(mixing, PictureMixing) and objective is not None and not getattr(objective, "reads_mixtures", False):
        raise RecipeError(
            f"PictureMixing gives pictures that belong to two samples, and {type(objective).__name__} ignores that: use "
            "PCMEPP or CoinFlipMixup, or leave `mixing` out"
        )


def _pictures(inputs: Inputs) -> str:
    """The tensor to mix of a view of one picture per row and nothing else; "" for other views."""
    parts = {name.removesuffix("_rows") for name in inputs if name.endswith("_rows")}
    kind = next((name for name in ("pixels", "image_pooled") if name in inputs), "")
    return kind if parts == {"image"} and kind and len(inputs[kind]) == len(inputs["rows"]) else ""


def _pasted(pictures: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Each picture with a rectangle of its partner, and how much of it is left, which differs from `share` by rounding and
    where the rectangle hangs over the edge.
    """
    height, width = pictures.shape[-2:]
    side = (1 - share).sqrt()
    spans = []
    for size in (height, width):
        centre, half = torch.randint(size, (len(share),)), (side * size).long() // 2
        low, high = (centre - half).clamp(min=0), (centre + half).clamp(max=size)
        place = torch.arange(size)
        spans.append((place >= low[:, None]) & (place < high[:, None]))
    inside = spans[0][:, :, None] & spans[1][:, None, :]
    left = 1 - inside.float().mean((1, 2))
    return torch.where(inside[:, None].to(pictures.device), pictures.flip(0), pictures), left
