"""The frozen word embeddings of a language model, as classes that vectors can be assigned to. K words, E width."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import RecipeError, WeightsError


class WordEmbeddings(nn.Module):
    """Word embeddings (K, E), never trained and never part of a checkpoint, and how likely each word is (K,).

    Args:
        words: K.
        width: E.
        pretrained: where they are read from when fitting starts: a source as `zoo.weights` has them (`hf:ORG/REPO`,
            `packaged:NAME`, a path). None = random unit vectors, which are classes without meaning.
        tensor: name of the tensor there.
        frequencies: a JSON file with a list of K numbers, the share of each word in the training texts; "" = all words are
            equally likely.
        flatness: the prior is softmax(frequency / flatness) (official: 0.25; the larger, the more even).
        seed: of the random ones.

    Source: VLAP (arXiv:2404.09632), official code.

    Raises:
        RecipeError: `frequencies` can't be read or has another length. WeightsError, in `load_pretrained`: no such tensor,
        or one of another shape.
    """

    not_broadcast = ("vectors", "prior")  # every process reads the same
    vectors: Tensor
    prior: Tensor

    def __init__(
        self,
        words: int,
        width: int,
        pretrained: str | None = None,
        tensor: str = "",
        frequencies: str = "",
        flatness: float = 0.25,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.pretrained, self.tensor = pretrained, tensor
        random = torch.randn(words, width, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("vectors", nn.functional.normalize(random, dim=-1), persistent=False)
        shares = torch.zeros(words) if not frequencies else _read(Path(frequencies).expanduser(), words)
        self.register_buffer("prior", (shares / flatness).softmax(0), persistent=False)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Vectors (K, E) and prior (K,)."""
        return self.vectors, self.prior

    def load_pretrained(self) -> None:
        """Read the embeddings named by `pretrained` and `tensor`."""
        if self.pretrained is None:
            return
        from zoo.weights import fetch_folder, read_state

        state = read_state(fetch_folder(self.pretrained))
        if self.tensor not in state:
            flat = [name for name, value in state.items() if value.shape == self.vectors.shape]
            raise WeightsError(
                f"{self.pretrained} has no tensor '{self.tensor}'; of the shape {tuple(self.vectors.shape)} there are: "
                f"{', '.join(flat[:4]) or 'none'}"
            )
        found = state[self.tensor]
        if found.shape != self.vectors.shape:
            raise WeightsError(
                f"'{self.tensor}' of {self.pretrained} is {tuple(found.shape)}: set words and width to that, not to "
                f"{tuple(self.vectors.shape)}"
            )
        self.vectors.copy_(found)


def _read(path: Path, words: int) -> Tensor:
    try:
        shares: Any = torch.tensor(json.loads(path.read_text("utf-8")), dtype=torch.float32)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise RecipeError(f"the word frequencies in {path} can't be read: {error}") from error
    if shares.shape != (words,) or not bool(torch.isfinite(shares).all()):
        raise RecipeError(
            f"{path} holds {tuple(shares.shape)} numbers, not one finite number for each of {words:,} words"
        )
    result: Tensor = shares
    return result
