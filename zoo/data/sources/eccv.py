"""COCO's test pictures with the many right answers that people found: ECCV Caption, and Crisscrossed Captions."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from zoo.data.source import TaskSource
from zoo.data.sources.coco import check_directions
from zoo.data.text_files import read_json
from zoo.errors import RecipeError, SampleError, ZooError
from zoo.files import below
from zoo.types import Item, RetrievalTask

_PACKAGE = "eccv_caption"
_METRICS = {"eccv": ("map@r", "r_precision", "recall@1"), "cxc": ("recall@1", "recall@5", "recall@10")}
_DIRECTIONS = ("image_to_text", "text_to_image")


class EccvCaption(TaskSource):
    """Retrieval among all 5,000 pictures and 25,000 captions of COCO's test split, by the ground truth of `eccv_caption`.

    COCO counts one picture as right for a caption, though many are. With `truth: eccv` 1,261 pictures and 1,332 captions
    are the queries, with 22,550 and 11,279 right answers, measured by mAP@R, R-precision and recall@1; with `truth: cxc`
    all are, measured by recall. Two of the right captions of `eccv` are not among the split's 25,000 and are left out; in
    the package's own figures nobody can find them.

    Args:
        path: COCO's `annotations/captions_val2014.json`.
        images: the folder of its pictures (`val2014`).
        truth: "eccv" (arXiv:2204.03359) or "cxc" (arXiv:2004.15020).
        template: what is made of a caption, with {} in its place.
        which: the directions, in this order.

    Raises:
        RecipeError: the package `eccv_caption`, which holds the ground truth, is not installed.
        ZooError: the annotations can't be read or are others; a picture is missing.
    """

    def __init__(
        self,
        path: str,
        images: str,
        truth: Literal["eccv", "cxc"] = "eccv",
        template: str = "{}",
        which: tuple[str, ...] = _DIRECTIONS,
    ) -> None:
        if "{}" not in template:
            raise RecipeError(f"the template '{template}' has no {{}} for the caption")
        check_directions(which)
        self.path, self.images = Path(path).expanduser(), Path(images).expanduser()
        self.truth, self.template, self.which = truth, template, tuple(which)

    def tasks(self) -> list[RetrievalTask]:
        """One task per direction."""
        answers = {direction: _answers(self.truth, direction) for direction in _DIRECTIONS}
        everything = {direction: _answers("original", direction) for direction in _DIRECTIONS}
        pictures, captions = (sorted(everything[direction]) for direction in _DIRECTIONS)
        files, texts = _annotations(self.path)
        shown = {number: self._picture(number, files) for number in pictures}
        told = {number: Item(self.template.replace("{}", self._text(number, texts))) for number in captions}
        sides = {"image_to_text": (shown, told), "text_to_image": (told, shown)}
        return [self._task(direction, *sides[direction], answers[direction]) for direction in self.which]

    def _task(
        self, direction: str, queries: dict[int, Item], candidates: dict[int, Item], answers: dict[int, list[int]]
    ) -> RetrievalTask:
        place = {number: position for position, number in enumerate(candidates)}
        asked = sorted(answers)
        return RetrievalTask(
            name=f"{direction}[{self.truth}]",
            queries=[queries[number] for number in asked],
            candidates=list(candidates.values()),
            relevant=[[place[number] for number in answers[query] if number in place] for query in asked],
            metrics=_METRICS[self.truth],
        )

    def _picture(self, number: int, files: dict[int, str]) -> Item:
        if number not in files:
            raise ZooError(f"{self.path} has no picture {number}: these are not COCO's captions_val2014.json")
        file = below(self.images, files[number], f"{self.path}: picture {number}")
        if not file.is_file():
            raise ZooError(f"picture {file} is missing; check `images`, which is COCO's val2014")
        return Item(images=(file,), key=file.name)

    def _text(self, number: int, texts: dict[int, str]) -> str:
        text = texts.get(number, "").strip()
        if not text:
            raise SampleError(f"{self.path} has no text for the caption {number}: these are not captions_val2014.json")
        return text


def _answers(truth: str, direction: str) -> dict[int, list[int]]:
    """Query -> its right candidates, both as COCO numbers them."""
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError(f"the ground truth comes in a package: pip install {_PACKAGE}")
    name = "image_to_caption" if direction == "image_to_text" else "caption_to_image"
    file = Path(spec.submodule_search_locations[0], "data", f"{truth}_{name}.json")
    found = json.loads(file.read_text("utf-8"))
    return {int(query): [int(candidate) for candidate in right] for query, right in found.items()}


def _annotations(path: Path) -> tuple[dict[int, str], dict[int, str]]:
    """File name of each picture, and text of each caption."""
    try:
        content = read_json(path)
        files = {int(entry["id"]): str(entry["file_name"]) for entry in content["images"]}
        texts = {int(entry["id"]): str(entry["caption"]) for entry in content["annotations"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise ZooError(f"{path} is not in COCO's layout (images with file_name, annotations): {error!r}") from error
    return files, texts
