"""Folders of pictures: captions in text files beside them, or folder names as captions."""

from __future__ import annotations

import os
import random
from collections.abc import Hashable, Iterator, Set
from pathlib import Path
from typing import Literal

from zoo.data.images import OTHER_SUFFIXES, SUFFIXES
from zoo.data.left_out import LeftOut
from zoo.data.source import Source, TaskSource
from zoo.data.text_files import lines_of, read_text
from zoo.errors import RecipeError, SampleError, ZooError
from zoo.types import Item, RetrievalTask, Sample

Captions = Literal["file", "folder"]
Direction = Literal["image_to_text", "text_to_image", "both"]


def list_images(folder: Path | str, suffixes: Set[str] = SUFFIXES) -> list[Path]:
    """All image files in a folder and below it, by their endings, sorted; hidden files and folders are skipped.

    Args:
        folder: where to look.
        suffixes: the endings, in lower case.

    Raises:
        ZooError: there is no such folder, or a folder below it can't be read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ZooError(f"there is no folder '{root}'")
    found = []
    for place, folders, files in os.walk(root, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(place, name)
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
        ]
    return sorted(found)


def _refuse(error: OSError) -> None:
    raise ZooError(f"{error.filename} can't be read: {error.strerror}") from error


class CaptionedImages:
    """The pictures of a folder and the texts that belong to them. Images in formats that are not opened are counted in
    `left_out` and named in a warning.

    Args:
        path: the folder.
        captions: "file" = a text file of the same name with the ending .txt, one caption a line; "folder" = the name of
            the folder that holds the picture, `_` and `-` read as spaces.
        template: what is made of a caption, with {} in its place.

    Raises:
        ZooError: no folder, no picture, or pictures without a caption; names one.
    """

    def __init__(self, path: str | Path, captions: Captions = "file", template: str = "{}") -> None:
        self.root, self.captions, self.template = Path(path).expanduser(), captions, template
        if "{}" not in template:
            raise RecipeError(f"the template '{template}' has no {{}} for the caption")
        found = list_images(self.root, SUFFIXES | OTHER_SUFFIXES)
        self.files = [file for file in found if file.suffix.lower() in SUFFIXES]
        self.left_out = LeftOut()
        for file in found:
            if file.suffix.lower() not in SUFFIXES:
                self.left_out.note("images of formats that are not opened", self.name(file))
        if not self.files:
            raise ZooError(f"there are no images in {self.root} or below it{f': {self.left_out}' if found else ''}")
        self.left_out.warn(self.root.name, len(self.files))
        without = [file for file in self.files if not self._has_caption(file)]
        if without:
            wanted = f"{without[0].stem}.txt beside it" if captions == "file" else "a folder that names it"
            raise ZooError(
                f"{len(without)} of {len(self.files)} pictures in {self.root} have no caption, for example "
                f"{self.name(without[0])}: it needs {wanted}, or captions: folder, where folders name what is in them"
            )
        folders = sorted({file.parent for file in self.files})
        self.labels = {folder: number for number, folder in enumerate(folders)}

    def _has_caption(self, file: Path) -> bool:
        return file.parent != self.root if self.captions == "folder" else file.with_suffix(".txt").is_file()

    def name(self, file: Path) -> str:
        """Path below the folder."""
        return file.relative_to(self.root).as_posix()

    def picture(self, file: Path, instruction: str | None = None) -> Item:
        """As an item that keeps its identity when the picture is changed."""
        return Item(images=(file,), instruction=instruction, key=self.name(file))

    def texts(self, file: Path) -> list[str]:
        """All captions of a picture. SampleError if there are none after all."""
        if self.captions == "folder":
            return [self._filled(file.parent.name.replace("_", " ").replace("-", " "))]
        text = file.with_suffix(".txt")
        try:
            lines = [line for _, line in lines_of(read_text(text))]
        except SampleError as error:
            raise SampleError(f"{self.name(file)}: its caption file {error}") from error
        if not lines:
            raise SampleError(f"{self.name(file)}: its caption file {text} is empty")
        return [self._filled(line) for line in lines]

    def _filled(self, caption: str) -> str:
        return self.template.replace("{}", caption)


class ImageFolder(Source):
    """Training pairs of a picture and one of its captions.

    Args:
        path: the folder.
        captions: "file" = `cat.txt` beside `cat.jpg`, one caption a line, one is drawn; "folder" = the name of the folder
            that holds the picture. Pictures of one folder are then positives of one another.
        template: what is made of a caption, with {} in its place, such as "a photo of a {}".
        direction: which side is the query; "both" draws one or the other.
        instruction: on the query side.
        name: of the source; "" = that of the folder.

    Raises:
        ZooError: no folder, no picture, or pictures without a caption; names one.
        SampleError: a caption that can't be read; names the picture.
    """

    def __init__(
        self,
        path: str,
        captions: Captions = "file",
        template: str = "{}",
        direction: Direction = "image_to_text",
        instruction: str | None = None,
        name: str = "",
    ) -> None:
        self.images = CaptionedImages(path, captions, template)
        self.direction, self.instruction = direction, instruction
        self.name = name or self.images.root.name

    def __len__(self) -> int:
        return len(self.images.files)

    def duplicate_key(self, index: int) -> Hashable:
        """Pictures of one folder are equally right where the folder is the caption."""
        file = self.images.files[index]
        return self.images.labels[file.parent] if self.images.captions == "folder" else index

    def draw(self, index: int, rng: random.Random) -> Sample:
        """One pair."""
        file = self.images.files[index]
        text = rng.choice(self.images.texts(file))
        direction = self.direction if self.direction != "both" else rng.choice(("image_to_text", "text_to_image"))
        if direction == "image_to_text":
            views = {"query": self.images.picture(file, self.instruction), "target": Item(text=text)}
        else:
            views = {"query": Item(text=text, instruction=self.instruction), "target": self.images.picture(file)}
        label = self.images.labels[file.parent] if self.images.captions == "folder" else -1
        return Sample(f"{self.name}/{self.images.name(file)}", views, label=label, source=self.name)

    def items(self) -> Iterator[Item]:
        """Every item that `draw` may give, see `zoo.data.source.Listed`."""
        picture = None if self.direction == "text_to_image" else self.instruction
        text = None if self.direction == "image_to_text" else self.instruction
        for file in self.images.files:
            try:
                captions = self.images.texts(file)
            except SampleError:  # `draw` raises it, too
                continue
            yield self.images.picture(file, picture)
            yield from (Item(text=caption, instruction=text) for caption in captions)


class ImageFolderTasks(TaskSource):
    """Retrieval both ways on a folder of pictures: `image_to_text` (with folder names: classification), `text_to_image`.

    Args:
        path: the folder.
        captions: as in `ImageFolder`.
        template: as in `ImageFolder`.
        which: the tasks, in this order.
        name: stands in brackets behind theirs; "" = that of the folder.
    """

    def __init__(
        self,
        path: str,
        captions: Captions = "file",
        template: str = "{}",
        which: tuple[Literal["image_to_text", "text_to_image"], ...] = ("image_to_text", "text_to_image"),
        name: str = "",
    ) -> None:
        self.images, self.which = CaptionedImages(path, captions, template), which
        self.name = name or self.images.root.name

    def tasks(self) -> list[RetrievalTask]:
        """Equal captions are one item, right for all their pictures."""
        pictures = [self.images.picture(file) for file in self.images.files]
        by_text: dict[str, list[int]] = {}
        for number, file in enumerate(self.images.files):
            for text in dict.fromkeys(self.images.texts(file)):
                by_text.setdefault(text, []).append(number)
        texts = [Item(text=text) for text in by_text]
        by_picture: list[list[int]] = [[] for _ in pictures]
        for number, owners in enumerate(by_text.values()):
            for owner in owners:
                by_picture[owner].append(number)
        made = {
            "image_to_text": RetrievalTask(f"image_to_text[{self.name}]", pictures, texts, by_picture),
            "text_to_image": RetrievalTask(f"text_to_image[{self.name}]", texts, pictures, list(by_text.values())),
        }
        return [made[name] for name in self.which]
