"""Tar shards as training data: what can't be used is counted and named, and a resumed run is exact."""

from __future__ import annotations

import json
import os
import pickle
import random
import tarfile
import warnings
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from pair_files import giant_header, member, pairs, picture, write_tar

from zoo.data.batches import TrainingBatches
from zoo.data.captions import CaptionFilter
from zoo.data.datamodule import EmbeddingData
from zoo.data.images import open_image
from zoo.data.left_out import LeftOutWarning
from zoo.data.loader import BadSampleWarning
from zoo.data.pairs import label
from zoo.data.processors.collate import collate
from zoo.data.sampler import HomogeneousBatches
from zoo.data.source import Processor, Source
from zoo.data.sources.webdataset import WebDataset
from zoo.errors import RecipeError, SampleError, UnknownNameError, ZooError
from zoo.types import Batch, Inputs, Item, Sample


def draw(source: Source, index: int = 0, seed: int = 0) -> Sample:
    return source.draw(index, random.Random(seed))


def with_json(**records: object) -> dict[str, bytes]:
    """`a.png` and `a.json` and so on."""
    files = {}
    for number, (key, content) in enumerate(records.items()):
        files[f"{key}.png"] = picture(number)
        files[f"{key}.json"] = json.dumps(content).encode()
    return files


def source(folder: Path, files, quiet: bool = True, **settings) -> WebDataset:
    write_tar(folder / "s.tar", files)
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("error")
        return WebDataset(str(folder / "s.tar"), **settings)


def test_pairs_of_several_shards(tmp_path: Path) -> None:
    for shard in range(3):
        write_tar(tmp_path / "pets" / f"{shard:05d}.tar", pairs(4, shard * 4))
    found = WebDataset(str(tmp_path / "pets/{00000..00002}.tar"))
    assert (found.name, len(found)) == ("pets", 12) and isinstance(found, Source)
    for number in range(12):
        sample = draw(found, number)
        assert sample.id == f"pets/{number // 4:05d}/{number:04d}" and sample.source == "pets"
        assert list(sample.views) == ["query", "target"]
        assert sample.views["query"].images == (picture(number),)
        assert sample.views["target"] == Item(text=f"a picture of number {number}")
    assert len({draw(found, number).label for number in range(12)}) == 12
    assert found.duplicate_key is None and getattr(found, "duplicate_key", None) is None


def test_view_names_and_instructions(tmp_path: Path) -> None:
    found = source(tmp_path, pairs(1), views=("image", "text"), instructions={"text": "Read it"})
    views = draw(found).views
    assert list(views) == ["image", "text"]
    assert views["image"].instruction is None and views["text"].instruction == "Read it"
    turned = draw(WebDataset(str(tmp_path / "s.tar"), views=("target", "query"))).views
    assert list(turned) == ["query", "target"], "as other sources have it, so that they can share batches"
    assert turned["query"].text and turned["target"].images


def test_json_fields_and_several_captions(tmp_path: Path) -> None:
    files = with_json(a={"caption": "one", "re": {"captions": [" x ", "", None, "y", "z"]}}, b={"caption": "two"})
    found = source(tmp_path, files, caption="json.caption")
    assert [draw(found, n).views["target"].text for n in range(2)] == ["one", "two"]
    several = source(tmp_path, files, caption="json.re.captions")
    assert {draw(several, 0, seed).views["target"].text for seed in range(40)} == {"x", "y", "z"}
    with pytest.raises(SampleError, match=r"s/s/b\.json has no field 're\.captions' \(there are caption\)"):
        draw(several, 1)


@pytest.mark.parametrize(("count", "different"), [(2, 2), (3, 3), (5, 3)])
def test_a_fixed_number_of_captions(count: int, different: int, tmp_path: Path) -> None:
    found = source(tmp_path, with_json(a={"c": ["x", "y", "z"]}), caption="json.c", captions=count)
    for seed in range(10):
        texts = [item.text for item in draw(found, 0, seed).views["target"]]
        assert len(texts) == count and len(set(texts)) == different
    assert len({tuple(i.text for i in draw(found, 0, seed).views["target"]) for seed in range(20)}) > 1
    assert all(draw(found, 0, seed) == draw(found, 0, seed) for seed in range(10))


