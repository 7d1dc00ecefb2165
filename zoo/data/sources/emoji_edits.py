"""Composed retrieval on the packaged emoji: a reference picture and an edit in words lead to another picture."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from zoo.data.source import Source
from zoo.data.sources.emoji import STYLES, Emoji, check_names, drawing, read_emoji
from zoo.errors import ZooError
from zoo.types import Item, Sample

EDITS = ("tone", "gender", "hair", "direction", "style")

WORDINGS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "tone": {
        "train": ("change the skin tone to {}", "now with {} skin", "make the skin {}", "the same with {} skin"),
        "val": ("give it {} skin",),
        "test": ("the skin should be {}", "turn the skin tone into {}"),
    },
    "gender": {
        "train": ("make it a {}", "change the person to a {}", "now as a {}", "the same, but a {}"),
        "val": ("show a {} instead",),
        "test": ("it should be a {}", "replace the person by a {}"),
    },
    "hair": {
        "train": ("now with {}", "change the hair: {}", "the same with {}", "make the head show {}"),
        "val": ("give the person {}",),
        "test": ("the person should have {}", "turn the hair into {}"),
    },
    "direction": {
        "train": ("turn it to face {}", "now facing {}", "make it look to the {}", "the same, heading {}"),
        "val": ("point it to the {}",),
        "test": ("it should face {}", "flip it so that it faces {}"),
    },
    "style": {
        "train": ("draw it in the {} style", "the same in {} style", "now as {} draws it", "change the style to {}"),
        "val": ("show the {} version",),
        "test": ("it should look as {} draws it", "turn it into the {} drawing"),
    },
}
"""Edit -> split -> wordings; {} takes what the target has. Those of val and test are never trained on."""


@dataclass(frozen=True, slots=True)
class Triplet:
    """reference + edit -> any of `targets`; an entry of `targets`, and the reference, is (emoji, style)."""

    kind: str
    reference: tuple[Emoji, str]
    value: str
    targets: tuple[tuple[Emoji, str], ...]

    @property
    def id(self) -> str:
        """Readable name: "1f3ca/google/tone=dark"."""
        return f"{self.reference[0].id}/{self.reference[1]}/{self.kind}={self.value}"


# What the edited attribute is called, and None where an emoji can't take part in this edit.
_VALUES: Mapping[str, Callable[[Emoji], str | None]] = {
    "tone": lambda e: None if not e.has_tones or "+" in (e.tone or "") else e.tone or "plain yellow",
    "gender": lambda e: {"person": "person of no given gender"}.get(e.gender or "", e.gender),
    "hair": lambda e: {"bald": "a bald head", "beard": "a beard"}.get(e.hair or "", e.hair or "plain hair"),
    "direction": lambda e: e.direction or "left",
}


def _rest(emoji: Emoji, kind: str) -> tuple[str | None, ...]:
    """Everything that must stay the same under an edit."""
    attributes = {"tone": emoji.tone, "gender": emoji.gender, "hair": emoji.hair, "direction": emoji.direction}
    kept = tuple(None if name == kind else value for name, value in attributes.items())
    return (emoji.concept, emoji.base if kind == "tone" else None, *kept)


def triplets(emoji: Sequence[Emoji], kind: str, styles: Sequence[str] = STYLES) -> list[Triplet]:
    """All edits of one kind among the given emoji; the edited attribute differs, everything else is equal."""
    if kind == "style":
        return [
            Triplet("style", (one, before), after, ((one, after),))
            for one in emoji
            for before in styles
            for after in styles
            if before != after
        ]
    value_of = _VALUES[kind]
    siblings: dict[tuple[str | None, ...], dict[str, list[Emoji]]] = {}
    for one in emoji:
        if (value := value_of(one)) is not None:
            siblings.setdefault(_rest(one, kind), {}).setdefault(value, []).append(one)
    return [
        Triplet(kind, (one, style), value, tuple((target, style) for target in targets))
        for by_value in siblings.values()
        for before, references in by_value.items()
        for one in references
        for value, targets in by_value.items()
        if value != before
        for style in styles
    ]


@functools.lru_cache(maxsize=8)
def _triplets_of(split: str, kinds: tuple[str, ...], styles: tuple[str, ...]) -> tuple[Triplet, ...]:
    emoji = read_emoji(split)
    return tuple(triplet for kind in kinds for triplet in triplets(emoji, kind, styles))


class EmojiComposed(Source):
    """Query: a reference drawing with the edit as its text. Target: the edited drawing.

    A record is one triplet; each draw picks the wording. Samples have no label, because the other drawing of the
    target's emoji is wrong here; equal targets in a batch are told by their key.

    Args:
        split: train, val or test; it decides the wordings too.
        kinds: which of `EDITS`.
        styles: the drawing styles that take part ("style" needs two).
        instruction: put on every query if given.
    """

    def __init__(
        self,
        split: str = "train",
        kinds: tuple[str, ...] = EDITS,
        styles: tuple[str, ...] = STYLES,
        instruction: str | None = None,
        name: str = "emoji-composed",
    ) -> None:
        check_names("edit", kinds, EDITS)
        check_names("style", styles, STYLES)
        self.name, self.split, self.instruction = name, split, instruction
        self.triplets = _triplets_of(split, tuple(kinds), tuple(styles))
        if not self.triplets:
            raise ZooError(f"the split '{split}' in the styles {tuple(styles)} has no edit of {', '.join(kinds)}")

    def __len__(self) -> int:
        return len(self.triplets)

    def draw(self, index: int, rng: random.Random) -> Sample:
        """One triplet; see the class."""
        triplet = self.triplets[index]
        wording = rng.choice(WORDINGS[triplet.kind][self.split])
        target, style = rng.choice(triplet.targets)
        views = {"query": edited(triplet, wording, self.instruction), "target": drawing(target, style)}
        return Sample(id=f"emoji/{triplet.id}", views=views, source=self.name)


def edited(triplet: Triplet, wording: str, instruction: str | None = None) -> Item:
    """The query of a triplet in one wording."""
    emoji, style = triplet.reference
    return drawing(emoji, style, instruction, text=wording.format(triplet.value))
