"""Captioned pictures under COCO's retrieval protocol: several captions a picture, folds of 1,000, RSUM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zoo.data.source import TaskSource
from zoo.data.sources.folder import CaptionedImages
from zoo.data.text_files import read_json
from zoo.errors import RecipeError, SampleError, UnknownNameError, ZooError
from zoo.files import below
from zoo.types import Item, RetrievalTask

_METRICS = ("recall@1", "recall@5", "recall@10")
_DIRECTIONS = ("image_to_text", "text_to_image")


@dataclass(frozen=True, slots=True)
class _Picture:
    file: Path
    captions: tuple[str, ...]


class CaptionRetrieval(TaskSource):
    """Both directions of a captioned test set, as COCO and Flickr30k results are reported.

    image_to_text: a hit if any caption of the picture is among the first k. text_to_image: the picture of the caption.
    Only the first `captions_per_image` captions of a picture take part: some of COCO's have six or seven. Every caption is
    a candidate of its own, also where two are equal.

    With more than `fold` pictures the same vectors are also ranked within folds of so many, in the order of the file:
    `image_to_text[coco-1000]`, whose values are the means over COCO's five folds of 1,000. `val/coco/rsum` is the sum of
    the six recalls in percent, `val/coco-1000/rsum` the same within folds.

    Args:
        path: Karpathy's split file (`dataset_coco.json`, `dataset_flickr30k.json`), or a folder with a text file of
            captions beside each picture.
        images: the folder that the pictures of a split file are in, by file name or in `filepath/`.
        split: which part of a split file.
        captions_per_image: the first so many are used.
        fold: pictures per fold; None = no folds. Pictures that do not fill a fold are an error.
        template: what is made of a caption, with {} in its place. CLIP's paper used "a photo of {}", most others "{}".
        which: the directions, in this order.
        instructions: on the queries of a direction.
        name: stands in brackets behind the tasks; "" = that of the split file's dataset, or of the folder.

    Raises:
        ZooError: a file that can't be read or has another layout; a picture that is missing.
        SampleError: a picture without a caption, or one that a split file places outside of `images`; names it.

    Source: Karpathy & Fei-Fei (arXiv:1412.2306), section 4.1.
    """

    def __init__(
        self,
        path: str,
        images: str = "",
        split: str = "test",
        captions_per_image: int = 5,
        fold: int | None = 1000,
        template: str = "{}",
        which: tuple[str, ...] = _DIRECTIONS,
        instructions: Mapping[str, str] | None = None,
        name: str = "",
    ) -> None:
        if "{}" not in template:
            raise RecipeError(f"the template '{template}' has no {{}} for the caption")
        check_directions((*which, *(instructions or {})))
        if captions_per_image < 1 or (fold is not None and fold < 1):
            raise RecipeError(f"captions_per_image is {captions_per_image}, fold is {fold}; both are at least 1")
        self.path, self.images, self.split = Path(path).expanduser(), images, split
        self.captions_per_image, self.fold, self.template = captions_per_image, fold, template
        self.which, self.instructions, self.name = tuple(which), dict(instructions or {}), name

    def tasks(self) -> list[RetrievalTask]:
        """One task per direction, with that of its folds in `also`."""
        if self.path.is_dir():
            name, pictures = self.path.name, _from_folder(self.path)
        else:
            name, pictures = _from_split_file(self.path, self.images, self.split)
        texts, owners = [], []
        for number, picture in enumerate(pictures):
            chosen = picture.captions[: self.captions_per_image]
            if not chosen:
                raise SampleError(f"{picture.file.name} of {self.path} has no caption")
            texts += [self.template.replace("{}", caption) for caption in chosen]
            owners += [number] * len(chosen)
        return [self._task(direction, self.name or name, pictures, texts, owners) for direction in self.which]

    def _task(
        self, direction: str, name: str, pictures: Sequence[_Picture], texts: Sequence[str], owners: Sequence[int]
    ) -> RetrievalTask:
        instruction = self.instructions.get(direction)
        image_first = direction == "image_to_text"
        shown = [
            Item(images=(p.file,), instruction=instruction if image_first else None, key=p.file.name) for p in pictures
        ]
        told = [Item(text=text, instruction=None if image_first else instruction) for text in texts]
        captions: list[list[int]] = [[] for _ in pictures]
        for caption, owner in enumerate(owners):
            captions[owner].append(caption)
        task = RetrievalTask(
            name=f"{direction}[{name}]",
            queries=shown if image_first else told,
            candidates=told if image_first else shown,
            relevant=captions if image_first else [[owner] for owner in owners],
            metrics=_METRICS,
            rsum=name if len(self.which) > 1 else "",
        )
        if self.fold is None or len(pictures) <= self.fold:
            return task
        return replace(task, also=(self._folds(task, name, captions, owners),))

    def _folds(
        self, task: RetrievalTask, name: str, captions: Sequence[Sequence[int]], owners: Sequence[int]
    ) -> RetrievalTask:
        assert self.fold is not None  # asked by the caller
        if len(captions) % self.fold:
            raise ZooError(
                f"{len(captions):,} pictures of '{name}' do not fill folds of {self.fold:,}; set fold to null"
            )
        starts = range(0, len(captions), self.fold)
        pictures = [range(start, start + self.fold) for start in starts]
        if task.name.startswith("image_to_text"):
            texts = [range(captions[fold[0]][0], captions[fold[-1]][-1] + 1) for fold in pictures]
            pools = [texts[picture // self.fold] for picture in range(len(captions))]
        else:
            pools = [pictures[owner // self.fold] for owner in owners]
        label = f"{name}-{self.fold}"
        return replace(task, name=task.name.replace(f"[{name}]", f"[{label}]"), pools=pools, rsum=task.rsum and label)


def check_directions(which: Sequence[str]) -> None:
    """Raise UnknownNameError for a direction that captions do not have."""
    for direction in which:
        if direction not in _DIRECTIONS:
            raise UnknownNameError("direction", direction, _DIRECTIONS)


def _from_folder(path: Path) -> list[_Picture]:
    folder = CaptionedImages(path)
    return [_Picture(file, tuple(folder.texts(file))) for file in folder.files]


def _from_split_file(path: Path, images: str, split: str) -> tuple[str, list[_Picture]]:
    try:
        content = read_json(path)
        entries = content["images"]
        splits = {entry["split"] for entry in entries}
        pictures = [
            _Picture(
                _file(Path(images).expanduser(), entry, path),
                tuple(sentence["raw"].strip() for sentence in entry["sentences"]),
            )
            for entry in entries
            if entry["split"] == split
        ]
        name = str(content.get("dataset", path.stem))
    except (KeyError, TypeError, AttributeError) as error:
        raise ZooError(
            f"{path} is no split file in Karpathy's layout (images, split, sentences, raw): {error!r}"
        ) from error
    if not pictures:
        raise UnknownNameError("split", split, splits, f"({path} has {', '.join(sorted(splits))})")
    missing = [picture.file for picture in pictures if not picture.file.is_file()]
    if missing:
        raise ZooError(
            f"{len(missing):,} of {len(pictures):,} pictures are missing, first {missing[0]}; check `images`"
        )
    return name, pictures


def _file(folder: Path, entry: Mapping[str, Any], path: Path) -> Path:
    """COCO's entries name the folder below (`val2014`); Flickr30k's do not, and many copies are flat."""
    name = entry["filename"]
    nested = below(folder, str(Path(entry.get("filepath", ""), name)), f"{path}: {name}")
    return nested if nested.is_file() else below(folder, name, f"{path}: {name}")
