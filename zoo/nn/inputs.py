"""Inputs of some rows, put together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.types import Inputs


def joined_inputs(chunks: Sequence[Inputs]) -> Inputs:
    """Chunks that were cut from one view (`Processor.split`), one after the other.

    `rows` and all names that end in `_rows` number the rows of their chunk, and of the whole afterwards. A chunk whose rows
    lack a part of some kind has no tensor of it.
    """
    found: dict[str, list[Tensor]] = {}
    start = 0
    for inputs in chunks:
        for name, values in inputs.items():
            found.setdefault(name, []).append(values + start if name == "rows" or name.endswith("_rows") else values)
        start += len(inputs["rows"])
    return {name: torch.cat(values) for name, values in found.items()}
