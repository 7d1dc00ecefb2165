"""What architectures need of their towers and backbones. R rows, L tokens, W width of the tower."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from torch import Tensor


class States(NamedTuple):
    """What a tower gives: pooled (R, W); tokens (R, L, W), before pooling; mask (R, L) with 1 for real ones, None = all."""

    pooled: Tensor
    tokens: Tensor
    mask: Tensor | None = None


class ImageTower(Protocol):
    """Pixels (R, 3, H, W), normalised as the tower expects -> States."""

    width: int

    def forward(self, pixels: Tensor) -> States:
        """See the class."""
        ...

    if (
        TYPE_CHECKING
    ):  # jsonargparse takes a protocol that has `__call__` for a factory; modules are called all the same

        def __call__(self, pixels: Tensor) -> States: ...


@runtime_checkable
class PatchTower(ImageTower, Protocol):
    """An image tower that cuts pictures into patches, and can do with some of them."""

    def patch_count(self, pixels: Tensor) -> int:
        """Patches that a picture of these pixels has. RecipeError if the tower can't leave patches out."""
        ...

    def forward(self, pixels: Tensor, kept: Tensor | None = None) -> States:
        """kept: (R, K) int64, places of the patches that the tower is to see; None = all."""
        ...

    if TYPE_CHECKING:

        def __call__(self, pixels: Tensor, kept: Tensor | None = None) -> States: ...


@runtime_checkable
class PooledTower(Protocol):
    """A tower that is faster where nobody looks at its tokens.

    pooled_only: said by the architecture before each call; the tokens of `States` are then nothing but the pooled state.
    """

    pooled_only: bool


class TextTower(Protocol):
    """Token ids (R, L) and mask (R, L) with 1 for real tokens -> States."""

    width: int

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> States:
        """See the class."""
        ...

    if TYPE_CHECKING:

        def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> States: ...


class PlaceTower(Protocol):
    """Places (R, 2), latitude and longitude in degrees -> States."""

    width: int

    def forward(self, places: Tensor) -> States:
        """See the class."""
        ...

    if TYPE_CHECKING:

        def __call__(self, places: Tensor) -> States: ...


class SharedPooling(Protocol):
    """One part that pools the tokens (R, L, E) of either tower, mask (R, L) or None -> (R, E)."""

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """See the class."""
        ...

    if TYPE_CHECKING:

        def __call__(self, tokens: Tensor, mask: Tensor | None) -> Tensor: ...


class VlmBackbone(Protocol):
    """A vision-language model without its language-model head, its steps apart. Shapes: see `Qwen2VL`."""

    width: int
    image_token_id: int

    def image_features(self, patches: Tensor, patch_positions: Tensor, patch_mask: Tensor) -> Tensor:
        """Patches, their positions and which are real -> features that stand in for picture tokens."""
        ...

    def hidden_states(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, features: Tensor, image_index: Tensor
    ) -> Tensor:
        """Tokens, of which those of pictures are replaced by the features of their index -> states after the final norm."""
        ...
