"""The processor of VLM encoders: prompt template, tokens, patches, positions."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from zoo.data.images import open_images
from zoo.data.processors import vlm_arrays
from zoo.data.processors.collate import collate
from zoo.data.processors.vlm_arrays import Pixels, Template, VlmArrays
from zoo.data.source import Processor
from zoo.errors import SampleError, ZooError
from zoo.files import locate
from zoo.types import Batch, Inputs, Item, Sample


class VlmProcessor(Processor):
    """Samples to the inputs of a Qwen2-VL style encoder (see `VlmArrays.__call__` for names and shapes).

    Args:
        tokenizer: a tokenizer.json: a path, `packaged:FILE`, or `hf:ORG/REPO[@REVISION]:tokenizer.json`. Read at first use.
        template: the prompt; one per checkpoint, not per backbone.
        target_template: the prompt of views that are no `query_views`; None = `template` for all.
        pixels: resizing, patches and normalisation.
        query_views: views that are queries: they get `query_suffix`, the others `target_template`.

    Raises:
        SampleError: an item can't be used (empty, unreadable picture, prompt too long); names the sample.
    """

    def __init__(
        self,
        tokenizer: str,
        template: Template | None = None,
        pixels: Pixels | None = None,
        position_mode: Literal["mrope", "flat"] = "mrope",
        padding_side: Literal["left", "right"] = "right",
        max_length: int = 4096,
        pad_token: str = "<|endoftext|>",
        query_views: tuple[str, ...] = ("query",),
        target_template: Template | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.query_views = query_views
        self._settings: dict[str, Any] = {
            "template": template or Template(),
            "pixels": pixels or Pixels(),
            "position_mode": position_mode,
            "padding_side": padding_side,
            "max_length": max_length,
            "pad_token": pad_token,
            "target_template": target_template,
        }
        self._arrays: VlmArrays | None = None

    @property
    def arrays(self) -> VlmArrays:
        """The numpy part, with the tokenizer read."""
        if self._arrays is None:
            from tokenizers import Tokenizer

            path = locate(self.tokenizer)
            try:
                tokenizer = Tokenizer.from_file(str(path))
                tokenizer.no_padding()  # `VlmArrays` pads, and shortens the text rather than the prompt
                tokenizer.no_truncation()
                self._arrays = VlmArrays(tokenizer, **self._settings)
            except Exception as error:  # the Rust reader raises bare Exception
                raise ZooError(f"{path} can't be used as tokenizer: {error}") from error
        return self._arrays

    def __call__(self, samples: list[Sample]) -> Batch:
        return collate(samples, self.encode_view)

    def encode_view(self, view: str, items: Sequence[Item], names: Sequence[str]) -> Inputs:
        """The items of one view -> tensors."""
        for item, name in zip(items, names, strict=True):
            if item.place is not None:
                raise SampleError(f"{name}: this model takes no places; leave the place out")
        images = open_images([item.images for item in items], names, fit=self._settings["pixels"].fit)
        try:
            arrays = self.arrays(
                [item.text for item in items],
                images,
                [item.instruction for item in items],
                view in self.query_views,
                [item.image_at for item in items],
            )
        except ValueError as error:
            raise SampleError(self._name_culprit(view, items, images, names) or str(error)) from error
        return {key: torch.from_numpy(value) for key, value in arrays.items()}

    def _name_culprit(self, view: str, items: Sequence[Item], images: list[Any], names: Sequence[str]) -> str:
        for item, pictures, name in zip(items, images, names, strict=True):
            try:
                self.arrays([item.text], [pictures], [item.instruction], view in self.query_views, [item.image_at])
            except ValueError as error:
                return f"{name}: {error}"
        return ""

    def split(self, inputs: Inputs, size: int) -> list[Inputs]:
        """Cut into chunks of at most `size` rows; pictures go with their rows."""
        rows = len(inputs["input_ids"])
        return [self._narrow(inputs, start, min(start + size, rows)) for start in range(0, rows, size)]

    def _narrow(self, inputs: Inputs, start: int, stop: int) -> Inputs:
        per_image = ("patches", "patch_positions", "patch_mask", "image_rows")
        part = {key: value[start:stop] for key, value in inputs.items() if key not in per_image}
        if "patches" not in inputs:
            return part
        bounds = torch.tensor([start, stop], device=inputs["image_rows"].device)
        first, last = torch.searchsorted(inputs["image_rows"], bounds).tolist()
        if first == last:
            return part
        part |= {key: inputs[key][first:last] for key in per_image}
        part["image_rows"] = part["image_rows"] - start
        slots = inputs["patches"].shape[1] // self._settings["pixels"].merge_size ** 2
        part["image_index"] = (part["image_index"] - first * slots).clamp(min=0)  # 0 where there is no picture token
        return part

    def save(self, folder: Path) -> dict[str, str]:
        """Write the tokenizer into a bundle; returns the init arguments that the bundle's recipe must state instead."""
        shutil.copyfile(locate(self.tokenizer), folder / "tokenizer.json")
        return {"tokenizer": "bundle:tokenizer.json"}

    def spec(self) -> dict[str, Any]:
        """What `VlmArrays` needs besides the tokenizer, as plain data, for a runtime without the zoo."""
        settings = {
            key: asdict(v) if is_dataclass(v) and not isinstance(v, type) else v for key, v in self._settings.items()
        }
        return {"kind": "vlm", "query_views": list(self.query_views), **settings}

    def export(self, folder: Path) -> dict[str, Any]:
        """Write what a runtime without the zoo needs beside the graphs; returns `spec` with the names of the files."""
        self.arrays.tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        shutil.copyfile(vlm_arrays.__file__, folder / "vlm_arrays.py")
        return {**self.spec(), "tokenizer": "tokenizer.json", "code": "vlm_arrays.py"}
