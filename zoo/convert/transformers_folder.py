"""Folders as transformers and peft write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """What a converter is given: tensors under their authors' names, and the config file beside them.

    config: adapter_config.json of an adapter, open_clip_config.json of a file `open_clip_*`, else config.json; empty if
    there is none. A LoRA update can't be read without it: its scale is no tensor.
    place: where it came from, for messages.
    """

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any] = field(default_factory=dict)
    place: str = "the checkpoint"


def load_folder(folder: Path) -> Checkpoint:
    """A folder or a single weight file -> Checkpoint, tensors on the CPU in their stored precision.

    Raises:
        WeightsError: no weights there, damaged, or only readable by running pickled code.
    """
    from zoo.weights import read_state

    return Checkpoint(read_state(folder), _config(folder), str(folder))


def _config(folder: Path) -> dict[str, Any]:
    names = ["adapter_config.json", "config.json"]
    if folder.is_file():
        folder, stem = folder.parent, folder.stem
        names = ["open_clip_config.json"] if stem.startswith("open_clip_") else names
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        return {}
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} can't be read ({error}); fetch or copy it again") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path} is no config: it holds a {type(config).__name__}; fetch or copy it again")
    return config
