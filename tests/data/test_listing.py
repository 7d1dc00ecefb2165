"""Listing what sources can give: nothing that is ever drawn may be missing."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from frozen_towers import ManyPairs
from pair_files import pairs, picture, write_tar

from zoo.data.augment import Mirror
from zoo.data.captions import CaptionFilter
from zoo.data.datamodule import EmbeddingData
from zoo.data.listing import list_data, list_parts, list_source, list_tasks
from zoo.data.parts import part_key, parts_of
from zoo.data.source import Listed, Source
from zoo.data.sources.emoji import EmojiRetrieval, read_emoji
from zoo.data.sources.emoji_questions import EmojiInstructions
from zoo.data.sources.emoji_tasks import EmojiTasks
from zoo.data.sources.folder import ImageFolder
from zoo.data.sources.table import TablePairs
from zoo.data.sources.webdataset import WebDataset
from zoo.errors import RecipeError, SampleError, ZooError
from zoo.types import Item, RetrievalTask

SEEDS = 50


def keys_of(items: Iterable[Item]) -> set[tuple[str, bytes]]:
    return {(modality, part_key(modality, content)) for item in set(items) for modality, content in parts_of(item)}


def drawn(source: Source, seeds: int = SEEDS) -> Iterator[Item]:
    for index in range(len(source)):
        for seed in range(seeds):
            for view in source.draw(index, random.Random(seed)).views.values():
                yield from view if isinstance(view, tuple) else (view,)


def tar_pairs(folder: Path) -> WebDataset:
    files = pairs(6)
    files |= {"0007.png": picture(7), "0007.json": b'{"caption": ["one", "two", " ", "three"]}'}
    files |= {"0008.png": picture(8), "0008.json": b'{"caption": 5}'}  # never drawn
    for number in range(6):
        files[f"{number:04d}.json"] = b'{"caption": ["number %d", "again %d"]}' % (number, number)
    return WebDataset(str(write_tar(folder / "a.tar", files)), caption="json.caption", name="tar")


def table_pairs(folder: Path) -> TablePairs:
    captions = [["a cat", "two cats", "a b c d"], ["x"], ["a cat on a mat"], ["many words " * 20, "so few words"]]
    columns = {"image": [picture(n) for n in range(4)], "caption": captions}
    pq.write_table(pa.table(columns), folder / "a.parquet")
    return TablePairs(str(folder / "a.parquet"), captions=2, caption_filter=CaptionFilter(min_words=2, max_images=0))


def folder_pairs(folder: Path, captions: Any = "file") -> ImageFolder:
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            (folder / name / f"{number}.png").write_bytes(picture(number + 10 * len(name)))
            (folder / name / f"{number}.txt").write_text(f"{name} {number}\nanother {name}\n")
    return ImageFolder(str(folder), captions, template="a {}.", direction="both")


SOURCES: dict[str, Any] = {
    "names": lambda folder: EmojiRetrieval("val", languages=("en", "ja"), direction="both", captions=2),
    "tags": lambda folder: EmojiRetrieval("val", tag_probability=0.7, most_tags=2, per="base", styles=("google",)),
    "texts": lambda folder: EmojiRetrieval("val", direction="text_to_text", tag_probability=1.0, most_tags=1),
    "tar": tar_pairs,
    "table": table_pairs,
    "folder": folder_pairs,
    "folders": lambda folder: folder_pairs(folder, "folder"),
    "pairs": lambda folder: ManyPairs(),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_all_that_is_drawn_is_listed(kind: str, tmp_path: Path) -> None:
    source = SOURCES[kind](tmp_path)
    if kind == "tar":  # its last record is not usable
        source.place = source.place[:-1]
    assert isinstance(source, Listed)
    listed, found = keys_of(source.items()), keys_of(drawn(source))
    assert not found - listed
    if kind not in ("tags", "texts"):  # too many to draw them all
        assert not listed - found
    assert keys_of(source.items()) == listed


def test_a_record_that_cannot_be_read_is_not_listed_and_not_drawn(tmp_path: Path) -> None:
    source = tar_pairs(tmp_path)
    with pytest.raises(SampleError):
        source.draw(len(source) - 1, random.Random(0))
    assert part_key("image", picture(8)) not in {key for _, key in keys_of(source.items())}


def test_emoji_names_and_drawings_exactly() -> None:
    found = {one.modality: one for one in list_source(EmojiRetrieval("test", languages=("en", "de")))}
    emoji = read_emoji("test", ("en", "de"))
    assert len(found["image"]) == len({drawing for one in emoji for drawing in one.drawings.values()})
    assert len(found["text"]) == len({name for one in emoji for name in one.names.values()})
    assert found["image"].total == 2 * len(emoji) == found["text"].total


def test_too_many_texts_are_refused_with_the_way_out() -> None:
    source = EmojiRetrieval("train", tag_probability=0.4)
    with pytest.raises(RecipeError, match=r"can make [\d,]+ texts of its tags, too many .*set most_tags: 1"):
        list_source(source)


def test_fewer_tags_draw_as_before_where_the_limit_is_not_met() -> None:
    usual, same = EmojiRetrieval("val", tag_probability=0.8), EmojiRetrieval("val", tag_probability=0.8, most_tags=4)
    for index in range(30):
        assert usual.draw(index, random.Random(index)) == same.draw(index, random.Random(index))
    with pytest.raises(ZooError, match="most_tags is 0"):
        EmojiRetrieval("val", most_tags=0)


def test_tasks_list_queries_and_candidates_of_further_tasks_too() -> None:
    more = RetrievalTask("more", [Item(text="only here")], [Item(text="a")], [(0,)])
    task = RetrievalTask(
        "t", [Item(text="q"), Item(text="a")], [Item(images=(picture(1),)), Item(text="a")], [(0,), (1,)]
    )
    task = RetrievalTask(task.name, task.queries, task.candidates, task.relevant, also=(more,))
    found = {one.modality: one for one in list_tasks("val", [task])}
    expected = [part_key("text", text) for text in ("q", "a", "only here")]
    assert [row.tobytes() for row in found["text"].keys] == expected
    assert found["text"].total == 5 and len(found["image"]) == 1


def test_contents_come_range_by_range_and_only_what_is_asked() -> None:
    source = ManyPairs(9)
    image, text = list_source(source)
    assert list(text.contents([(0, 2), (5, 6)])) == [[source.text(0), source.text(1)], [source.text(5)]]
    assert list(image.contents([(8, 9)])) == [[source.picture(8)]]
    assert list(image.contents([])) == []


def test_data_of_a_fit_lists_sources_and_tasks(tmp_path: Path) -> None:
    data = EmbeddingData(train=[ManyPairs(5)], val=[EmojiTasks("val")], test=[EmojiTasks("test")], on_bad_sample="skip")
    found = [(one.source, one.modality, one.skip) for one in list_data(data)]
    assert found == [
        ("pairs", "image", True),
        ("pairs", "text", True),
        ("val", "text", False),
        ("val", "image", False),
        ("test", "text", False),
        ("test", "image", False),
    ]


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_augmentation_and_caching_exclude_each_other() -> None:
    data = EmbeddingData(train=[ManyPairs()], augment=[Mirror()])
    with pytest.raises(
        RecipeError, match=r"augment \(Mirror\) and cached latents exclude each other: a latent is that"
    ):
        list_data(data)


def test_a_source_that_cannot_list_itself_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"source 'emoji-instructions' \(EmojiInstructions\) can't say beforehand"):
        list_source(EmojiInstructions("val"))


def test_instructions_are_refused() -> None:
    with pytest.raises(SampleError, match=r"'emoji' gives items with the instruction 'Find the picture"):
        list_source(EmojiRetrieval("val", instructions=True))


def test_a_source_that_changes_while_it_is_read_is_named() -> None:
    texts = ["a", "b", "c"]
    (listing,) = list_parts("notes", lambda: [Item(text=text) for text in texts])
    texts[1] = "other"
    with pytest.raises(ZooError, match="'notes' changed while it was read: its text 1 is not what it was"):
        list(listing.contents([(0, 3)]))
    del texts[1:]
    with pytest.raises(ZooError, match="'notes' changed while it was read: its text 2"):
        list(listing.contents([(2, 3)]))


def test_a_file_that_vanishes_after_it_was_listed_is_left_to_whoever_opens_it(tmp_path: Path) -> None:
    """One that changed is another content; one that is gone can only be a bad item."""
    files = [tmp_path / f"{n}.png" for n in range(3)]
    for file in files:
        file.write_bytes(b"x")
    (listing,) = list_parts("photos", lambda: [Item(images=(file,)) for file in files])
    files[1].unlink()
    assert list(listing.contents([(0, 3)])) == [files]
    files[2].write_bytes(b"other")
    with pytest.raises(ZooError, match="its image 2 is not what it was"):
        list(listing.contents([(0, 3)]))
