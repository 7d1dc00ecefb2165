"""Zero-shot classification with prompt ensembles, made of any task whose candidates are the names of classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from zoo import trust
from zoo.data.source import TaskSource
from zoo.errors import RecipeError, ZooError
from zoo.types import Item, RetrievalTask

TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "photo": ("a photo of a {}.", "a picture of a {}.", "a close-up of a {}.", "a drawing of a {}.", "{}"),
    "emoji": ("an emoji of {}", "{} emoji", "a small icon of {}", "the symbol for {}", "a drawing of {}", "{}"),
    "name": ("{}",),
}
"""Short lists of our own."""

Template = str | Callable[[str], str]


class ZeroShot(TaskSource):
    """Classification by the mean vector of several prompts per class: top-1 is `recall@1`, top-5 `recall@5`.

    Takes the tasks of another source, such as `EmojiTasks(which=[group, subgroup])` or
    `ImageFolderTasks(captions=folder, which=[image_to_text])`, and puts every template around every class name.

    Args:
        tasks: tasks whose candidates are texts, each right for some queries.
        templates: prompts with {} for the class; "photo", "emoji" or "name" for a list of ours; or `module:NAME` for a
            list in an installed package, such as `open_clip:OPENAI_IMAGENET_TEMPLATES` (80) or
            `open_clip:SIMPLE_IMAGENET_TEMPLATES` (7).
        names: class as the tasks call it -> what to call it in prompts; a class that is not there keeps its name. Or
            `module:NAME` for a list in the sorted order of the classes, such as `open_clip:IMAGENET_CLASSNAMES` for a
            folder of ImageNet's 1,000 numbers.
        name: stands in brackets behind the tasks; "" = they keep their names.

    Raises:
        RecipeError: templates or names that do not fit.
        ZooError: candidates that are no texts; a package that is not installed.

    Source: CLIP (arXiv:2103.00020), section 3.1.4; the mean is taken of normalised vectors and normalised, as by open_clip.
    """

    def __init__(
        self,
        tasks: TaskSource,
        templates: Sequence[str] | str = "photo",
        names: Mapping[str, str] | str | None = None,
        name: str = "",
    ) -> None:
        self.source, self.name = tasks, name
        self.templates = _templates(templates)
        self.names: Mapping[str, str] | Sequence[str] = _listed(names) if isinstance(names, str) else names or {}

    def tasks(self) -> list[RetrievalTask]:
        """The tasks with prompts for candidates."""
        return [self._prompted(task) for task in self.source.tasks()]

    def _prompted(self, task: RetrievalTask) -> RetrievalTask:
        for item in task.candidates:
            if not item.text or item.images:
                raise ZooError(
                    f"the candidates of task '{task.name}' are no texts, so it is no zero-shot classification"
                )
        called = self._called([item.text or "" for item in task.candidates], task.name)
        prompts = [
            (Item(text=_filled(template, called[number]), instruction=item.instruction), number)
            for number, item in enumerate(task.candidates)
            for template in self.templates
        ]
        return replace(
            task,
            name=f"{task.name}[{self.name}]" if self.name else task.name,
            candidates=[item for item, _ in prompts],
            groups=[number for _, number in prompts],
            metrics=("recall@1", "recall@5"),
            also=(),
            rsum="",
        )

    def _called(self, classes: Sequence[str], task: str) -> list[str]:
        if isinstance(self.names, Mapping):
            return [self.names.get(one, one) for one in classes]
        if len(self.names) != len(classes):
            raise RecipeError(
                f"task '{task}' has {len(classes)} classes, but there are {len(self.names)} names for them"
            )
        in_order = dict(zip(sorted(classes), self.names, strict=True))
        return [in_order[one] for one in classes]


def _templates(templates: Sequence[str] | str) -> list[Template]:
    chosen = TEMPLATES.get(templates) or _listed(templates) if isinstance(templates, str) else templates
    found: list[Template] = list(chosen)
    if not found:
        raise RecipeError("zero-shot classification needs at least one template, such as 'a photo of a {}'")
    for template in found:
        if isinstance(template, str) and "{}" not in template:
            raise RecipeError(f"the template '{template}' has no {{}} for the class")
    return found


def _filled(template: Template, name: str) -> str:
    return template.replace("{}", name) if isinstance(template, str) else template(name)


def _listed(place: str) -> Sequence[Any]:
    """The list at `module:NAME`."""
    module, _, attribute = place.partition(":")
    if not attribute:
        known = ", ".join(TEMPLATES)
        raise RecipeError(f"'{place}' is no list of prompts: give a list, one of {known}, or module:NAME")
    try:
        found = trust.attribute(module, attribute)
    except ImportError as error:
        raise ZooError(
            f"the list {place} needs the package '{module}': pip install it, or give a list ({error})"
        ) from error
    except AttributeError as error:
        raise RecipeError(f"the package '{module}' has no '{attribute}'") from error
    if not isinstance(found, list | tuple):
        raise RecipeError(f"'{place}' is no list, but {type(found).__name__}")
    return found
