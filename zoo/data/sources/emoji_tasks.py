"""Evaluation tasks on the packaged emoji: retrieval both ways, classification, questions, edits, other style."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from zoo.data.source import TaskSource
from zoo.data.sources.emoji import (
    STYLES,
    Emoji,
    check_names,
    choose_instructions,
    choose_languages,
    drawing,
    read_emoji,
)
from zoo.data.sources.emoji_edits import EDITS, Triplet, edited, triplets
from zoo.data.sources.emoji_edits import WORDINGS as EDIT_WORDINGS
from zoo.data.sources.emoji_questions import QUESTIONS, answers, one_tone_each
from zoo.data.sources.emoji_questions import WORDINGS as QUESTION_WORDINGS
from zoo.errors import ZooError
from zoo.types import Item, RetrievalTask

RETRIEVAL_METRICS = ("recall@1", "recall@5", "recall@10", "mrr", "ndcg@10")
ANSWER_METRICS = ("precision@1", "recall@5", "recall@10", "mrr", "ndcg@10")
CLASS_METRICS = ("precision@1",)
CLASSES = ("group", "subgroup")
MANY_METRICS = ("map@r", "r_precision", "recall@1", "recall@10")
TASKS = (
    "text_to_image",
    "image_to_text",
    "tag_to_image",
    "image_to_tag",
    *CLASSES,
    "style",
    "instructions",
    *(f"instructions[{question}]" for question in QUESTIONS),
    "composed",
    *(f"composed[{edit}]" for edit in EDITS),
)


class EmojiTasks(TaskSource):
    """Retrieval tasks on one split. A name in brackets asks for one part alone; `docs/data-emoji.md` lists the chances.

    text_to_image     names -> drawings, one task per language; every drawing of every emoji of that name is relevant
    image_to_text     drawings -> the distinct names of the split, one task per language
    tag_to_image      keywords -> drawings, one task per language; right are all drawings of all emoji that have the keyword,
                      so most queries have many right answers
    image_to_tag      drawings -> all keywords of the split, of which several are right
    group, subgroup   drawings -> the names of the categories (zero-shot classification)
    style             drawings of the first style -> drawings of the second; the same emoji is relevant
    instructions      drawing + question -> all answers of the split to all questions: who overhears the question is
                      wrong; one tone per emoji; [concept], [tone], [gender], [group], [subgroup]: one question alone
    composed          drawing + edit -> all drawings of the split, the reference among them: who copies it is wrong;
                      one task per kind of edit that the split has

    Args:
        split: val or test (train is allowed, to see what was learned by heart).
        which: the tasks, in this order.
        languages: languages of the text tasks, or "all".
        styles: the drawing styles that take part.
        max_queries: at most so many queries a task, drawn once and for all; candidates stay complete.
        instructions: as in `EmojiRetrieval`, for the two text tasks.
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
        if max_queries is not None and max_queries < 1:
            raise ZooError(f"max_queries is {max_queries}: give a number above 0, or null for all queries")
        self.split, self.which, self.styles, self.max_queries = split, tuple(which), tuple(styles), max_queries
        self.languages = choose_languages(languages)
        self.instructions = choose_instructions(instructions)
        self.emoji = read_emoji(split, self.languages)

    def tasks(self) -> list[RetrievalTask]:
        """The tasks in the order of `which`.

        Raises:
            ZooError: a task of which the split has no query (see the table in `docs/data-emoji.md`).
        """
        found = [at_most(task, self.max_queries) for name in self.which for task in self._build(name)]
        for task in found:
            if not task.queries:
                raise ZooError(f"the split '{self.split}' in the styles {self.styles} has no query for '{task.name}'")
        return found

    def _build(self, name: str) -> Iterator[RetrievalTask]:
        kind, _, part = name.rstrip("]").partition("[")
        if kind == "text_to_image":
            for language in self.languages:
                yield text_to_image(self.emoji, self.styles, language, self.instructions.get(kind))
        elif kind == "image_to_text":
            for language in self.languages:
                yield image_to_text(self.emoji, self.styles, language, self.instructions.get(kind))
        elif kind in ("tag_to_image", "image_to_tag"):
            for language in self.languages:
                yield tags(self.emoji, self.styles, language, kind)
        elif kind == "style":
            yield other_style(self.emoji, self.styles)
        elif kind == "instructions":
            yield questions(self.emoji, self.styles, self.split, name, (part,) if part else QUESTIONS)
        elif kind == "composed":
            built = (composed(self.emoji, self.styles, self.split, edit) for edit in ((part,) if part else EDITS))
            yield from (task for task in built if part or task.queries)
        else:
            yield classification(self.emoji, self.styles, kind)


def at_most(task: RetrievalTask, limit: int | None) -> RetrievalTask:
    """The task with at most `limit` queries, the same ones on every call."""
    total = len(task.queries)
    if limit is None or total <= limit:
        return task
    keep = sorted(random.Random(0).sample(range(total), limit))
    queries, relevant = [task.queries[i] for i in keep], [task.relevant[i] for i in keep]
    return replace(task, queries=queries, relevant=relevant)