def test_equal_pictures_share_label_and_key(tmp_path: Path) -> None:
    files = {"a.png": picture(1), "a.txt": b"one", "b.png": picture(1), "b.txt": b"two", "c.png": picture(2)}
    found = source(tmp_path, {**files, "c.txt": b"three"})
    a, b, c = (draw(found, n) for n in range(3))
    assert a.label == b.label != c.label and 0 <= a.label < 2**63
    assert a.views["query"].key == b.views["query"].key != c.views["query"].key
    assert a.label == label(a.views["query"].key) and label("x") == 0x4ADF4367F96E584F >> 1, "as b2sum has it"


def test_an_image_id_marks_duplicates_and_keeps_them_apart(tmp_path: Path) -> None:
    files = with_json(**{f"r{n}": {"c": f"caption {n}", "image": n // 2} for n in range(8)})
    found = source(tmp_path, files, caption="json.c", image_id="json.image")
    samples = [draw(found, n) for n in range(8)]
    assert [s.label == samples[0].label for s in samples] == [True, True] + [False] * 6
    keys = [found.duplicate_key(n) for n in range(8)]
    assert keys == [k for k in dict.fromkeys(keys) for _ in range(2)] and len(set(keys)) == 4
    for epoch in range(3):
        sampler = HomogeneousBatches([found], 4)
        sampler.seek(epoch)
        assert all(len({draw.index // 2 for draw in batch}) == 4 for batch in sampler)


def test_records_without_an_id_are_images_of_their_own(tmp_path: Path) -> None:
    """Null and "" name nothing: the content tells, as where there is no such field."""
    named = [1, None, 1, None, "", ""]
    files = with_json(**{f"r{n}": {"c": f"caption {n}", "image": name} for n, name in enumerate(named)})
    found = source(tmp_path, files, caption="json.c", image_id="json.image")
    labels, keys = [draw(found, n).label for n in range(6)], [found.duplicate_key(n) for n in range(6)]
    for several in (labels, keys):
        assert several[0] == several[2] and len(set(several)) == 5
    assert labels[1] == draw(source(tmp_path, files, caption="json.c"), 1).label


@pytest.mark.parametrize(
    ("files", "reason", "name"),
    [
        ({"b.png": b"", "b.txt": b"x"}, "empty pictures (0 bytes)", "s/s/b"),
        ({"b.png": picture(), "b.txt": b""}, "empty captions (0 bytes)", "s/s/b"),
        ({"b.png": picture()}, "records without .txt", "s/s/b"),
        ({"b.txt": b"x"}, "records without a picture", "s/s/b"),
        ({"b.gif": picture(), "b.txt": b"x"}, "records without a picture", "s/s/b"),
        ({"../b.png": picture(), "b.png": b"z", "b.txt": b"x"}, "members with a path that leads outside", "../b.png"),
        (
            [member("b.png", kind=tarfile.SYMTYPE, link="0000.png"), ("b.txt", b"x")],
            "records without a picture",
            "s/s/b",
        ),
        ([("0000.png", picture(9))], "members of a name that was there before", "0000.png"),
        ([("x.pyd", b"x")], "members that are pickles", "x.pyd"),
    ],
)
def test_what_can_not_be_used_is_counted_and_named(files, reason: str, name: str, tmp_path: Path) -> None:
    entries = [*pairs(2).items(), *(files.items() if isinstance(files, dict) else files)]
    with pytest.warns(LeftOutWarning, match="source 's' has . usable records; left out: ") as caught:
        found = source(tmp_path, entries, quiet=False)
    assert found.left_out.counts[reason] == 1 and f"1 {reason} (" in str(caught[0].message)
    assert name in str(caught[0].message)
    assert [draw(found, n).views["query"].images[0] for n in range(2)] == [picture(0), picture(1)]
    again = pytest.warns(LeftOutWarning)
    with again as second:
        WebDataset(str(tmp_path / "s.tar"))
    assert str(second[0].message) == str(caught[0].message), "also where the index was kept"


def test_other_members_are_nobodys_business(tmp_path: Path) -> None:
    files = {**pairs(2), "0000.json": b"{}", "0000.cls": b"3", "0001.seg.png": picture(5)}
    assert len(source(tmp_path, files)) == 2


def test_endings_that_are_named(tmp_path: Path) -> None:
    files = {"a.SEG.png": picture(1), "a.jpg": picture(2), "a.cap": b"x"}
    assert draw(source(tmp_path, files, caption="cap")).views["query"].images == (picture(2),)
    assert draw(source(tmp_path, files, caption="cap", image=("seg.png", "jpg"))).views["query"].images == (picture(1),)


def test_a_shard_that_is_cut_off(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [*pairs(3).items(), ("big.png", bytes(5000)), ("big.txt", b"x")])
    path.write_bytes(path.read_bytes()[:-9000])
    with pytest.warns(LeftOutWarning, match=r"1 damaged ends \(s.tar: 'big.png' is cut off: 5,000 bytes from"):
        assert len(WebDataset(str(path))) == 3


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (b" \n ", {}, r"^s/s/0000\.txt: the caption is empty$"),
        (b"\xff\xfe\xfa", {}, r"^s/s/0000: its text is (UTF-16|not UTF-8)"),
        (b"{", {"caption": "json.c"}, r"^s/s/0000\.json is no JSON"),
        (b"[" * 100_000, {"caption": "json.c"}, r"^s/s/0000\.json is no JSON"),
        (b"[1]", {"caption": "json.c"}, r"0000\.json has no field 'c' \(there are list\)"),
        (b'{"c": 3}', {"caption": "json.c"}, r"the caption is a int, not a text or a list of texts"),
        (b'{"c": []}', {"caption": "json.c"}, r"the caption is empty"),
        (b'{"c": "\\ud800"}', {"caption": "json.c"}, r"the caption is not valid Unicode"),
    ],
)
def test_captions_that_can_not_be_read(content: bytes, settings, message: str, tmp_path: Path) -> None:
    ending = settings.get("caption", "txt").split(".")[0]
    found = source(tmp_path, {"0000.png": picture(), f"0000.{ending}": content}, **settings)
    with pytest.raises(SampleError, match=message):
        draw(found)


def test_a_caption_of_ten_thousand_words(tmp_path: Path) -> None:
    text = " ".join(f"word{n}" for n in range(10_000))
    assert draw(source(tmp_path, {"a.png": picture(), "a.txt": text.encode()})).views["target"].text == text


def test_a_picture_of_60_000_pixels_a_side_is_refused_when_opened(tmp_path: Path) -> None:
    sample = draw(source(tmp_path, {"a.png": giant_header(), "a.txt": b"x"}))
    with pytest.raises(SampleError, match=r"^s/s/a: image (is too large|has 60000x60000 pixels)"):
        open_image(sample.views["query"].images[0], sample.id)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"shards": "pipe:cat {path}"}, RecipeError, "commands and addresses are never opened"),
        ({"shards": "{path}/{000..012}.tar"}, ZooError, "matches no file"),
        ({"caption": "json"}, RecipeError, "'json' names no caption: write txt, or json.FIELD"),
        ({"caption": "txt.a"}, ZooError, r"no usable record: 2 records without .txt.a"),
        ({"caption": "json.a."}, RecipeError, "'json.a.' names no caption"),
        ({"caption": "pickle"}, RecipeError, "'pickle' names no caption"),
        ({"caption": ""}, RecipeError, "'' names no caption"),
        ({"image_id": "key"}, RecipeError, "image_id 'key' is no field of a JSON file"),
        ({"caption": "cap"}, ZooError, r"no usable record: 2 records without .cap .*endings that occur: png, txt; set"),
        ({"views": ("a", "a")}, RecipeError, "`views` are two names"),
        ({"captions": 0}, RecipeError, "`captions` is 0"),
        (
            {"instructions": {"qurey": "x"}},
            UnknownNameError,
            "unknown view in instructions: 'qurey'; did you mean 'query'",
        ),
    ],
)
def test_settings_that_do_not_fit(settings, error, message: str, tmp_path: Path) -> None:
    path = str(write_tar(tmp_path / "s.tar", pairs(2)))
    settings = {"shards": path, **settings}
    settings["shards"] = settings["shards"].replace("{path}", path)
    with pytest.raises(error, match=message):
        WebDataset(**settings)


