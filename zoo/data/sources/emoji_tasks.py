"""Evaluation tasks on the packaged emoji."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.data.source import TaskSource
from zoo.data.sources.emoji import STYLES, Emoji, check_names, choose_instructions, choose_languages, drawing, read_emoji
from zoo.types import Item, RetrievalTask

TASKS = ("text_to_image", "image_to_text")
RETRIEVAL_METRICS = ("recall@1", "recall@5", "recall@10", "mrr", "ndcg@10")


class EmojiTasks(TaskSource):
    """Retrieval tasks on one split.

    text_to_image[xx]  names in language xx -> drawings; every drawing of every emoji with that very name is relevant
    image_to_text[xx]  drawings -> the distinct names of the split

    Args:
        split: val or test (train is allowed, to see what was learned by heart).
        which: the tasks, in this order.
        languages: languages of the text tasks, or "all".
        styles: the drawing styles that take part.
        max_queries: at most so many queries a task, evenly spaced over all of them; candidates stay complete.
        instructions: as in `EmojiRetrieval`.
    """

    def __init__(
        self,
        split: str = "val",
        which: tuple[str, ...] = ("text_to_image", "image_to_text"),
        languages: tuple[str, ...] | str = ("en",),
        styles: tuple[str, ...] = STYLES,
        max_queries: int | None = None,
        instructions: bool | dict[str, str] = False,
    ) -> None:
        check_names("task", which, TASKS)
        check_names("style", styles, STYLES)
        self.which, self.styles, self.max_queries = tuple(which), tuple(styles), max_queries
        self.languages = choose_languages(languages)
        self.instructions = choose_instructions(instructions)
        self.emoji = read_emoji(split, self.languages)

    def tasks(self) -> list[RetrievalTask]:
        """The tasks, text tasks once per language."""
        found = []
        for name in self.which:
            build = text_to_image if name == "text_to_image" else image_to_text
            for language in self.languages:
                task = build(self.emoji, self.styles, language, self.instructions.get(name))
                found.append(at_most(task, self.max_queries))
        return found


def at_most(task: RetrievalTask, limit: int | None) -> RetrievalTask:
    """The task with at most `limit` queries, evenly spaced."""
    total = len(task.queries)
    if limit is None or total <= limit:
        return task
    keep = [i * total // limit for i in range(limit)]
    return RetrievalTask(
        name=task.name,
        queries=[task.queries[i] for i in keep],
        candidates=task.candidates,
        relevant=[task.relevant[i] for i in keep],
        pools=None if task.pools is None else [task.pools[i] for i in keep],
        metrics=task.metrics,
    )


def text_to_image(
    emoji: Sequence[Emoji], styles: Sequence[str], language: str, instruction: str | None = None
) -> RetrievalTask:
    """Distinct names -> drawings."""
    pictures = [(one, style) for one in emoji for style in styles]
    by_name: dict[str, list[int]] = {}
    for index, (one, _) in enumerate(pictures):
        by_name.setdefault(one.names[language], []).append(index)
    return RetrievalTask(
        name=f"text_to_image[{language}]",
        queries=[Item(text=name, instruction=instruction) for name in by_name],
        candidates=[drawing(one, style) for one, style in pictures],
        relevant=list(by_name.values()),
        metrics=RETRIEVAL_METRICS,
    )


def image_to_text(
    emoji: Sequence[Emoji], styles: Sequence[str], language: str, instruction: str | None = None
) -> RetrievalTask:
    """Drawings -> distinct names."""
    names = {name: index for index, name in enumerate(dict.fromkeys(one.names[language] for one in emoji))}
    return RetrievalTask(
        name=f"image_to_text[{language}]",
        queries=[drawing(one, style, instruction) for one in emoji for style in styles],
        candidates=[Item(text=name) for name in names],
        relevant=[[names[one.names[language]]] for one in emoji for _ in styles],
        metrics=RETRIEVAL_METRICS,
    )
