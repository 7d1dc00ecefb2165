"""Places and the flags of their countries: pairs of a third modality with the packaged emoji.

Places are those of the time zones of the tz database, one to thirty a country. Sources and licences: `places-NOTICE.md` and
`emoji-NOTICE.md` in `zoo/data/packaged`; how the table is built: `scripts/build_places.py`.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from zoo.data.source import Source, TaskSource
from zoo.data.sources.emoji import STYLES, Emoji, check_names, drawing, read_emoji
from zoo.errors import ZooError
from zoo.files import PACKAGED
from zoo.types import Item, RetrievalTask, Sample

TABLE = PACKAGED / "places.tsv"
TASKS = ("place_to_image", "place_to_text", "text_to_place")
METRICS = ("recall@1", "recall@10", "mrr")
Countries = Literal["known", "new"]
_A = 0x1F1E6  # the regional indicator letter A; two of them name a flag


@dataclass(frozen=True, slots=True)
class Place:
    """The principal place of a time zone in a country.

    known: whether training sees a place of its country. split: train, val or test.
    """

    country: str
    latitude: float
    longitude: float
    zone: str
    known: bool
    split: str

    @property
    def item(self) -> Item:
        """As something to embed."""
        return Item(place=(self.latitude, self.longitude), key=self.zone)


@functools.cache
def read_places() -> tuple[Place, ...]:
    """All places whose country has a flag among the emoji, in the order of the table.

    A tenth of the countries is for validation and a fifth for testing, with all their places; of the others the first
    place is for training, and the rest is dealt out to validation and testing. Both by a hash of the name.

    Raises:
        ZooError: the packaged table is missing.
    """
    if not TABLE.is_file():
        raise ZooError(f"the packaged places are not at {TABLE}: reinstall the package, or run scripts/build_places.py")
    flags, seen, places = read_flags(), set[str](), []
    for line in TABLE.read_text("utf-8").rstrip("\n").split("\n")[1:]:
        country, latitude, longitude, zone = line.split("\t")
        if country not in flags:
            continue
        split = _dealt(country, ("val", "test", "test", *("train",) * 7))
        known = split == "train"
        if known and country in seen:
            split = _dealt(zone, ("val", "test"))
        seen.add(country)
        places.append(Place(country, float(latitude), float(longitude), zone, known, split))
    return tuple(places)


@functools.cache
def read_flags() -> dict[str, Emoji]:
    """ISO code -> the emoji of the country's flag."""
    found = {}
    for emoji in read_emoji():
        letters = [int(part, 16) - _A for part in emoji.id.split("-")]
        if len(letters) == 2 and all(0 <= letter < 26 for letter in letters):
            found["".join(chr(ord("A") + letter) for letter in letters)] = emoji
    return found


class FlagPlaces(Source):
    """Training pairs of a place and the flag of its country. No text is in them.

    A record is one country with its first place; each draw picks a drawing style.

    Args:
        styles: the drawing styles to draw from.
    """

    def __init__(self, styles: tuple[str, ...] = STYLES, name: str = "flags") -> None:
        check_names("style", styles, STYLES)
        self.name, self.styles = name, tuple(styles)
        self.records = [place for place in read_places() if place.split == "train"]

    def __len__(self) -> int:
        return len(self.records)

    def draw(self, index: int, rng: random.Random) -> Sample:
        """One pair; see the class."""
        place, style = self.records[index], rng.choice(self.styles)
        flag = read_flags()[place.country]
        views = {"query": place.item, "target": drawing(flag, style)}
        return Sample(f"{self.name}/{place.zone}/{style}", views, label=flag.label, source=self.name)

    def items(self) -> Iterator[Item]:
        """All that `draw` may give, see `zoo.data.source.Listed`."""
        for place in self.records:
            yield place.item
            yield from (drawing(read_flags()[place.country], style) for style in self.styles)


class PlaceTasks(TaskSource):
    """Retrieval between places that training has not seen and the flags, or flag names, of all countries.

    place_to_image[known]  new places of countries that training knows -> drawings of all flags
    place_to_text[known]   the same -> names of all flags: place and text were never trained together
    text_to_place[known]   names of flags -> the places, one or more of them right
    ...[new]               places of countries that training has not seen

    Args:
        split: val or test.
        which: the tasks.
        countries: "known", "new", or both.
    """

    def __init__(
        self,
        split: str = "val",
        which: tuple[str, ...] = TASKS,
        countries: tuple[Countries, ...] = ("known", "new"),
    ) -> None:
        check_names("split", (split,), ("val", "test"))
        check_names("task", which, TASKS)
        check_names("kind of country", countries, ("known", "new"))
        self.split, self.which, self.countries = split, which, countries

    def tasks(self) -> list[RetrievalTask]:
        """The tasks, for known and new countries each."""
        found = []
        for kind in self.countries:
            places = [p for p in read_places() if p.split == self.split and p.known == (kind == "known")]
            found += [_task(name, f"{name}[{kind}]", places) for name in self.which]
        return found


def _task(kind: str, name: str, places: Sequence[Place]) -> RetrievalTask:
    flags = {country: read_flags()[country] for country in dict.fromkeys(p.country for p in read_places())}
    codes = list(flags)
    if kind == "text_to_place":
        asked = [code for code in codes if any(p.country == code for p in places)]
        right = [[i for i, p in enumerate(places) if p.country == code] for code in asked]
        texts = [Item(text=flags[code].names["en"]) for code in asked]
        return RetrievalTask(name, texts, [p.item for p in places], right, metrics=METRICS)
    queries, numbers = [p.item for p in places], [codes.index(p.country) for p in places]
    if kind == "place_to_text":
        texts = [Item(text=flags[code].names["en"]) for code in codes]
        return RetrievalTask(name, queries, texts, [[n] for n in numbers], metrics=METRICS)
    drawings = [drawing(flags[code], style) for code in codes for style in STYLES]
    relevant = [[n * len(STYLES) + i for i in range(len(STYLES))] for n in numbers]
    return RetrievalTask(name, queries, drawings, relevant, metrics=METRICS)


def _dealt(name: str, hands: Sequence[str]) -> str:
    return hands[int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") % len(hands)]
