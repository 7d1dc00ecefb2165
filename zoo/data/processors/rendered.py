"""The processor of encoders that have pixels alone: a text is a picture of its letters."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zoo.data.processors import dual_arrays
from zoo.data.processors.dual import DualProcessor
from zoo.data.processors.dual_arrays import DualArrays, Picture, Rendering


class RenderedProcessor(DualProcessor):
    """Samples to the inputs of a dual encoder without a text tower (CLIPPO, arXiv:2212.08045).

    Args:
        picture: normalisation and size of all pictures; resizing of those that are no texts.
        rendering: how texts are drawn.

    Raises:
        SampleError: an item can't be used (empty, unreadable picture, a text without a drawable character, an
            instruction); names the sample.
    """

    def __init__(self, picture: Picture | None = None, rendering: Rendering | None = None) -> None:
        super().__init__(tokenizer="", picture=picture)
        self.rendering = rendering or Rendering()
        self._arrays = DualArrays(None, self.picture, rendering=self.rendering)

    def save(self, folder: Path) -> dict[str, str]:
        """Nothing to keep beside the recipe: the font comes with Pillow."""
        return {}

    def spec(self) -> dict[str, Any]:
        """What `DualArrays` needs, as plain data, for a runtime without the zoo."""
        return {**super().spec(), "rendering": asdict(self.rendering)}

    def export(self, folder: Path) -> dict[str, Any]:
        """Write what a runtime without the zoo needs beside the graph; returns `spec` with the names of the files."""
        shutil.copyfile(dual_arrays.__file__, folder / "dual_arrays.py")
        return {**self.spec(), "tokenizer": None, "code": "dual_arrays.py"}
