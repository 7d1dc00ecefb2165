"""A small data set of coloured pictures on disk, and the toy encoder that can see colours: real sources, real batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import toy
from PIL import Image

from zoo.data.datamodule import EmbeddingData
from zoo.data.source import TaskSource

COLOURS = {"red": (250, 20, 20), "green": (20, 250, 20), "blue": (20, 20, 250)}


def colour_folder(root: Path, each: int = 6, missing: str = "") -> Path:
    """`red/0.png` and so on, with shades that differ."""
    for colour, (r, g, b) in COLOURS.items():
        for number in range(each):
            file = root / colour / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            shade = tuple(max(0, min(255, x + 5 * number - 10)) for x in (r, g, b))
            if colour != missing:
                Image.new("RGB", (5, 4), shade).save(file)
    return root


def split_file(folder: Path, captions: list[list[str]], dataset: str = "coco", split: str = "test") -> Path:
    """Karpathy's layout: the pictures lie in `val2014/`, as COCO's do; others belong to another split."""
    colours = list(COLOURS.values())
    entries: list[dict[str, Any]] = []
    for number, texts in enumerate(captions):
        name = f"{dataset}_{number:012}.jpg"
        (folder / "val2014").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), colours[number % 3]).save(folder / "val2014" / name)
        sentences = [
            {"tokens": text.split(), "raw": f"{text} ", "imgid": number, "sentid": i} for i, text in enumerate(texts)
        ]
        entries.append(
            {"filepath": "val2014", "filename": name, "imgid": number, "split": split, "sentences": sentences}
        )
    entries.insert(1, {"filepath": "train2014", "filename": "not there.jpg", "split": "restval", "sentences": []})
    path = folder / f"dataset_{dataset}.json"
    path.write_text(json.dumps({"images": entries, "dataset": dataset}), "utf-8")
    return path


def data_of(*sources: TaskSource, test: tuple[TaskSource, ...] = ()) -> EmbeddingData:
    return EmbeddingData(val=list(sources), test=list(test), eval_batch_size=4)


def encoder(folder: Path, seed: int = 0) -> toy.ToyEncoder:
    return toy.build(folder, seed)
