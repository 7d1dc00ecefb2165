"""What every objective looks like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from zoo.errors import RecipeError
from zoo.types import Embedding, Encoded


class Objective(Protocol):
    """Rows of this rank against the rows of all ranks -> losses.

    `forward` returns a dict whose entry `loss` is this rank's share of the loss of the joined batch: its rows' sum,
    divided by the number of samples of ALL ranks. The shares of all ranks add up to what one process would compute on
    the joined batch; the caller undoes the averaging of gradients. Further entries are logged.
    """

    def forward(self, local: Encoded, everyone: Encoded) -> dict[str, Tensor]:
        """See the class."""
        ...

    if (
        TYPE_CHECKING
    ):  # jsonargparse takes a protocol that has `__call__` for a factory; modules are called all the same

        def __call__(self, local: Encoded, everyone: Encoded) -> dict[str, Tensor]: ...


def view(encoded: Encoded, name: str) -> Embedding:
    """The rows of a view. Raises RecipeError, listing the views there are, if the data has no such view."""
    if name not in encoded.views:
        origin = " (masked views come from `masking` of the model)" if name.endswith("_masked") else ""
        raise RecipeError(f"the objective needs the view '{name}'{origin}; the data gives {sorted(encoded.views)}")
    return encoded.views[name]


def share(losses: Tensor, local: Encoded, everyone: Encoded, rows: str) -> Tensor:
    """This rank's share of a loss: the weighted sum of its rows' losses (R,) over the number of samples of all ranks.

    Rows of one sample share its weight, so that a sample weighs the same in either direction of a loss, whichever side
    has several rows (a picture with five captions).
    """
    place = torch.searchsorted(local.sample, local.owners[rows])
    each = torch.bincount(place, minlength=len(local.sample))
    return (losses * (local.weights / each.clamp(min=1))[place]).sum() / len(everyone.sample)


def row_share(losses: Tensor, local: Encoded, everyone: Encoded, rows: str) -> Tensor:
    """`share`, over the number of rows of all ranks instead: a mean over rows, where a sample may have several."""
    weights = local.weights[torch.searchsorted(local.sample, local.owners[rows])]
    return (losses * weights).sum() / max(1, len(everyone.owners[rows]))


def row_mean(values: Tensor) -> Tensor:
    """The mean of what is reported of rows (R,), without gradient; 0 where there are none."""
    return values.detach().sum() / max(1, len(values))
