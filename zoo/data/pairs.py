"""Pictures with captions, from wherever they are stored, as samples: what all sources of such pairs have in common."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from zoo.data.captions import CaptionFilter, CaptionRules
from zoo.data.left_out import LeftOut
from zoo.data.processors.image_sources import ImageError, as_source, is_address, is_content
from zoo.data.text_files import check_unicode
from zoo.errors import RecipeError, SampleError, UnknownNameError
from zoo.files import below
from zoo.types import ImageSource, Item, Sample

Rows = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Record:
    """A picture and its captions, before anything is drawn.

    id: for messages; image: a path or encoded bytes; captions: at least one, none empty;
    image_id: names the picture where several records show it; "" = its content tells.
    """

    id: str
    image: ImageSource
    captions: tuple[str, ...]
    image_id: str = ""


class RecordSource(Protocol):
    """Something that holds records, such as the sources of pairs."""

    name: str

    def __len__(self) -> int: ...

    def record(self, index: int) -> Record:
        """Record `index`. SampleError if it can't be used."""
        ...


@runtime_checkable
class OnDisk(Protocol):
    """Records that are read from files."""

    def state(self) -> str:
        """A digest that changes when one of the files does."""
        ...


class PairDrawer:
    """Records -> samples of two views, a picture and a text.

    Args:
        source: name of the source.
        views: of the picture and of the text.
        captions: how many are drawn. 1 = the text view is one item; more = it is a tuple of so many, different ones as
            far as the record has them.
        instructions: view -> instruction of its items.
    """

    def __init__(
        self, source: str, views: tuple[str, str], captions: int = 1, instructions: Mapping[str, str] | None = None
    ) -> None:
        if len(views) != 2 or views[0] == views[1]:
            raise RecipeError(f"source '{source}': `views` are two names, of the picture and of the text, not {views}")
        if captions < 1:
            raise RecipeError(f"source '{source}': `captions` is {captions}; it is at least 1")
        for view in instructions or {}:
            if view not in views:
                raise UnknownNameError("view in instructions:", view, views, f"(there are {' and '.join(views)})")
        self.source, self.views, self.captions = source, tuple(views), captions
        self.instructions = dict(instructions or {})
        self.rules: CaptionRules | None = None

    def sample(self, record: Record, rng: random.Random) -> Sample:
        """One draw. Equal pictures share label and key, whatever augmentation does to them."""
        picture, text = self.views
        captions = self._usable(record)
        texts = tuple(Item(text=one, instruction=self.instructions.get(text)) for one in self._drawn(captions, rng))
        identity = self.identity(record)
        views: dict[str, Item | tuple[Item, ...]] = {
            picture: Item(images=(record.image,), instruction=self.instructions.get(picture), key=identity),
            text: texts[0] if self.captions == 1 else texts,
        }
        ordered = dict(sorted(views.items()))  # query before target, as other sources have it, whichever is the picture
        return Sample(record.id, ordered, label=label(identity), source=self.source)

    def items(self, source: RecordSource) -> Iterator[Item]:
        """Every item that `sample` may make of the records of a source: pictures, and all captions that may be drawn."""
        picture, text = self.views
        for index in range(len(source)):
            try:
                record = source.record(index)
                captions = self._usable(record)
            except SampleError:  # no sample is made of it, either
                continue
            yield Item(images=(record.image,), instruction=self.instructions.get(picture))
            yield from (Item(text=one, instruction=self.instructions.get(text)) for one in captions)

    def _usable(self, record: Record) -> Sequence[str]:
        captions = self.rules.kept(record.captions) if self.rules else record.captions
        if not captions:
            raise SampleError(f"{record.id}: the caption filter leaves no caption")
        return captions

    def identity(self, record: Record) -> str:
        """Equal for records of one picture."""
        if record.image_id:
            return f"{self.source}/{record.image_id}"
        image = record.image
        return hashlib.blake2b(image, digest_size=16).hexdigest() if isinstance(image, bytes) else str(image)

    def _drawn(self, captions: Sequence[str], rng: random.Random) -> list[str]:
        if self.captions == 1:
            return [rng.choice(captions)]
        once = rng.sample(captions, min(self.captions, len(captions)))
        return once + rng.choices(captions, k=self.captions - len(once))

    def choose(
        self,
        wanted: CaptionFilter | None,
        count: int,
        captions: Callable[[], Iterable[Sequence[str]]],
        name: Callable[[int], str],
        left_out: LeftOut,
    ) -> Rows:
        """Numbers of the records that keep a caption; the rules hold for what is drawn from now on.

        Args:
            wanted: the rules; None = all records stay.
            count: of records.
            captions: gives those of each record, none for one without; called twice.
            name: of a record, for messages.
            left_out: what is dropped is noted here.
        """
        if wanted is None:
            return np.arange(count, dtype=np.int64)
        self.rules = wanted.fit(captions())
        kept = []
        for number, several in enumerate(captions()):
            reasons = [self.rules.reason(text) for text in several]
            for text, reason in zip(several, reasons, strict=True):
                if reason:
                    left_out.note(reason, repr(text[:60]))
            if "" in reasons:
                kept.append(number)
            else:
                left_out.note("records of which no caption is left", name(number))
        return np.array(kept, np.int64)


def label(identity: str) -> int:
    """A number from 0 to 2**63 - 1 that is equal for equal identities, on every machine."""
    known = identity.encode("utf-8", "surrogatepass")  # file names and ids may hold half a surrogate pair
    return int.from_bytes(hashlib.blake2b(known, digest_size=8).digest(), "big") >> 1


def image_name(value: object) -> str:
    """What a field or column says of the name of a picture; "" for null, NaN or nothing, which name none."""
    if value is None or value != value:
        return ""
    return str(value)


def read_captions(value: object, where: str) -> tuple[str, ...]:
    """A text, or a list of texts, stripped; empty ones of a list are left out.

    Raises:
        SampleError: nothing left, or no valid text.
    """
    several = value if isinstance(value, list | tuple) else [value]
    texts = []
    for one in several:
        if not isinstance(one, str | None):
            raise SampleError(f"{where}: the caption is a {type(one).__name__}, not a text or a list of texts")
        if one and one.strip():
            texts.append(check_unicode(one.strip(), f"{where}: the caption"))
    if not texts:
        raise SampleError(f"{where}: the caption is empty")
    return tuple(texts)


def read_picture(value: object, folder: Path, where: str) -> ImageSource:
    """A picture from a table: bytes, a path below `folder`, a `data:` address or base64, or a mapping of `bytes` and `path`
    as Hugging Face writes it.

    Raises:
        SampleError: nothing there, or a path that leads out of the folder.
    """
    if isinstance(value, Mapping):
        content = value.get("bytes")
        value = value.get("path") if content is None else content
    if isinstance(value, bytes):
        if not value:
            raise SampleError(f"{where}: the picture is empty (0 bytes)")
        return value
    if isinstance(value, str) and value:
        if is_address(value):
            return value  # refused where it is opened
        if is_content(value):
            return _content(value, where)
        return below(folder, check_unicode(value, f"{where}: the path"), where)
    raise SampleError(f"{where}: there is no picture" + (f", but a {type(value).__name__}" if value else ""))


def _content(value: str, where: str) -> ImageSource:
    try:
        return as_source(value, where)
    except ImageError as error:
        raise SampleError(str(error)) from error
