"""Instruction-controlled retrieval on the packaged emoji: one picture, several questions, another answer to each."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Literal

from zoo.data.source import Source
from zoo.data.sources.emoji import STYLES, Emoji, check_names, drawing, group_records, read_emoji
from zoo.types import Item, Sample

QUESTIONS = ("concept", "tone", "gender", "group", "subgroup")

WORDINGS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "concept": {
        "train": (
            "What is shown, apart from gender and skin tone?",
            "Name the activity, role or object.",
            "Which thing or action is this?",
            "What does the picture show?",
            "Say what this is, leaving out who it is.",
        ),
        "val": ("Name what is depicted, without gender or skin tone.",),
        "test": ("Which activity or object is in the picture?", "Identify the object or the action."),
    },
    "tone": {
        "train": (
            "What is the skin tone?",
            "Which skin tone is drawn?",
            "Name the colour of the skin.",
            "How dark is the skin?",
            "Look only at the skin: which tone does it have?",
        ),
        "val": ("Tell the tone of the skin.",),
        "test": ("Which tone does the skin have?", "Identify the skin tone."),
    },
    "gender": {
        "train": (
            "What is the gender?",
            "Is it a man, a woman, or neither?",
            "Name the gender of the person.",
            "Who is shown: somebody male, female or neutral?",
            "Look only at the gender of the person: which is it?",
        ),
        "val": ("Tell the gender of the person.",),
        "test": ("Which gender does the person have?", "Identify the gender."),
    },
    "group": {
        "train": (
            "Which category does it belong to?",
            "Name the broad category.",
            "Which main group of emoji is this from?",
            "What kind of emoji is it, broadly?",
            "Sort this into a main category.",
        ),
        "val": ("Tell the broad category of the emoji.",),
        "test": ("Which broad category is this?", "Identify the main category."),
    },
    "subgroup": {
        "train": (
            "Which subcategory does it belong to?",
            "Name the narrow category.",
            "Which subgroup of emoji is this from?",
            "What kind of emoji is it, precisely?",
            "Sort this into a subcategory.",
        ),
        "val": ("Tell the narrow category of the emoji.",),
        "test": ("Which narrow category is this?", "Identify the subcategory."),
    },
}
"""Question -> split -> wordings: those of val and test are never trained on."""

_GENDERS = {"woman": "female", "man": "male", "person": "gender neutral"}


def answers(emoji: Emoji) -> dict[str, str]:
    """Question -> answer, for the questions that make sense for this emoji; no two answers are equal.

    Tone and gender are asked where they vary: the plain yellow variant of a toned emoji has "no particular skin tone".
    A category with the very name of the concept (the concept "person" in the subgroup "person") is not asked for.
    """
    tones = " and ".join(emoji.tone.split("+")) if emoji.tone else "no particular"
    wanted = {
        "concept": emoji.concept,
        "tone": f"{tones} skin tone" if emoji.has_tones else None,
        "gender": _GENDERS.get(emoji.gender or ""),
        "group": emoji.group.replace("-", " and "),
        "subgroup": emoji.subgroup.replace("-", " "),
    }
    found: dict[str, str] = {}
    for question, answer in wanted.items():
        if answer and answer.casefold() not in {given.casefold() for given in found.values()}:
            found[question] = answer
    return found


class EmojiInstructions(Source):
    """Query: a drawing and a question as its instruction. Target: the answer.

    Each draw picks drawing style, question and wording. Answers repeat over the records, so samples have no label:
    equal answers in a batch are told by their text. With `negatives` the answers of the same picture to the other
    questions come along as own hard negatives.

    Args:
        split: train, val or test; it decides the wordings too.
        questions: which of `QUESTIONS` are asked.
        styles: the drawing styles to draw from.
        negatives: fill the view `negatives`.
        per: as in `EmojiRetrieval`.
    """

    def __init__(
        self,
        split: str = "train",
        questions: tuple[str, ...] = QUESTIONS,
        styles: tuple[str, ...] = STYLES,
        negatives: bool = False,
        per: Literal["emoji", "base"] = "emoji",
        name: str = "emoji-instructions",
    ) -> None:
        check_names("question", questions, QUESTIONS)
        check_names("style", styles, STYLES)
        self.name, self.split, self.styles, self.negatives = name, split, tuple(styles), negatives
        self.questions = tuple(questions)
        self.records = [
            members
            for members in group_records(read_emoji(split), per)
            if any(question in answers(one) for one in members for question in self.questions)
        ]

    def __len__(self) -> int:
        return len(self.records)

    def draw(self, index: int, rng: random.Random) -> Sample:
        """One question; see the class."""
        able = [one for one in self.records[index] if any(question in answers(one) for question in self.questions)]
        emoji = rng.choice(able)
        known = answers(emoji)
        question = rng.choice([question for question in self.questions if question in known])
        style = rng.choice(self.styles)
        instruction = rng.choice(WORDINGS[question][self.split])
        views: dict[str, Item | tuple[Item, ...]] = {
            "query": drawing(emoji, style, instruction),
            "target": Item(text=known[question]),
        }
        if self.negatives:
            views["negatives"] = tuple(Item(text=known[other]) for other in known if other != question)
        return Sample(id=f"emoji/{emoji.id}/{style}/{question}", views=views, source=self.name)


def one_tone_each(emoji: Sequence[Emoji]) -> list[Emoji]:
    """One emoji per base, its tone picked by the base's id, so that near-equal pictures are not asked about again."""
    return [random.Random(members[0].base).choice(members) for members in group_records(emoji, "base")]