def test_an_empty_shard(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="no usable record: it is empty; endings that occur: none"):
        source(tmp_path, {})


def test_nothing_is_run_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that would leave a trace if it were unpickled, and a command that would if it were run."""
    trace = tmp_path / "trace"

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    files = {**pairs(1), "0000.pyd": pickle.dumps(Bomb()), "0000.pickle": pickle.dumps(Bomb())}
    with pytest.warns(LeftOutWarning, match="2 members that are pickles"):
        draw(source(tmp_path, files, quiet=False))
    with pytest.raises(RecipeError):
        WebDataset(f"pipe:mkdir {trace}")
    assert not trace.exists()


def test_the_caption_filter(tmp_path: Path) -> None:
    lists = [
        ["a stock photo", "a small red car"],
        ["a stock photo"],
        ["too short"],
        ["a stock photo", "a big dog"],
        [""],
    ]
    files = with_json(**{f"r{n}": {"c": several} for n, several in enumerate(lists)})
    with pytest.warns(LeftOutWarning, match="records of which no caption is left") as caught:
        found = source(
            tmp_path, files, quiet=False, caption="json.c", caption_filter=CaptionFilter(max_images=2, min_words=3)
        )
    assert found.left_out.counts == {
        "captions of more than 2 pictures": 3,
        "captions of less than 3 words": 1,
        "records of which no caption is left": 3,
    }
    assert "('too short')" in str(caught[0].message) and "(s/s/r1, s/s/r2, s/s/r4)" in str(caught[0].message)
    assert [draw(found, n).id for n in range(len(found))] == ["s/s/r0", "s/s/r3"]
    assert {draw(found, 0, seed).views["target"].text for seed in range(20)} == {"a small red car"}


def test_same_names_in_different_folders(tmp_path: Path) -> None:
    for folder in "ab":
        write_tar(tmp_path / folder / "0.tar", pairs(1))
    found = WebDataset([str(tmp_path / "a/0.tar"), str(tmp_path / "b/0.tar")], name="n")
    assert [draw(found, n).id for n in range(2)] == ["n/a/0/0000", "n/b/0/0000"]


def test_pickled_small_and_equal(tmp_path: Path) -> None:
    found = source(tmp_path, pairs(50))
    draw(found)
    content = pickle.dumps(found)
    assert len(content) < 20_000
    assert [draw(pickle.loads(content), n) for n in range(50)] == [draw(found, n) for n in range(50)]


# ---- through the datamodule ------------------------------------------------------------------------------------------


class Bytes(Processor):
    """Pictures to their mean colour, texts to their length."""

    def __call__(self, samples: list[Sample]) -> Batch:
        return collate(samples, self.view)

    def view(self, view: str, items, names) -> Inputs:
        rows = [
            [*open_image(item.images[0], name).resize((1, 1)).getpixel((0, 0))]
            if item.images
            else [float(len(item.text)), float(sum(item.text.encode())), 0.0]
            for item, name in zip(items, names, strict=True)
        ]
        return {"x": torch.tensor(rows, dtype=torch.float32) / 255}

    def split(self, inputs: Inputs, size: int) -> list[Inputs]:
        return [{"x": part} for part in inputs["x"].split(size)]


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.processor, self.layer = Bytes(), torch.nn.Linear(3, 3)
        self.seen: list[tuple[list[str], list[int], float]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen.append((batch.ids, batch.labels.tolist(), batch.views["target"]["x"].sum().item()))
        return (self.layer(batch.views["query"]["x"]) - 1).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Kill(Callback):
    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            raise RuntimeError("killed")


def fit(folder: Path, train: list[Source], *callbacks: Callback, resume: str | None = None, **settings) -> Module:
    module = Module()
    trainer = Trainer(
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = EmbeddingData(train=train, batch_size=4, **settings)
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=False)
    return module


def two_sources(folder: Path) -> list[Source]:
    """24 records in three shards with one caption, 12 in one shard with three."""
    for shard in range(3):
        write_tar(folder / "one" / f"{shard}.tar", pairs(8, shard * 8))
    write_tar(folder / "two.tar", with_json(**{f"r{n}": {"c": [f"x{n}", f"yy{n}", f"zzz{n}"]} for n in range(12)}))
    return [WebDataset(str(folder / "one")), WebDataset(str(folder / "two.tar"), caption="json.c")]


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_restarted_sees_what_an_unbroken_run_sees(workers: int, tmp_path: Path) -> None:
    """A batch of four from two shards files that two workers open: order, captions and labels go on exactly."""
    whole = fit(tmp_path, two_sources(tmp_path))
    saver = ModelCheckpoint(tmp_path / "saved", save_last=True, every_n_train_steps=2)
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path, two_sources(tmp_path), Kill(12), saver, num_workers=workers)
    last = tmp_path / "saved" / "last.ckpt"
    done = torch.load(last, weights_only=False)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]
    rest = fit(tmp_path, two_sources(tmp_path), resume=str(last), num_workers=workers)
    assert 0 < done < len(whole.seen) == 18 and rest.seen == whole.seen[done:]


def test_weights_and_batches_of_one_source(tmp_path: Path) -> None:
    sources = two_sources(tmp_path)
    seen = fit(tmp_path, sources, weights={"one": 1, "two": 2}).seen
    names = [{name.split("/")[0] for name in ids} for ids, _, _ in seen]
    assert all(len(some) == 1 for some in names)
    assert sum(some == {"two"} for some in names) == 12 and len(names) == 18
    mixed = fit(tmp_path, sources, homogeneous=2).seen
    assert any(len({name.split("/")[0] for name in ids}) == 2 for ids, _, _ in mixed)


def test_more_workers_than_shards(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", pairs(16))
    seen = fit(tmp_path, [WebDataset(str(tmp_path / "s.tar"))], num_workers=3).seen
    assert len({name for ids, _, _ in seen[:4] for name in ids}) == 16


def test_less_than_a_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="source 's' has 3 samples, fewer than the 4"):
        fit(tmp_path, [source(tmp_path, pairs(3))])


def test_a_damaged_picture_stops_the_run_or_is_replaced(tmp_path: Path) -> None:
    files = {**pairs(12), "0005.png": picture(5, (50, 50))[:-40]}
    with pytest.raises(SampleError, match=r"^s/s/0005 \(query\): image is damaged"):
        fit(tmp_path, [source(tmp_path, files)])
    with pytest.warns(BadSampleWarning, match=r"replaced: s/s/0005 \(query\): image is damaged"):
        seen = fit(tmp_path, [source(tmp_path, files)], on_bad_sample="skip").seen
    assert len(seen) == 6 and not any("s/s/0005" in ids for ids, _, _ in seen)


def test_several_captions_are_rows_of_one_owner(tmp_path: Path) -> None:
    found = source(tmp_path, with_json(a={"c": ["x", "y"]}, b={"c": ["z"]}), caption="json.c", captions=2)
    sampler = HomogeneousBatches([found], 2)
    made = TrainingBatches([found], [], Bytes())(next(iter(sampler)))
    assert made.batch.owners["target"].tolist() == [0, 0, 1, 1] and made.batch.owners["query"].tolist() == [0, 1]


def test_a_recipe_can_name_it(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", pairs(8))
    parser = ArgumentParser()
    parser.add_class_arguments(EmbeddingData, "data")
    settings = {"shards": str(path), "views": ["image", "text"], "caption_filter": {"min_words": 2}}
    recipe = {"data": {"train": [{"class_path": "WebDataset", "init_args": settings}], "batch_size": 4}}
    (found,) = parser.instantiate(parser.parse_object(recipe)).data.train
    assert isinstance(found, WebDataset) and list(draw(found).views) == ["image", "text"]
    assert found.drawer.rules.filter == CaptionFilter(min_words=2)
