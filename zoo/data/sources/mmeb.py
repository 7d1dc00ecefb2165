"""MMEB's files (arXiv:2410.05160): training subsets and evaluation tasks, from Parquet or JSONL on this disk.

A row says itself how its prompt reads: the text holds the placeholder `<|image_1|>` where the image stands, the white
space around it, and the newline that ends a query, which is what the model pools. All of it stays (`Item.image_at`), so a
template only says what stands for an image. Version 1 writes the instruction into the text; version 2 has it in columns of
its own, and `MmebEval` joins them as the authors' evaluation does, or leaves them apart. '' stands for "no image" and "no
text". A placeholder without an image (queries of WebQA) is taken out; the authors leave a bare image token there.
"""

from __future__ import annotations

import random
import re
from array import array
from collections.abc import Hashable
from pathlib import Path
from typing import Literal

from zoo.data.patterns import has_files
from zoo.data.source import Source, TaskSource
from zoo.data.sources.record_files import SUFFIXES, Records
from zoo.errors import SampleError, UnknownNameError, ZooError
from zoo.files import below, check_images
from zoo.types import Item, RetrievalTask, Sample

_IMAGE = "<|image_1|>"
_PLACEHOLDER = re.compile(r"<\|image_\d+\|>")
_UNUSED = re.compile(_PLACEHOLDER.pattern + r"\s*")
_SHARD = re.compile(r"-\d+-of-\d+$")
TRAIN = ("qry", "qry_image_path", "pos_text", "pos_image_path")
NEGATIVES = ("neg_text", "neg_image_path")
EVAL = ("qry_text", "qry_img_path", "tgt_text", "tgt_img_path")
EVAL_V2 = ("qry_inst", "tgt_inst")
_QUESTIONS = frozenset(
    ("OK-VQA", "A-OKVQA", "DocVQA", "InfographicsVQA", "ChartQA", "Visual7W", "ScienceQA", "VizWiz", "GQA", "TextVQA")
)
"""Subsets that the authors' evaluation reads by `image_qa` (experiments/public/eval/image.yaml)."""


class MmebTrain(Source):
    """One training subset of MMEB (layout of TIGER-Lab/MMEB-train): `query`, `target` and, if wanted, `negatives`.

    Args:
        path: a Parquet or JSONL file, or the folder of a subset.
        images: the folder to which picture paths are relative; "" = that of `path`.
        negatives: give the row's hard negative too; every row must have one.
        name: of the source; "" = that of the folder or file.
        split: of a folder, the files whose name begins with this (MMEB-train: original, diverse_instruction).
        limit: use the first so many rows.

    Raises:
        ZooError: file, column or pictures missing; names them.
        SampleError: a row with an empty side; names file and row.
    """

    def __init__(
        self,
        path: str,
        images: str = "",
        negatives: bool = False,
        name: str = "",
        split: str = "original",
        limit: int | None = None,
    ) -> None:
        self.path = Path(path).expanduser()
        self.records = Records(self.path, (*TRAIN, *(NEGATIVES if negatives else ())), split=split)
        self.images = Path(images).expanduser() if images else self.records.files[0].parent
        self.negatives, self.name = negatives, name or subset_name(self.path)
        self.length = min(len(self.records), limit or len(self.records))
        _check_pictures(self.records, ("qry_image_path", "pos_image_path"), self.images)

    def __len__(self) -> int:
        return self.length

    def duplicate_key(self, index: int) -> Hashable:
        """Rows with the same target are false negatives of one another."""
        return self.records.value("pos_text", index), self.records.value("pos_image_path", index)

    def draw(self, index: int, rng: random.Random) -> Sample:
        """Row `index`; nothing varies."""
        views: dict[str, Item | tuple[Item, ...]] = {
            "query": self._item("qry", "qry_image_path", index),
            "target": self._item("pos_text", "pos_image_path", index),
        }
        if self.negatives:
            views["negatives"] = (self._item(*NEGATIVES, index),)
        return Sample(id=f"{self.name}/{index}", views=views, source=self.name)

    def _item(self, text: str, picture: str, index: int) -> Item:
        words, file = self.records.value(text, index), self.records.value(picture, index)
        return mmeb_item(words, file, self.images, f"{self.records.where(index)} ({text}, {picture})")


