"""An encoder small enough to be checked by hand: counted words and the mean colour, through one linear map."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from PIL import Image
from torch import nn

from zoo.data.images import open_image
from zoo.data.processors.collate import collate
from zoo.data.source import Processor
from zoo.module import EmbeddingModule
from zoo.types import Batch, Embedding, Inputs, Item, Sample
from zoo.weights import fetch_folder, load_strictly, read_state

COLOURS = {"red": (200, 10, 10), "green": (10, 200, 10), "blue": (10, 10, 200)}
WORDS = ["red", "green", "blue", "cat", "dog", "find"]


class ToyProcessor(Processor):
    """Word counts, mean colour, and a flag for the query side."""

    def __init__(self, words: str) -> None:
        self.words = words
        self.known: list[str] = json.loads(Path(words).read_text("utf-8"))

    def __call__(self, samples: list[Sample]) -> Batch:
        return collate(samples, self.view)

    def view(self, view: str, items: Sequence[Item], names: Sequence[str]) -> Inputs:
        rows = [self.row(item, name, view == "query") for item, name in zip(items, names, strict=True)]
        return {"x": torch.tensor(np.array(rows), dtype=torch.float32)}

    def row(self, item: Item, name: str, query: bool) -> list[float]:
        words = f"{item.text or ''} {item.instruction or ''}".split()
        colour = [0.0, 0.0, 0.0]
        for image in item.images:
            colour = (np.asarray(open_image(image, name), np.float32).mean((0, 1)) / 255).tolist()
        return [float(words.count(w)) for w in self.known] + colour + [float(query), 1.0]

    def split(self, inputs: Inputs, size: int) -> list[Inputs]:
        return [{"x": part} for part in inputs["x"].split(size)]

    def save(self, folder: Path) -> dict[str, str]:
        shutil.copyfile(self.words, folder / "words.json")
        return {"words": "bundle:words.json"}


class ToyEncoder(EmbeddingModule):
    """One linear map; `tied` is the same tensor under a second name. `notes` may be anything."""

    def __init__(
        self, processor: ToyProcessor, width: int = 4, notes: dict[str, Any] | None = None, **training: Any
    ) -> None:
        super().__init__(processor=processor, **training)
        self.notes = notes
        self.linear = nn.Linear(len(processor.known) + 5, width)
        self.tied = nn.Linear(len(processor.known) + 5, width)
        self.tied.weight = self.linear.weight

    def encode(self, inputs: Inputs) -> Embedding:
        return Embedding(nn.functional.normalize(self.linear(inputs["x"]).float(), dim=-1))


class UnsureEncoder(ToyEncoder):
    """The toy with variances that grow with the number of known words, and with the red of pictures."""

    def encode(self, inputs: Inputs) -> Embedding:
        found = super().encode(inputs)
        return Embedding(found.vector, inputs["x"][:, :7].sum(1, keepdim=True).expand_as(found.vector) - 3)


def recipe(folder: Path, **init_args: Any) -> dict[str, Any]:
    """A recipe of the toy, whose word list is written to `folder`."""
    words = folder / "words.json"
    words.write_text(json.dumps(WORDS), "utf-8")
    processor = {"class_path": "toy.ToyProcessor", "init_args": {"words": str(words)}}
    return {
        "card": {"title": "A toy", "family": "toys", "license": "Apache-2.0"},
        "model": {"class_path": "toy.ToyEncoder", "init_args": {"processor": processor, **init_args}},
    }


def fit_recipe(folder: Path) -> Path:
    """The file of a toy recipe that trains for two steps on three folders of one-coloured images; run it in `folder`."""
    for word, colour in COLOURS.items():
        (folder / "pictures" / word).mkdir(parents=True)
        for shade in (1.0, 0.8):
            image = Image.new("RGB", (8, 8), tuple(int(c * shade) for c in colour))
            image.save(folder / "pictures" / word / f"{shade}.png")
    images = {"path": "pictures", "captions": "folder"}
    task = {"class_path": "ImageFolderTasks", "init_args": {**images, "which": ["image_to_text"], "name": "colours"}}
    raw = recipe(folder, objective={"class_path": "InfoNCE", "init_args": {"temperature": 0.1}})
    data = {
        "train": [{"class_path": "ImageFolder", "init_args": images}],
        "val": [task],
        "test": [task],
        "batch_size": 3,
    }
    raw["data"] = {"class_path": "EmbeddingData", "init_args": data}
    raw["trainer"] = {"accelerator": "cpu", "max_steps": 2, "max_epochs": -1, "enable_progress_bar": False}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False), "utf-8")
    return path


def build(folder: Path, seed: int = 0, **init_args: Any) -> ToyEncoder:
    """The module of `recipe`."""
    torch.manual_seed(seed)
    words = recipe(folder)["model"]["init_args"]["processor"]["init_args"]["words"]
    return ToyEncoder(ToyProcessor(words), **init_args)


class Ended(Callback):
    """Sends the process this signal after so many steps, as a scheduler or Ctrl-C does."""

    def __init__(self, signal: int, after: int) -> None:
        self.signal, self.after = signal, after

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.after:
            os.kill(os.getpid(), self.signal)


class ToyBackbone(nn.Module):
    """A part that fitting starts from published weights."""

    def __init__(self, width: int = 3, pretrained: str | None = None) -> None:
        super().__init__()
        self.body = nn.Linear(width, width)
        self.pretrained = pretrained

    def load_pretrained(self) -> None:
        if self.pretrained is not None:
            load_strictly(self, read_state(fetch_folder(self.pretrained)), self.pretrained)


class ToyAdapted(ToyEncoder):
    """The toy on a backbone, which is frozen by `freeze`."""

    def __init__(self, processor: ToyProcessor, backbone: ToyBackbone, width: int = 4, **training: Any) -> None:
        super().__init__(processor, width=width, **training)
        self.backbone = backbone
