"""A frozen entry of the zoo as the encoder of a Projector: what stands behind it sees the entry's own vectors.

R rows, E width of the entry's vectors.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from zoo.errors import WeightsError
from zoo.nn.heads import Head
from zoo.nn.latent_heads import StatesHead, applied
from zoo.nn.parts import unit
from zoo.nn.towers import ImageTower, States, TextTower


class _Entry(nn.Module):
    """One side of a dual encoder or projector, its tower and its head, read from its bundle."""

    modality: str

    def __init__(self, tower: nn.Module, dim: int, head: nn.Module | None, pretrained: str | None) -> None:
        super().__init__()
        self.tower = tower
        self.head = head or nn.Identity()
        self.width = dim
        self.pretrained = pretrained

    def vectors(self, states: States) -> States:
        """The tower's states -> States whose pooled state (R, E) is the vector of each item, of unit norm, and its only
        token.
        """
        pooled = unit(applied(self.head, states))[0].to(states.pooled.dtype)  # unit vectors are fp32 in any case
        return States(pooled, pooled[:, None])

    def load_pretrained(self) -> None:
        """Read tower and head from the bundle that `pretrained` names. WeightsError if it can't be had or doesn't fit."""
        if self.pretrained is None:
            return
        from zoo.weights import fetch_folder, load_strictly, read_state

        state = _renamed(read_state(fetch_folder(self.pretrained)), self.modality)
        if not state:
            raise WeightsError(
                f"'{self.pretrained}' holds no tower or head for a {self.modality}: name the bundle of a dual encoder or of "
                "a projector"
            )
        may_miss = set()
        if getattr(self.tower, "pretrained", None):  # a projector's encoder is in no bundle
            self.tower.load_pretrained()  # type: ignore[operator]  # towers that have the one have the other
            may_miss = {key for key in self.state_dict() if key.startswith("tower.")}
        load_strictly(self, state, self.pretrained, may_miss)


class EntryImage(_Entry, ImageTower):
    """The pictures' side of a dual encoder or projector of the zoo; gives its vectors.

    Args:
        tower: as the entry's recipe has it.
        dim: E.
        head: likewise; None = the entry has none.
        pretrained: the entry's bundle, such as `packaged:clip-emoji` or a folder. None = random weights.

    Use with: the processor of the entry, and `BayesCap` behind it. An entry of distributions gives its means.
    """

    modality = "image"

    def __init__(
        self, tower: ImageTower, dim: int, head: Head | StatesHead | None = None, pretrained: str | None = None
    ) -> None:
        super().__init__(tower, dim, head, pretrained)  # type: ignore[arg-type]  # towers and heads are modules

    def forward(self, pixels: Tensor) -> States:
        """Pixels (R, 3, H, W) -> States."""
        return self.vectors(self.tower(pixels))


class EntryText(_Entry, TextTower):
    """The texts' side of a dual encoder or projector of the zoo; gives its vectors.

    Args:
        tower, dim, head, pretrained: as in `EntryImage`.
    """

    modality = "text"

    def __init__(
        self, tower: TextTower, dim: int, head: Head | StatesHead | None = None, pretrained: str | None = None
    ) -> None:
        super().__init__(tower, dim, head, pretrained)  # type: ignore[arg-type]  # towers and heads are modules

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> States:
        """Token ids and mask (R, L) -> States."""
        return self.vectors(self.tower(input_ids, attention_mask))


def _renamed(state: Mapping[str, Tensor], modality: str) -> dict[str, Tensor]:
    """The tensors of one side, under the names that they have here."""
    places = {
        f"{modality}.": "tower.",
        f"encoders.{modality}.": "tower.",
        f"{modality}_head.": "head.",
        f"heads.{modality}.": "head.",
    }
    return {
        name + key.removeprefix(place): value
        for place, name in places.items()
        for key, value in state.items()
        if key.startswith(place)
    }
