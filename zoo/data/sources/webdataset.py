"""Image-text pairs in tar shards (WebDataset layout): `0001.jpg` and `0001.txt` or `0001.json` make up a record."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.captions import CaptionFilter
from zoo.data.left_out import LeftOut
from zoo.data.pairs import PairDrawer, Record, Rows, image_name, label, read_captions
from zoo.data.patterns import expand
from zoo.data.shard_files import ShardFiles
from zoo.data.source import Source
from zoo.data.tar_index import PICKLES, TarIndex, index_shards
from zoo.errors import RecipeError, SampleError, ZooError
from zoo.files import state_of
from zoo.types import Item, Sample

PICTURES = ("jpg", "jpeg", "png", "webp")
MOST_BYTES = {"picture": 1 << 28, "caption": 1 << 24}
"""Larger members are left out (ours): they would be read into memory as a whole."""


class WebDataset(Source):
    """Training pairs of a picture and its caption from tar shards, in any order.

    The headers of a shard are read once and kept as `SHARD.index.npz` beside it (in ZOO_CACHE where that can't be
    written); then a sample is read from its place in the file. So a resumed run goes on at the exact next sample, records
    need not lie in groups, and there may be fewer shards than processes. It needs a disk that reads at random places.

    Nothing is unpacked, unpickled or run; commands and addresses are refused. Members that can't be used are counted in
    `left_out` and named in a warning.

    Args:
        shards: tar files: names, folders, patterns with `*` and `{000..012}`, or a list of them.
        caption: ending of the caption: "txt" = the whole file is one caption; "json.caption" = a field of the JSON file,
            a text or a list of texts (`json.a.b` for a field of a field).
        image: endings of the picture, the first one that a record has counts.
        image_id: a JSON field as above that names the picture, where several records show it: they share a label, and
            are kept out of one another's batches. Every JSON file is read for that, once a run. "" = pictures of equal
            bytes share a label; so they do where the field is null.
        captions: how many are drawn per sample; more than 1 makes the text view a tuple.
        views: of the picture and of the text.
        instructions: view -> instruction of its items.
        caption_filter: which captions are used; reads them all, twice, when the source is made.
        name: of the source; "" = that of the folder, or of a single shard.

    Raises:
        RecipeError: settings that make no sense, `pipe:`, addresses.
        ZooError: no shard, no tar file, a compressed one, or no usable record.
        SampleError: a caption or picture that can't be read; names shard and record.
    """

    def __init__(
        self,
        shards: list[str] | str,
        caption: str = "txt",
        image: tuple[str, ...] = PICTURES,
        image_id: str = "",
        captions: int = 1,
        views: tuple[str, str] = ("query", "target"),
        instructions: dict[str, str] | None = None,
        caption_filter: CaptionFilter | None = None,
        name: str = "",
    ) -> None:
        self.caption, self.image_id = _text_field(caption), _id_field(image_id)
        paths = expand(shards, ".tar")
        self.name = name or (paths[0].stem if len(paths) == 1 else paths[0].absolute().parent.name)
        self.drawer, self.left_out = PairDrawer(self.name, views, captions, instructions), LeftOut()
        self.files = ShardFiles(index_shards(paths))
        self.shard_names = _names(paths)
        self.place = self._find_records(tuple(ending.lower().lstrip(".") for ending in image))
        kept = self.drawer.choose(caption_filter, len(self), self._all_captions, self._name, self.left_out)
        self.place = self.place[kept]
        if not len(self):
            raise ZooError(self._nothing(paths[0]))
        self.left_out.warn(self.name, len(self))
        self._labels: Rows | None = None

    def __len__(self) -> int:
        return len(self.place)

    @property
    def duplicate_key(self) -> Callable[[int], Hashable] | None:
        """Equal for records of one picture; None where no field tells."""
        if not self.image_id:
            return None
        if self._labels is None:
            self._labels = np.array([self._id_code(index) for index in range(len(self))], np.int64)
        return self._labels.__getitem__

    def draw(self, index: int, rng: random.Random) -> Sample:
        """One pair."""
        return self.drawer.sample(self.record(index), rng)

    def items(self) -> Iterator[Item]:
        """Every item that `draw` may give, see `zoo.data.source.Listed`."""
        return self.drawer.items(self)

    def record(self, index: int) -> Record:
        """Picture, all captions, and the picture's name."""
        shard, key, picture, text, about = self.place[index].tolist()
        where = self._where(shard, key)
        captions = self._captions(shard, text, where)
        image_id = image_name(self._field(shard, about, self.image_id, where)) if self.image_id else ""
        return Record(where, self.files.read(shard, picture, where), captions, image_id)

    def state(self) -> str:
        """See `OnDisk`."""
        return state_of(index.path for index in self.files.indexes)

    def _find_records(self, endings: tuple[str, ...]) -> np.ndarray[Any, np.dtype[np.int32]]:
        """(N, 5) shard, key, and files of picture, caption and JSON of every usable record; -1 = no such file."""
        parts = []
        for number, index in enumerate(self.files.indexes):
            self.left_out.update(index.left_out, f"{index.path.name}: ")
            found = [index.files(ending) for ending in reversed(endings)]
            picture = np.full(len(index.key_ends), -1, np.int64)
            for files in found:
                picture = np.where(files >= 0, files, picture)
            text, about = index.files(self.caption[0]), index.files("json")
            usable = self._usable(number, index, picture, text, about)
            (records,) = np.nonzero(usable)
            columns = [np.full(len(records), number), records, picture[records], text[records], about[records]]
            parts.append(np.stack(columns, 1).astype(np.int32))
        self.files.forget_names()
        return np.concatenate(parts)

    def _usable(self, number: int, index: TarIndex, picture: Rows, text: Rows, about: Rows) -> np.ndarray[Any, Any]:
        """(K,) bool; the others are counted by the first thing that is wrong with them."""
        sizes = np.append(index.size, 0)  # of file -1
        problems = {
            "records without a picture": picture < 0,
            f"records without .{self.caption[0]}": text < 0,
            "empty pictures (0 bytes)": sizes[picture] == 0,
            "empty captions (0 bytes)": sizes[text] == 0,
            "pictures that are too large": sizes[picture] > MOST_BYTES["picture"],
            "captions that are too large": np.maximum(sizes[text], sizes[about]) > MOST_BYTES["caption"],
        }
        if self.image_id:
            problems["records without .json"] = about < 0
        usable = np.ones(len(picture), bool)
        for reason, wrong in problems.items():
            (records,) = np.nonzero(wrong & usable)
            self.left_out.add(reason, len(records), [self._where(number, record) for record in records[:3].tolist()])
            usable &= ~wrong
        return usable

    def _nothing(self, path: Path) -> str:
        endings = sorted({ending for index in self.files.indexes for ending in index.endings})
        there = f"endings that occur: {', '.join(endings[:10]) or 'none'}; set `image` and `caption`"
        return f"source '{self.name}' ({path} ...) has no usable record: {self.left_out or 'it is empty'}; {there}"

    def _where(self, shard: int, key: int) -> str:
        return f"{self.name}/{self.shard_names[shard]}/{self.files.indexes[shard].key(key)}"

    def _name(self, index: int) -> str:
        return self._where(*self.place[index, :2].tolist())

    def _captions(self, shard: int, text: int, where: str) -> tuple[str, ...]:
        ending, field = self.caption
        value = self._field(shard, text, field, where) if field else self.files.read_text(shard, text, where)
        return read_captions(value, f"{where}.{ending}")

    def _field(self, shard: int, file: int, field: Sequence[str], where: str) -> object:
        text = self.files.read_text(shard, file, where)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SampleError(f"{where}.json is no JSON: {error}") from error
        for name in field:
            if not isinstance(value, Mapping) or name not in value:
                there = ", ".join(list(map(str, value))[:10]) if isinstance(value, Mapping) else type(value).__name__
                raise SampleError(f"{where}.json has no field '{'.'.join(field)}' (there are {there})")
            value = value[name]
        return value

    def _all_captions(self) -> Iterator[tuple[str, ...]]:
        for shard, key, _, text, _ in self.place.tolist():
            try:
                yield self._captions(shard, text, self._where(shard, key))
            except SampleError:
                yield ()

    def _id_code(self, index: int) -> int:
        shard, key, _, _, about = self.place[index].tolist()
        where = self._where(shard, key)
        try:
            return label(image_name(self._field(shard, about, self.image_id, where)) or where)
        except SampleError:  # said when the record is drawn
            return label(where)


def _text_field(setting: str) -> tuple[str, tuple[str, ...]]:
    """`txt` -> ("txt", ()); `json.a.b` -> ("json", ("a", "b"))."""
    ending = setting.lstrip(".").lower()
    if ending.partition(".")[0] == "json":
        ending, *field = setting.lstrip(".").split(".")
        if field and all(field):
            return "json", tuple(field)
    elif ending and ending.rpartition(".")[2] not in PICKLES:
        return ending, ()
    raise RecipeError(f"'{setting}' names no caption: write txt, or json.FIELD for a field of the JSON file")


def _id_field(setting: str) -> tuple[str, ...]:
    _, field = _text_field(setting) if setting else ("", ())
    if setting and not field:
        raise RecipeError(f"image_id '{setting}' is no field of a JSON file: write json.FIELD")
    return field


def _names(paths: list[Path]) -> list[str]:
    """Short and different."""
    stems = [path.stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    folder = os.path.commonpath([path.absolute().parent for path in paths])
    return [path.absolute().relative_to(folder).with_suffix("").as_posix() for path in paths]
