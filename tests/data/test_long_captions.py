"""A caption of 10,000 words is shortened and counted, on every way from a file to a batch."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from pair_files import picture

from zoo.cli import main
from zoo.data.processors.dual import DualProcessor
from zoo.data.processors.dual_arrays import Caption, Picture, Rendering
from zoo.data.processors.rendered import RenderedProcessor
from zoo.data.processors.vlm import VlmProcessor
from zoo.data.processors.vlm_arrays import Pixels, Template
from zoo.data.source import Source
from zoo.data.sources.table import TablePairs
from zoo.data.sources.webdataset import WebDataset

LONG = " ".join(f"word{n % 97}" for n in range(10_000))
CAPTIONS = [LONG, "a short one", f"{LONG} in another way"]


def table(folder: Path) -> Path:
    pq.write_table(pa.table({"image": [picture(n) for n in range(3)], "caption": CAPTIONS}), folder / "t.parquet")
    return folder / "t.parquet"


def shards(folder: Path) -> Path:
    assert main(["data", "shard", str(table(folder)), "--out", str(folder / "shards")]) == 0
    return folder / "shards"


@pytest.fixture(params=["table", "shards, txt", "shards, json"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    if request.param == "table":
        return TablePairs(str(table(tmp_path)))
    return WebDataset(str(shards(tmp_path)), "txt" if request.param.endswith("txt") else "json.captions")


def dual(_: Path) -> DualProcessor:
    return DualProcessor("packaged:emoji-tokenizer.json", Picture(size=16), Caption(max_length=12, eos="<|endoftext|>"))


def rendered(_: Path) -> RenderedProcessor:
    return RenderedProcessor(Picture(size=32), Rendering(line=16))


def vlm(folder: Path) -> VlmProcessor:
    pixels = Pixels(patch_size=4, min_pixels=64, max_pixels=4096)
    tokenizer = str(tiny.write_tokenizer(folder))
    return VlmProcessor(tokenizer, template=Template(suffix="<|endoftext|>"), pixels=pixels, max_length=48)


@pytest.mark.parametrize("make", [dual, rendered, vlm], ids=lambda make: make.__name__)
def test_long_captions_are_shortened_and_counted(make, source: Source, tmp_path: Path) -> None:
    samples = [source.draw(number, random.Random(0)) for number in range(len(source))]
    assert [sample.views["target"].text for sample in samples] == CAPTIONS, "nothing is lost before the processor"
    processor = make(tmp_path)
    if make is rendered:
        batch = processor(samples)
    else:
        with pytest.warns(UserWarning, match=r"of [\d,]+ tokens was cut to \d+") as told:
            batch = processor(samples)
        assert len(told) == 1  # of two
    assert processor.arrays.shortened == (3 if make is rendered else 2)  # a small picture holds few letters
    inputs = batch.views["target"]
    if "input_ids" in inputs:
        longest = 12 if make is dual else 48
        assert inputs["input_ids"].shape == (3, longest) and inputs["attention_mask"].sum(1).max() == longest
        assert inputs["attention_mask"].sum(1)[1] < longest
    else:
        assert inputs["pixels"].shape == (3, 3, 32, 32)
