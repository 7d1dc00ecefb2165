"""The packaged emoji: 3,786 emoji in two drawing styles, named and tagged in 28 languages, split by concept family.

`read_emoji` gives the records, `EmojiRetrieval` training pairs of picture and text, `training_texts` what a tokenizer
may learn from. Sources and licences: `zoo/data/packaged/emoji-NOTICE.md`; how it is built: `scripts/build_emoji.py`.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from zoo.data.source import Source
from zoo.errors import RecipeError, UnknownNameError, ZooError
from zoo.types import Item, Sample

PACKAGED = Path(__file__).resolve().parent.parent / "packaged" / "emoji.parquet"
SPLITS = ("train", "val", "test")
STYLES = ("google", "twitter")
INSTRUCTIONS: Mapping[str, str] = {
    "text_to_image": "Find the picture that this text describes.",
    "image_to_text": "Find the text that describes this picture.",
}
"""Default instruction of the query side, per direction."""
MOST_TEXTS = 1_000_000
"""Of a source that lists its items (ours): a tenth of that is what a small encoder does in minutes on two cores."""

Direction = Literal["image_to_text", "text_to_image", "both", "text_to_text"]


@dataclass(frozen=True, slots=True)
class Emoji:
    """One emoji. `label` is its row in the packaged file, the same in every split; the other fields are its columns.

    drawings: style -> encoded WebP, 64 x 64 with alpha. names, tags: per language that was asked for.
    has_tones: whether its base comes in skin tones (true of the plain yellow variant too).
    """

    label: int
    id: str
    base: str
    concept: str
    family: str
    split: str
    group: str
    subgroup: str
    tone: str | None
    gender: str | None
    hair: str | None
    direction: str | None
    short_name: str
    has_tones: bool
    drawings: Mapping[str, bytes]
    names: Mapping[str, str]
    tags: Mapping[str, tuple[str, ...]]


def known_languages() -> tuple[str, ...]:
    """The languages in which every emoji has a name, English first.

    Raises:
        ZooError: the packaged file is missing or unreadable.
    """
    languages = [field.name for field in _open(PACKAGED).schema_arrow.field("names").type]
    return tuple(sorted(languages, key=lambda language: (language != "en", language)))


def choose_languages(languages: Sequence[str] | str) -> tuple[str, ...]:
    """The languages that a setting means: "all", one name, or a list of names.

    Raises:
        UnknownNameError: a language that the file does not have.
        ZooError: an empty list.
    """
    known = known_languages()
    if languages == "all":
        return known
    chosen = (languages,) if isinstance(languages, str) else tuple(languages)
    check_names("language", chosen, (*known, "all"))
    return chosen


def check_names(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse an empty list and any name that is not known, naming those that are."""
    if not names:
        raise ZooError(f"no emoji {kind} is chosen: name at least one of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise UnknownNameError(f"emoji {kind}", name, known, f"Known: {', '.join(known)}.")


def read_emoji(split: str | None = None, languages: Sequence[str] | str = ("en",)) -> tuple[Emoji, ...]:
    """The emoji of one split, or of all of them, in Unicode's order, with names and tags in `languages`; cached.

    Raises:
        UnknownNameError: an unknown split or language.
        ZooError: the packaged file is missing or unreadable.
    """
    if split is not None:
        check_names("split", (split,), SPLITS)
    emoji = _read(choose_languages(languages))
    return emoji if split is None else tuple(one for one in emoji if one.split == split)


def training_texts(languages: Sequence[str] | str = "all") -> Iterator[str]:
    """Every name, then every tag, of the train split, language by language: what a tokenizer may be trained on."""
    for language in choose_languages(languages):
        emoji = read_emoji("train", (language,))
        yield from (one.names[language] for one in emoji)
        for one in emoji:
            if one.tone is None:  # toned emoji repeat the tags of their base
                yield from one.tags[language]


def drawing(emoji: Emoji, style: str, instruction: str | None = None, text: str | None = None) -> Item:
    """A drawing, with a text if given, as an item. Its key names emoji and style: augmented copies are one picture."""
    return Item(text=text, images=(emoji.drawings[style],), instruction=instruction, key=f"{emoji.id}/{style}")


class EmojiRetrieval(Source):
    """Training pairs of a drawing and a text that names it.

    A record is one emoji; each draw picks a drawing style, a language and a text: the name, a few tags, or both. Texts
    of toned emoji always hold the name, because tags do not tell the tone. All drawings and texts of an emoji share its
    label.

    Args:
        split: train, val or test; or "all", for weights that are released and were measured without the rest before.
        languages: the languages to draw from, or "all".
        styles: the drawing styles to draw from.
        direction: which side is the query; "both" draws one or the other; "text_to_text" pairs a text with another draw of a
            text of the same emoji (CLIPPO trains on pairs of texts, too), and shows no drawing.
        tag_probability: how often tags are part of the text (half of these draws: tags alone).
        most_tags: the most tags of one text.
        english_probability: how often English is drawn when other languages are there too; None: like any other.
        captions: texts per sample; more than 1 makes the text view a tuple of independent draws.
        per: "emoji" makes every skin tone a record; "base" makes one record of all tones and draws one of them.
        instructions: True puts `INSTRUCTIONS` on queries; a mapping from direction to text replaces them.
    """

    def __init__(
        self,
        split: str = "train",
        languages: tuple[str, ...] | str = ("en",),
        styles: tuple[str, ...] = STYLES,
        direction: Direction = "text_to_image",
        tag_probability: float = 0.0,
        most_tags: int = 4,
        english_probability: float | None = None,
        captions: int = 1,
        per: Literal["emoji", "base"] = "emoji",
        instructions: bool | dict[str, str] = False,
        name: str = "emoji",
    ) -> None:
        check_names("split", (split,), (*SPLITS, "all"))
        check_names("style", styles, STYLES)
        check_names("direction", (direction,), ("image_to_text", "text_to_image", "both", "text_to_text"))
        check_names("unit", (per,), ("emoji", "base"))
        self.name = name
        self.styles, self.direction, self.languages = tuple(styles), direction, choose_languages(languages)
        self.tag_probability = _probability("tag_probability", tag_probability)
        if most_tags < 1:
            raise ZooError(f"most_tags is {most_tags}; a text of tags has at least one (tag_probability: 0 means none)")
        self.most_tags = most_tags
        self.english_probability = (
            None if english_probability is None else _probability("english_probability", english_probability)
        )
        self.instructions = choose_instructions(instructions)
        if captions < 1:
            raise ZooError(f"captions is {captions}; an emoji needs at least one text")
        self.captions = captions
        self.records = group_records(read_emoji(None if split == "all" else split, self.languages), per)

    def __len__(self) -> int:
        return len(self.records)

    def draw(self, index: int, rng: random.Random) -> Sample:
        """One pair; see the class."""
        emoji = rng.choice(self.records[index])
        style = rng.choice(self.styles)
        texts = [self._text(emoji, self._language(rng), rng) for _ in range(self.captions)]
        direction = self.direction if self.direction != "both" else rng.choice(("text_to_image", "image_to_text"))
        instruction = self.instructions.get(direction)
        queries = direction == "text_to_image"
        items = tuple(Item(text=text, instruction=instruction if queries else None) for text in texts)
        written = items[0] if self.captions == 1 else items
        if direction == "text_to_text":
            views = {"query": written, "target": Item(text=self._text(emoji, self._language(rng), rng))}
        elif queries:
            views = {"query": written, "target": drawing(emoji, style)}
        else:
            views = {"query": drawing(emoji, style, instruction), "target": written}
        return Sample(id=f"emoji/{emoji.id}/{style}", views=views, label=emoji.label, source=self.name)

    def items(self) -> Iterator[Item]:
        """Every drawing and text that `draw` may give, see `zoo.data.source.Listed`.

        Raises:
            RecipeError: tags make too many texts.
        """
        self._check_listable()
        for emoji in (one for record in self.records for one in record):
            if self.direction != "text_to_text":
                asked = None if self.direction == "text_to_image" else self.instructions.get("image_to_text")
                yield from (drawing(emoji, style, asked) for style in self.styles)
            asked = None if self.direction == "image_to_text" else self.instructions.get("text_to_image")
            for language in self.languages:
                yield from (Item(text=text, instruction=asked) for text in self._texts(emoji, language))

    def _check_listable(self) -> None:
        if not self.tag_probability:
            return
        texts = sum(
            math.perm(len(one.tags[language]), count) * (1 if one.tone else 2)
            for record in self.records
            for one in record
            for language in self.languages
            for count in range(1, self.most_tags + 1)
        )
        if texts > MOST_TEXTS:
            raise RecipeError(
                f"source '{self.name}' can make {texts:,} texts of its tags, too many to list them all (most: "
                f"{MOST_TEXTS:,}); set most_tags: 1, or tag_probability: 0"
            )

    def _texts(self, emoji: Emoji, language: str) -> Iterator[str]:
        """All that `_text` may give."""
        name, tags = emoji.names[language], emoji.tags[language]
        yield name
        for count in range(1, min(self.most_tags, len(tags)) + 1 if self.tag_probability else 1):
            for chosen in itertools.permutations(tags, count):
                some = ", ".join(chosen)
                yield f"{name}, {some}"
                if emoji.tone is None:
                    yield some

    def _language(self, rng: random.Random) -> str:
        others = [language for language in self.languages if language != "en"]
        if self.english_probability is None or len(others) in (0, len(self.languages)):
            return rng.choice(self.languages)
        return "en" if rng.random() < self.english_probability else rng.choice(others)

    def _text(self, emoji: Emoji, language: str, rng: random.Random) -> str:
        name, tags = emoji.names[language], emoji.tags[language]
        if not tags or rng.random() >= self.tag_probability:
            return name
        some = ", ".join(rng.sample(tags, rng.randint(1, min(self.most_tags, len(tags)))))
        alone = rng.random() < 0.5 and emoji.tone is None
        return some if alone else f"{name}, {some}"


def choose_instructions(instructions: bool | Mapping[str, str]) -> dict[str, str]:
    """Direction -> instruction of its queries: none, the defaults, or the given ones.

    Raises:
        UnknownNameError: an instruction for something that is no direction.
    """
    if isinstance(instructions, bool):
        return dict(INSTRUCTIONS) if instructions else {}
    if instructions:
        check_names("direction", tuple(instructions), tuple(INSTRUCTIONS))
    return dict(instructions)


def group_records(emoji: Sequence[Emoji], per: str) -> list[tuple[Emoji, ...]]:
    """The emoji one by one ("emoji"), or all skin tones of one emoji together ("base")."""
    records: dict[str, list[Emoji]] = {}
    for one in emoji:
        records.setdefault(one.id if per == "emoji" else one.base, []).append(one)
    return [tuple(members) for members in records.values()]


def _probability(setting: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ZooError(f"{setting} is {value}, but a probability lies between 0 and 1")
    return value


def _open(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise ZooError(
            f"the packaged emoji are not at {path}: reinstall the package, or build them with scripts/build_emoji.py"
        )
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ZooError(f"{path} can't be read ({error}): build it again with scripts/build_emoji.py") from error


@functools.lru_cache(maxsize=1)
def _read_plain() -> tuple[dict[str, Any], ...]:
    computed = ("label", "has_tones", "drawings", "names", "tags")
    plain = [field.name for field in fields(Emoji) if field.name not in computed]
    rows = _open(PACKAGED).read(columns=[*plain, *STYLES]).to_pylist()
    toned = {row["base"] for row in rows if row["tone"]}
    return tuple(
        {
            **{name: row[name] for name in plain},
            "label": label,
            "has_tones": row["base"] in toned,
            "drawings": {style: row[style] for style in STYLES},
        }
        for label, row in enumerate(rows)
    )


@functools.lru_cache(maxsize=64)
def _read_language(language: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    table = _open(PACKAGED).read(columns=[f"names.{language}", f"tags.{language}"])
    names, tags = (table.column(column).combine_chunks().field(language).to_pylist() for column in ("names", "tags"))
    return tuple((name, tuple(some)) for name, some in zip(names, tags, strict=True))


@functools.lru_cache(maxsize=8)
def _read(languages: tuple[str, ...]) -> tuple[Emoji, ...]:
    texts = {language: _read_language(language) for language in languages}
    return tuple(
        Emoji(
            **row,
            names={language: text[row["label"]][0] for language, text in texts.items()},
            tags={language: text[row["label"]][1] for language, text in texts.items()},
        )
        for row in _read_plain()
    )
