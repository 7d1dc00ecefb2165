"""Masked views: what is left of a picture without most of its patches, of a text without some of its words.

R rows of a view, I pictures of N patches, T texts of L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.nn.inputs import joined_inputs
from zoo.types import Batch, Inputs


class MaskedViews(nn.Module):
    """Adds to a batch, for every view NAME of `views`, the view `NAME_masked`: some of its rows, with parts of them hidden.

    Patches are left out, so that a tower sees fewer of them, at their own places; the ids of words become that of `token`.
    Both are drawn before anything is encoded: chunks and their second pass see the same parts hidden. Random numbers are
    those of torch's global generator, as dropout's.

    Args:
        views: that get a masked one. Every process then has the same views to gather, whatever its rows hold.
        share: of the rows, rounded down, but at least one (ProLIP, arXiv:2410.18857: 0.125). They are spread evenly over the
            batch, whose first rows may all come from one source.
        patches: share of a picture's patches that is hidden; 0 = pictures stay as they are (ProLIP: 0.75).
        words: share of a text's tokens that is hidden; 0 = texts stay as they are (ProLIP: 0.75; BERT, arXiv:1810.04805:
            0.15).
        token: the id that stands for a hidden word.
        spared: ids that are never hidden: what opens and closes a text.
        form: "exact" hides as near to `patches` and `words` as whole numbers get, at least one word of every text, and draws
            for each picture by itself. "official" hides as ProLIP's code does: it keeps the share `patches` of the patches,
            the same ones of all pictures, and throws a coin for each word.

    Raises:
        RecipeError: settings that hide nothing or everything; a view that the data does not give.
    """

    def __init__(
        self,
        views: Sequence[str] = ("query", "target"),
        share: float = 1.0,
        patches: float = 0.0,
        words: float = 0.15,
        token: int | None = None,
        spared: Sequence[int] = (),
        form: Literal["exact", "official"] = "exact",
    ) -> None:
        super().__init__()
        if not 0 < share <= 1 or not 0 <= patches < 1 or not 0 <= words < 1 or not (patches or words):
            raise RecipeError(
                f"MaskedViews needs a share in (0, 1], and patches or words in (0, 1), not {share}, {patches} and {words}"
            )
        if words and token is None:
            raise RecipeError("MaskedViews hides words, so it needs the id of the `token` that stands for a hidden one")
        self.views = tuple(views)
        self.share, self.patches, self.words = share, patches, words
        self.token, self.spared = token, tuple(spared)
        self.form = form

    def forward(
        self, batch: Batch, split: Callable[[Inputs, int], list[Inputs]], patch_count: Callable[[Tensor], int]
    ) -> Batch:
        """The batch with the masked views besides its own.

        Args:
            batch: stays as it is.
            split: cuts inputs into chunks of so many rows (`Processor.split`).
            patch_count: patches that the tower makes of such pixels.
        """
        views, owners, keys = dict(batch.views), dict(batch.owners), dict(batch.keys)
        for name in self.views:
            if name not in views:
                raise RecipeError(f"MaskedViews is to mask the view '{name}'; the data gives {sorted(batch.views)}")
            chosen = spread(len(owners[name]), self.share).to(owners[name].device)
            inputs = views[name]
            if len(chosen) < len(owners[name]):
                single = split(inputs, 1)
                inputs = joined_inputs([single[row] for row in chosen.tolist()])
            views[f"{name}_masked"] = self._masked(inputs, patch_count)
            owners[f"{name}_masked"], keys[f"{name}_masked"] = owners[name][chosen], keys[name][chosen]
        return replace(batch, views=views, owners=owners, keys=keys)

    def _masked(self, inputs: Inputs, patch_count: Callable[[Tensor], int]) -> Inputs:
        """With `kept_patches` (I, K), places of the patches that are left, and `hidden_words` (T, L), the ids that were
        hidden, -1 elsewhere.
        """
        found = dict(inputs)
        if self.patches and "pixels" in inputs:
            pixels = inputs["pixels"]
            found["kept_patches"] = self._kept(len(pixels), patch_count(pixels)).to(pixels.device)
        if self.words and "input_ids" in inputs:
            ids = inputs["input_ids"]
            hidden = self._hidden(ids, inputs["attention_mask"])
            found["input_ids"] = ids.masked_fill(hidden, self.token or 0)
            found["hidden_words"] = ids.masked_fill(~hidden, -1)
        return found

    def _kept(self, pictures: int, patches: int) -> Tensor:
        """(pictures, K) places in growing order."""
        if self.form == "official":
            kept = torch.randperm(patches)[: max(1, int(patches * self.patches))].sort().values
            return kept.expand(pictures, -1)
        count = max(1, round(patches * (1 - self.patches)))
        return torch.rand(pictures, patches).argsort(1)[:, :count].sort(1).values

    def _hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(T, L) bool."""
        free = (mask > 0) & ~torch.isin(ids, ids.new_tensor(self.spared))
        drawn = torch.rand(ids.shape).to(ids.device)
        if self.form == "official":
            return free & (drawn < self.words)
        count = (self.words * free.sum(1)).round().clamp(min=1)
        place = drawn.masked_fill(~free, 2.0).argsort(1).argsort(1)  # free tokens come first
        return free & (place < count[:, None])


def spread(rows: int, share: float) -> Tensor:
    """Places of this share of so many rows, at least of one, at even distances; of none where there are no rows."""
    count = min(rows, max(1, int(share * rows)))
    return torch.arange(count) * rows // max(1, count)
