"""Prompt ensembles around the class names of other tasks."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence

import pytest

from zoo.data.sources.emoji_tasks import EmojiTasks
from zoo.data.sources.zero_shot import TEMPLATES, ZeroShot
from zoo.errors import RecipeError, ZooError
from zoo.types import Item, RetrievalTask


class Pets:
    def __init__(self, classes: Sequence[str] = ("dog", "cat"), images: tuple[bytes, ...] = ()) -> None:
        self.classes, self.images = classes, images

    def tasks(self) -> list[RetrievalTask]:
        candidates = [Item(text=one, images=self.images) for one in self.classes]
        return [RetrievalTask("pets", [Item(images=(b"a",)), Item(images=(b"b",))], candidates, [[1], [0]], rsum="x")]


def test_every_template_around_every_class() -> None:
    (task,) = ZeroShot(Pets(), ["a {}", "the {} and the {}"], {"dog": "hound"}, "mine").tasks()
    assert [item.text for item in task.candidates] == [
        "a hound",
        "the hound and the hound",
        "a cat",
        "the cat and the cat",
    ]
    assert task.groups == [0, 0, 1, 1] and list(task.relevant) == [[1], [0]]
    assert task.name == "pets[mine]" and task.metrics == ("recall@1", "recall@5") and task.rsum == ""


def test_emoji_groups() -> None:
    plain = EmojiTasks("val", ("group",), max_queries=5)
    (before,), (after,) = plain.tasks(), ZeroShot(plain, "emoji").tasks()
    size = len(TEMPLATES["emoji"])
    assert len(after.candidates) == size * len(before.candidates) and list(after.queries) == list(before.queries)
    assert after.candidates[size].text == f"an emoji of {before.candidates[1].text}" and after.groups is not None
    assert after.groups[size] == 1 and after.relevant == before.relevant


def test_lists_of_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("prompts")
    package.LIST = (lambda c: f"a bad photo of a {c}.", "{}!")  # type: ignore[attr-defined]  # open_clip's are functions
    package.NAMES = ["tom", "rex"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "prompts", package)
    (task,) = ZeroShot(Pets(), "prompts:LIST", "prompts:NAMES").tasks()
    assert [item.text for item in task.candidates] == ["a bad photo of a rex.", "rex!", "a bad photo of a tom.", "tom!"]
    with pytest.raises(RecipeError, match="3 classes, but there are 2 names"):
        ZeroShot(Pets(("a", "b", "c")), "name", "prompts:NAMES").tasks()
    with pytest.raises(RecipeError, match="the package 'prompts' has no 'LITS'"):
        ZeroShot(Pets(), "prompts:LITS")
    with pytest.raises(ZooError, match="needs the package 'no_such_package'"):
        ZeroShot(Pets(), "no_such_package:LIST")


def test_the_lists_of_open_clip() -> None:
    pytest.importorskip("open_clip")
    assert len(ZeroShot(Pets(), "open_clip:OPENAI_IMAGENET_TEMPLATES").templates) == 80
    assert len(ZeroShot(Pets(), "open_clip:SIMPLE_IMAGENET_TEMPLATES").templates) == 7
    with pytest.raises(RecipeError, match="task 'pets' has 2 classes, but there are 1000 names for them"):
        ZeroShot(Pets(), names="open_clip:IMAGENET_CLASSNAMES").tasks()


def test_what_does_not_fit() -> None:
    with pytest.raises(ZooError, match="the candidates of task 'pets' are no texts"):
        ZeroShot(Pets(images=(b"x",))).tasks()
    with pytest.raises(RecipeError, match=r"'a photo' has no \{\} for the class"):
        ZeroShot(Pets(), ["a photo"])
    with pytest.raises(RecipeError, match="at least one template"):
        ZeroShot(Pets(), [])
    with pytest.raises(
        RecipeError, match=r"'photos' is no list of prompts: give a list, one of photo, emoji, name, or"
    ):
        ZeroShot(Pets(), "photos")


def test_a_name_that_is_no_list_is_told() -> None:
    with pytest.raises(RecipeError, match="'os:system' is no list, but builtin_function_or_method"):
        ZeroShot(Pets(), templates="os:system")