class MmebTrainFolder(Source):
    """All subsets of a copy of MMEB-train: a folder per subset. Stands for its `parts`, one source each.

    Args:
        path: the folder of the folders.
        images: as in `MmebTrain`, for all.
        subsets: their names; None = every folder that has data files.
        negatives: as in `MmebTrain`.
        split: as in `MmebTrain`.
        limit: as in `MmebTrain`, per subset.
    """

    def __init__(
        self,
        path: str,
        images: str,
        subsets: list[str] | None = None,
        negatives: bool = False,
        split: str = "original",
        limit: int | None = None,
    ) -> None:
        folders = subset_folders(Path(path).expanduser(), subsets)
        self.parts = [MmebTrain(str(f), images, negatives, split=split, limit=limit) for f in folders]
        self.name = subset_name(Path(path))

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def draw(self, index: int, rng: random.Random) -> Sample:
        """Record `index` of the subsets in a row."""
        for part in self.parts:
            if index < len(part):
                return part.draw(index, rng)
            index -= len(part)
        raise IndexError(index)


class MmebEval(TaskSource):
    """Evaluation subsets of MMEB (layouts of TIGER-Lab/MMEB-eval and of version 2): own candidates per query, gold first.

    The measure is precision@1. The official scoring takes the first of equal scores, so it counts a tie with the gold as
    right: `--evaluation.ties right` does so, too. Else a tie counts in expectation (`zoo.metrics.retrieval`), because under
    the official rule a model that maps everything to one point scores 100 %. Equal candidates are embedded once.

    Args:
        paths: a Parquet or JSONL file, or the folder of a subset, each; named like the task. One folder of such folders
            stands for all of them.
        images: the folder to which picture paths are relative.
        split: of a folder, the files whose name begins with this.
        pooled: False ranks every query against the candidates of all queries (version 2's "global").
        instructions: of version 2. "joined" to the text as the authors' evaluation writes prompts, or "apart", for templates
            with a slot of their own for an instruction.

    Raises:
        ZooError: file, column or pictures missing; names them.
        SampleError: a row that can't be used; names file and row.
    """

    def __init__(
        self,
        paths: list[str],
        images: str,
        split: str = "test",
        pooled: bool = True,
        instructions: Literal["joined", "apart"] = "joined",
    ) -> None:
        given = [Path(path).expanduser() for path in paths]
        if len(given) == 1 and given[0].is_dir() and not has_files(given[0], SUFFIXES):
            given = subset_folders(given[0])
        self.paths, self.images, self.split, self.pooled = given, Path(images).expanduser(), split, pooled
        self.joined = instructions == "joined"

    def tasks(self) -> list[RetrievalTask]:
        """One task per subset."""
        return [self._task(path) for path in self.paths]

    def _task(self, path: Path) -> RetrievalTask:
        records = Records(path, EVAL, EVAL_V2, split=self.split)
        _check_pictures(records, ("qry_img_path",), self.images)
        numbers: dict[tuple[str, str, str], int] = {}
        queries: list[Item] = []
        candidates: list[Item] = []
        pools: list[array[int]] = []
        name = subset_name(path)
        for row in range(len(records)):
            where, instruction = records.where(row), records.value("tgt_inst", row)
            text, picture = records.value("qry_text", row), records.value("qry_img_path", row)
            inst, targets = records.value("qry_inst", row), _targets(records, row)
            captioned = bool(targets[0][0].strip())
            if self.joined and inst:
                text, inst = _query(name, inst, text, picture, bool(targets[0][1])), ""
            queries.append(mmeb_item(text, picture, self.images, f"{where} (query)", inst))
            pool = array("i")
            for words, file in targets:
                if (instruction, words, file) not in numbers:
                    numbers[instruction, words, file] = len(candidates)
                    task, told = instruction, words
                    if self.joined and instruction and file:
                        task, told = "", _target(instruction, words, captioned, ends=captioned or not picture)
                    candidates.append(mmeb_item(told, file, self.images, f"{where} (candidate)", task))
                pool.append(numbers[instruction, words, file])
            pools.append(pool)
        relevant = [pool[:1] for pool in pools]
        own = pools if self.pooled else None
        return RetrievalTask(name, queries, candidates, relevant, own, ("precision@1",))


