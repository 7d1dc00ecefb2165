"""Folders of pictures: captions in text files beside them, or folder names as captions."""

from __future__ import annotations

import random
from collections.abc import Hashable
from pathlib import Path
from typing import Literal

from zoo.data.source import Source
from zoo.errors import SampleError, ZooError
from zoo.types import Item, Sample

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def list_images(folder: Path | str) -> list[Path]:
    """All picture files in a folder and below it, sorted; hidden files and folders are left out.

    Raises:
        ZooError: there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ZooError(f"there is no folder '{root}'")
    found = (path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(root).parts))


class ImageFolder(Source):
    """Training pairs from a folder: `query` is the picture, `target` its caption.

    Args:
        path: the folder.
        captions: "file" = a text file of the same name with the ending .txt, one caption a line, one is drawn;
            "folder" = the name of the folder that holds the picture, `_` and `-` read as spaces. Pictures of one folder are
            then positives of one another.

    Raises:
        ZooError: no folder, or no picture in it. SampleError: a picture without its caption; names it.
    """

    def __init__(self, path: str, captions: Literal["file", "folder"] = "file", name: str = "") -> None:
        self.root, self.captions = Path(path), captions
        self.name = name or self.root.name
        self.files = list_images(self.root)
        if not self.files:
            raise ZooError(f"there are no pictures in {self.root} or below it")
        folders = sorted({file.parent for file in self.files})
        self.labels = {folder: number for number, folder in enumerate(folders)}

    def __len__(self) -> int:
        return len(self.files)

    def duplicate_key(self, index: int) -> Hashable:
        """Two pictures of one folder are equally right where the folder is the caption."""
        return self.files[index].parent if self.captions == "folder" else self.files[index]

    def draw(self, index: int, rng: random.Random) -> Sample:
        """One pair."""
        file = self.files[index]
        name = file.relative_to(self.root).as_posix()
        views = {"query": Item(images=(file,), key=name), "target": Item(text=self._caption(file, name, rng))}
        label = self.labels[file.parent] if self.captions == "folder" else -1
        return Sample(id=name, views=views, label=label, source=self.name)

    def _caption(self, file: Path, name: str, rng: random.Random) -> str:
        if self.captions == "folder":
            return file.parent.name.replace("_", " ").replace("-", " ")
        text = file.with_suffix(".txt")
        try:
            lines = [line.strip() for line in text.read_text("utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise SampleError(f"{name}: its caption file {text} can't be read: {error}") from error
        lines = [line for line in lines if line]
        if not lines:
            raise SampleError(f"{name}: its caption file {text} is empty")
        return rng.choice(lines)