def text_to_image(
    emoji: Sequence[Emoji], styles: Sequence[str], language: str, instruction: str | None = None
) -> RetrievalTask:
    """Distinct names -> drawings."""
    pictures = _pictures(emoji, styles)
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
    pictures = _pictures(emoji, styles)
    return _to_texts(
        f"image_to_text[{language}]",
        [drawing(one, style, instruction) for one, style in pictures],
        [one.names[language] for one, _ in pictures],
        metrics=RETRIEVAL_METRICS,
    )


def tags(emoji: Sequence[Emoji], styles: Sequence[str], language: str, kind: str) -> RetrievalTask:
    """Keywords -> drawings, or drawings -> keywords: many to many. Toned emoji are left out: no keyword tells the tone."""
    plain = [one for one in emoji if one.tone is None and one.tags[language]]
    pictures = _pictures(plain, styles)
    words = list(dict.fromkeys(tag for one in plain for tag in one.tags[language]))
    place = {word: number for number, word in enumerate(words)}
    has = [sorted({place[tag] for tag in one.tags[language]}) for one, _ in pictures]
    drawings, texts = [drawing(one, style) for one, style in pictures], [Item(text=word) for word in words]
    if kind == "image_to_tag":
        return RetrievalTask(f"{kind}[{language}]", drawings, texts, has, metrics=MANY_METRICS)
    shown: list[list[int]] = [[] for _ in words]
    for picture, numbers in enumerate(has):
        for number in numbers:
            shown[number].append(picture)
    return RetrievalTask(f"{kind}[{language}]", texts, drawings, shown, metrics=MANY_METRICS)


def classification(emoji: Sequence[Emoji], styles: Sequence[str], kind: str) -> RetrievalTask:
    """Drawings -> the names of their groups or subgroups."""
    pictures = _pictures(emoji, styles)
    return _to_texts(
        kind,
        [drawing(one, style) for one, style in pictures],
        [answers(one).get(kind) or getattr(one, kind) for one, _ in pictures],
        metrics=CLASS_METRICS,
    )


def other_style(emoji: Sequence[Emoji], styles: Sequence[str]) -> RetrievalTask:
    """Drawings of the first style -> drawings of the second."""
    queries = [drawing(one, styles[0]) for one in emoji] if len(styles) > 1 else []
    return RetrievalTask(
        name="style",
        queries=queries,
        candidates=[drawing(one, styles[-1]) for one in emoji],
        relevant=[[index] for index in range(len(queries))],
        metrics=RETRIEVAL_METRICS,
    )


def questions(
    emoji: Sequence[Emoji], styles: Sequence[str], split: str, name: str, asked: Sequence[str]
) -> RetrievalTask:
    """Drawing + question -> every answer to any question in the split."""
    pairs = [
        (drawing(one, style, _one_of(QUESTION_WORDINGS[question][split], f"{one.id}/{style}")), answer)
        for one, style in _pictures(one_tone_each(emoji), styles)
        for question, answer in answers(one).items()
        if question in asked
    ]
    everything = (answer for one in emoji for answer in answers(one).values())
    items, right = [item for item, _ in pairs], [answer for _, answer in pairs]
    return _to_texts(name, items, right, everything, ANSWER_METRICS)


def composed(emoji: Sequence[Emoji], styles: Sequence[str], split: str, edit: str) -> RetrievalTask:
    """Reference drawing + edit -> all drawings of the split."""
    pictures = _pictures(emoji, styles)
    place = {(one.id, style): index for index, (one, style) in enumerate(pictures)}
    found = triplets(emoji, edit, styles)
    return RetrievalTask(
        name=f"composed[{edit}]",
        queries=[edited(triplet, _wording(triplet, split)) for triplet in found],
        candidates=[drawing(one, style) for one, style in pictures],
        relevant=[[place[one.id, style] for one, style in triplet.targets] for triplet in found],
        metrics=RETRIEVAL_METRICS,
    )


def _wording(triplet: Triplet, split: str) -> str:
    return _one_of(EDIT_WORDINGS[triplet.kind][split], triplet.id)


def _pictures(emoji: Iterable[Emoji], styles: Sequence[str]) -> list[tuple[Emoji, str]]:
    return [(one, style) for one in emoji for style in styles]


def _one_of(wordings: Sequence[str], seed: str) -> str:
    return random.Random(seed).choice(wordings)


def _to_texts(
    name: str,
    queries: Sequence[Item],
    right: Sequence[str],
    candidates: Iterable[str] = (),
    metrics: tuple[str, ...] = RETRIEVAL_METRICS,
) -> RetrievalTask:
    """Queries, each with one right text, against the distinct texts among `candidates` and the right ones."""
    texts: Mapping[str, int] = {text: index for index, text in enumerate(dict.fromkeys([*candidates, *right]))}
    return RetrievalTask(
        name=name,
        queries=queries,
        candidates=[Item(text=text) for text in texts],
        relevant=[[texts[text]] for text in right],
        metrics=metrics,
    )