def mmeb_item(text: str, picture: str, images: Path, where: str, instruction: str = "") -> Item:
    """One side of a row. SampleError if it has neither text nor image, or its image is not below `images`.

    Args:
        text: with a placeholder where the image stands; an image without one is left to the prompt template.
        picture: path below `images`, or "".
        images: the folder of the images.
        where: for the message.
        instruction: of version 2, or "".
    """
    if not _UNUSED.sub("", text).strip() and not picture:
        raise SampleError(f"{where}: neither text nor picture")
    task = _UNUSED.sub("", instruction).strip() or None
    if not picture:
        return Item(text=_UNUSED.sub("", text), instruction=task, image_at=None if task else ())
    pictures = (below(images, picture, where),)
    found = [*_PLACEHOLDER.finditer(text)]
    if len(found) > 1:
        raise SampleError(f"{where}: the text has {len(found)} placeholders for one picture")
    words = _PLACEHOLDER.sub("", text)
    if not found or not words:
        return Item(text=words if words.strip() else None, images=pictures, instruction=task)
    return Item(text=words, images=pictures, instruction=task, image_at=(found[0].start(),))


def _query(subset: str, instruction: str, text: str, picture: str, finds_pictures: bool) -> str:
    """The prompt of a query of version 2, as the authors' `data_prepare` of each kind of subset writes it."""
    if not picture:  # image_t2i; VisDial's queries end in two newlines, as in version 1
        return f"{instruction} {text}\n" + ("\n" if subset == "VisDial" else "")
    task = instruction.replace(_IMAGE, "")
    if subset in _QUESTIONS or finds_pictures:  # image_qa, image_i2i_vg; not image_cls, image_i2t
        task = "\n" + task.strip()
    return _joined(task, text, bool(text)) + "\n"


def _target(instruction: str, text: str, captioned: bool, ends: bool) -> str:
    """The prompt of a candidate of version 2 that has an image; it `ends` in a newline, or in the last word."""
    return _joined(instruction.replace(_IMAGE, ""), text, captioned) + ("\n" if ends else "")


def _joined(task: str, text: str, told: bool) -> str:
    return (f"{_IMAGE} {task} {text}" if told else f"{_IMAGE} {task}").replace(" \n", "\n")


def subset_name(path: Path) -> str:
    """Of a folder or file; a file called like a shard is named by its folder."""
    if path.suffix.lower() not in SUFFIXES:
        return path.name
    return path.absolute().parent.name if _SHARD.search(path.stem) else path.stem


def subset_folders(path: Path, names: list[str] | None = None) -> list[Path]:
    """The folders of a folder that hold data files, or those of these names. ZooError if there are none."""
    if not path.is_dir():
        raise ZooError(f"there is no folder {path}")
    found = sorted(folder for folder in path.iterdir() if folder.is_dir() and has_files(folder, SUFFIXES))
    if names is not None:
        known = [folder.name for folder in found]
        for name in names:
            if name not in known:
                raise UnknownNameError("subset", name, known, f"({path} has {', '.join(known)})")
        return [path / name for name in names]
    if not found:
        raise ZooError(f"no folder in {path} holds Parquet or JSONL files")
    return found


def _targets(records: Records, row: int) -> list[tuple[str, str]]:
    texts, pictures = (records.value(column, row, list) for column in ("tgt_text", "tgt_img_path"))
    texts, pictures = texts or [""] * len(pictures), pictures or [""] * len(texts)
    if len(texts) != len(pictures) or not texts:
        raise SampleError(f"{records.where(row)}: {len(texts)} in tgt_text, but {len(pictures)} in tgt_img_path")
    return [(text or "", picture or "") for text, picture in zip(texts, pictures, strict=True)]


def _check_pictures(records: Records, columns: tuple[str, ...], images: Path) -> None:
    paths = (
        below(images, name, f"{records.where(row)} ({column})")
        for row in range(len(records))
        for column in columns
        if (name := records.value(column, row))
    )
    check_images(paths, 1, records.path, images, "`images`")
