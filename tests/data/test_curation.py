"""Choosing pairs by concepts: what counts as naming one, how evenly they are covered, and `zoo data curate`."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pair_files import picture

from zoo import cli
from zoo.data.curation import Chosen, Concepts, captions_of, curate, read_concepts
from zoo.data.shard_inputs import open_records
from zoo.data.sources.webdataset import WebDataset
from zoo.errors import ZooError


def concepts(*names: str) -> Concepts:
    return Concepts({name: [name] for name in names})


def numbers(found: Concepts, *captions: str) -> set[str]:
    return {found.names[number] for number in found.of(captions)}


# ---- naming a concept ------------------------------------------------------------------------------------------------


def test_whole_words_and_phrases_in_any_case() -> None:
    found = Concepts({"cat": ["cat", "kitten"], "polar bear": ["polar bear"], "bear": ["bear"], "élan": ["élan"]})
    assert numbers(found, "A CAT, sleeping") == {"cat"}
    assert numbers(found, "two kitten-shaped cushions") == {"cat"}
    assert numbers(found, "concatenation of catalogues") == set()
    assert numbers(found, "the polar bear's cub") == set()  # `bear's` is a word of its own
    assert numbers(found, "a polar\tbear") == {"polar bear", "bear"}
    assert numbers(found, "polar", "bear") == {"bear"}  # a phrase does not span captions
    assert numbers(found, "ÉLAN") == {"élan"}


def test_a_file_of_concepts(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("# animals\ncat: cat, kitten\n\ndog\n", "utf-8")
    found = read_concepts(path)
    assert found.names == ["cat", "dog"] and numbers(found, "a kitten") == {"cat"}
    assert found.fingerprint == read_concepts(path).fingerprint != concepts("cat", "dog").fingerprint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat\ncat: kitten\n", "line 2: the concept 'cat' stands there twice"),
        ("cat:\n", "line 1: 'cat:' is followed by no word"),
        ("# nothing\n", "there are no concepts"),
        ("cat: ?!\n", "'cat' has a phrase without any word: '?!'"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_text(content, "utf-8")
    with pytest.raises(ZooError) as error:
        read_concepts(path)
    assert message in str(error.value) and "labels.txt" in str(error.value)
    with pytest.raises(ZooError, match="can't be read"):
        read_concepts(tmp_path / "nowhere.txt")


def test_a_byte_order_mark_and_odd_separators_belong_to_no_concept(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeffdog\r\nred\u2028cat\r\n".encode())
    assert read_concepts(path).names == ["dog", "red\u2028cat"]
    path.write_bytes("dog\n".encode("utf-16"))
    with pytest.raises(ZooError, match=r"the concepts in .*labels\.txt is UTF-16.*UTF-8 is expected"):
        read_concepts(path)


# ---- choosing --------------------------------------------------------------------------------------------------------


def captions(**counts: int) -> list[tuple[str, ...]]:
    """So many captions of each name, shuffled; `_` stands for a blank and `0` for captions of nothing."""
    texts = [(f"a {name.replace('_', ' ')} number {i}",) for name, count in counts.items() for i in range(count)]
    random.Random(0).shuffle(texts)
    return texts


def test_every_concept_has_as_many_or_all_there_are() -> None:
    pairs = captions(cat=1000, dog=50, emu=3, nothing=500)
    found = curate(pairs, concepts("cat", "dog", "emu", "fox"), 20)
    assert found.available == [1000, 50, 3, 0] and found.kept == [20, 20, 3, 0]
    assert len(found.rows) == 43 and found.rows == sorted(set(found.rows))
    assert not any("nothing" in pairs[row][0] for row in found.rows)


def test_pairs_of_rare_concepts_count_for_common_ones() -> None:
    """Every emu stands beside a cat: no further cat is needed."""
    found = curate(captions(cat=100, emu_cat=20), concepts("cat", "emu"), 20)
    assert found.kept == [20, 20] and len(found.rows) == 20


def test_the_seed_decides() -> None:
    pairs, wanted = captions(cat=100, dog=100), concepts("cat", "dog")
    assert curate(pairs, wanted, 10).rows == curate(pairs, wanted, 10).rows != curate(pairs, wanted, 10, seed=1).rows
    more = curate(pairs, concepts("cat", "dog", "emu"), 10)
    assert more.rows == curate(pairs, wanted, 10).rows  # a further concept changes nothing for the others


def test_what_can_not_be_chosen_from_is_refused() -> None:
    with pytest.raises(ZooError, match="no caption names one of the 1 concepts"):
        curate(captions(cat=3), concepts("dog"), 2)
    with pytest.raises(ZooError, match="at least 1"):
        curate(captions(cat=3), concepts("cat"), 0)


# ---- from and to files -----------------------------------------------------------------------------------------------

NAMES = ["a red cat"] * 6 + ["a dog"] * 4 + ["some sky"] * 3


def write_table(folder: Path) -> Path:
    rows = {"image": [picture(i) for i in range(len(NAMES))], "caption": NAMES}
    pq.write_table(pa.table(rows), folder / "pairs.parquet")
    return folder / "pairs.parquet"


def write_jsonl(folder: Path) -> Path:
    lines = []
    for number, name in enumerate(NAMES):
        (folder / f"{number}.png").write_bytes(picture(number))
        lines.append(json.dumps({"image": f"{number}.png", "caption": [name, ""]}))
    (folder / "pairs.jsonl").write_text("\n".join(lines), "utf-8")
    return folder / "pairs.jsonl"


@pytest.mark.parametrize("write", [write_table, write_jsonl])
def test_curated_shards_hold_the_chosen_pairs(tmp_path: Path, write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    source, labels, out = write(tmp_path), tmp_path / "labels.txt", tmp_path / "even"
    labels.write_text("cat\ndog\nemu\n")
    command = ["data", "curate", str(source), "--concepts", str(labels), "--per-concept", "2", "--out", str(out)]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "4 of 13 pairs were chosen for 3 concepts" in printed and "2 have 2 or more, 0 fewer, 1 none" in printed
    texts = sorted(WebDataset(str(out)).record(i).captions[0] for i in range(4))
    assert texts == ["a dog", "a dog", "a red cat", "a red cat"]
    counts = list(csv.reader((out / "concepts.csv").open(encoding="utf-8")))
    assert counts == [["concept", "available", "chosen"], ["cat", "6", "2"], ["dog", "4", "2"], ["emu", "0", "0"]]
    assert cli.main(command) == 0 and "were there before" in capsys.readouterr().out
    assert cli.main([*command[:-4], "--per-concept", "3", "--out", str(out)]) == cli.EXIT_BAD_INPUT


def test_captions_come_without_pictures_and_in_order(tmp_path: Path) -> None:
    """A JSONL file whose pictures are gone still tells its captions; an unusable caption keeps its place."""
    path = write_jsonl(tmp_path)
    path.write_text(path.read_text("utf-8").replace('["a dog", ""]', "[]", 1), "utf-8")
    for file in tmp_path.glob("*.png"):
        file.unlink()
    sources = [open_records(str(path)), open_records(str(write_table(tmp_path)))]
    found = [texts[0] if texts else "" for texts in captions_of(sources)]
    assert found == [*NAMES[:6], "", *NAMES[7:], *NAMES]


def test_records_of_several_sources_keep_their_numbers(tmp_path: Path) -> None:
    table = open_records(str(write_table(tmp_path)))
    chosen = Chosen([table, table], [0, 12, 13, 25])
    assert len(chosen) == 4
    assert [chosen.record(i).captions[0] for i in range(4)] == [NAMES[0], NAMES[12], NAMES[0], NAMES[12]]


def test_the_packaged_emoji_by_their_groups(tmp_path: Path) -> None:
    source = open_records("emoji:test")
    found = curate(captions_of([source]), Concepts({"man": ["man"], "woman": ["woman"], "flag": ["flag"]}), 5)
    assert all(count == min(5, there) for count, there in zip(found.kept, found.available, strict=True))
    names = [source.record(row).captions[0] for row in found.rows]
    assert all({"man", "woman", "flag"} & set(name.replace(":", " ").split()) for name in names)
