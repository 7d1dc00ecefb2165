"""Files of checkpoints: written whole or not at all, and never unpickled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from zoo.errors import WeightsError
from zoo.files import replacing
from zoo.weights import read_torch


class CheckpointFiles(TorchCheckpointIO):
    """How a Trainer writes and reads checkpoints on this disk; elsewhere (`s3://...`) as Lightning does.

    Lightning itself writes into the system's temporary folder and moves the file. Where that folder is another file system,
    moving copies over the live checkpoint, and a kill at that moment loses both.

    Args:
        fitting: refuse to read what holds weights only.
    """

    def __init__(self, fitting: bool = False) -> None:
        self.fitting = fitting

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write beside `path` and rename. ZooError: no space left, or not writable; the earlier file stays."""
        if "://" in str(path) or storage_options is not None:
            return super().save_checkpoint(checkpoint, path, storage_options)
        with replacing(Path(path)) as partial, partial.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch's writer hides why the file could not be written
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None

    def load_checkpoint(
        self, path: str | Path, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The content, on the CPU, whatever `weights_only` says: nothing is unpickled.

        Raises:
            WeightsError: not there, damaged, or no checkpoint; in one line.
        """
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        if not Path(path).is_file():
            raise WeightsError(f"{path} is no checkpoint: there is no such file")
        content = checked(read_torch(Path(path)), path)
        if self.fitting and not {"optimizer_states", "lr_schedulers", "callbacks", "loops"} <= content.keys():
            raise WeightsError(
                f"{path} holds weights only, and no run can go on from that: give a last.ckpt, or begin a new run from "
                f"these weights (--start path:{path})"
            )
        return content


def checked(content: Any, path: str | Path) -> dict[str, Any]:
    """`content` if it has what Lightning looks for in every checkpoint. WeightsError otherwise."""
    found: dict[str, Any] = content if isinstance(content, dict) else {}
    state = found.get("state_dict")
    right = isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())
    if not right or not isinstance(found.get("pytorch-lightning_version"), str):
        raise WeightsError(
            f"{path} is no checkpoint of a training run; give a last.ckpt or best.ckpt that one has written"
        )
    return found
