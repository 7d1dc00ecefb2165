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
    """This rank's share of a loss: the weighted sum of its rows' losses (R,) over the number of samples of all ranks."""
    return (losses * _row_weights(local, rows)).sum() / len(everyone.sample)


def row_share(losses: Tensor, local: Encoded, everyone: Encoded, rows: str) -> Tensor:
    """`share`, over the number of rows of all ranks instead: a mean over rows, where a sample may have several."""
    return (losses * _row_weights(local, rows)).sum() / len(everyone.owners[rows])


def _row_weights(local: Encoded, rows: str) -> Tensor:
    return local.weights[torch.searchsorted(local.sample, local.owners[rows])]
