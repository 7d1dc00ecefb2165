"""Tar shards that the zoo writes: they give back what went in, whole or not at all, and always the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import warnings
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pair_files import giant_header, pairs, picture, write_tar
from PIL import Image

from zoo.cli import main
from zoo.data import shards as shards_module
from zoo.data.images import open_image
from zoo.data.pairs import Record
from zoo.data.shard_inputs import open_records
from zoo.data.shard_members import members_of
from zoo.data.shards import MANIFEST, write_shards
from zoo.data.sources.emoji import STYLES, read_emoji
from zoo.data.sources.folder import ImageFolder
from zoo.data.sources.table import TablePairs
from zoo.data.sources.webdataset import WebDataset
from zoo.errors import SampleError, ZooError


class Made:
    """Records in memory; `bad` can't be read. Counts how often each is read."""

    def __init__(self, count: int = 40, name: str = "made", bad: tuple[int, ...] = (), images=None) -> None:
        self.count, self.name, self.bad, self.images = count, name, bad, images or {}
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.count

    def record(self, index: int) -> Record:
        self.read.append(index)
        if index in self.bad:
            raise SampleError(f"{self.name}/{index}: no caption")
        captions = tuple(f"{self.name} {index} {n}" for n in range(1 + index % 3))
        return Record(f"{self.name}/{index}", self.images.get(index, picture(index)), captions, f"p{index // 2}")


def read_back(folder: Path, caption: str = "json.captions") -> list[tuple[object, tuple[str, ...]]]:
    source = WebDataset(str(folder), caption)
    records = [source.record(n) for n in range(len(source))]
    return [(record.image, record.captions) for record in records]


def digests(folder: Path) -> dict[str, str]:
    return {
        f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir() if f.suffix in (".tar", ".json")
    }


def test_records_come_back_in_order_from_shards_of_a_size(tmp_path: Path) -> None:
    sources = [Made(25, "a"), Made(15, "b")]
    written = write_shards(sources, tmp_path, shard_bytes=20_000)
    wanted = [
        (record.image, record.captions) for source in sources for record in map(source.record, range(len(source)))
    ]
    assert read_back(tmp_path) == wanted
    assert read_back(tmp_path, "txt") == [(image, captions[:1]) for image, captions in wanted]
    assert written.records == 40 and written.before == 0 and not written.left_out and len(written.shards) > 3
    files = sorted(tmp_path.glob("*.tar"))
    assert [f.name for f in files] == [f"shard-{n:06d}.tar" for n in range(len(files))]
    assert all(10_000 < f.stat().st_size <= 20_000 + 10_240 for f in files[:-1]), "tar pads to 10 KiB"
    assert not list(tmp_path.glob("*.partial"))


def test_the_picture_is_named(tmp_path: Path) -> None:
    write_shards([Made(4)], tmp_path)
    source = WebDataset(str(tmp_path), image_id="json.image_id")
    assert [source.record(n).image_id for n in range(4)] == ["p0", "p0", "p1", "p1"]
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        assert tar.getnames()[:3] == ["000000000.png", "000000000.txt", "000000000.json"]
        assert json.load(tar.extractfile("000000001.json"))["id"] == "made/1"


def test_equal_bytes_every_time(tmp_path: Path) -> None:
    for folder in "ab":
        write_shards([Made(20, bad=(3,))], tmp_path / folder, shard_bytes=20_000, image_size=2)
    assert digests(tmp_path / "a") == digests(tmp_path / "b") and len(digests(tmp_path / "a")) > 2
    with tarfile.open(tmp_path / "a" / "shard-000000.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {(0, 0, 0, "", "", 0o644)}


@pytest.mark.parametrize("damage", ["none", "cut", "gone"])
def test_a_stopped_run_goes_on_with_the_next_shard(damage: str, tmp_path: Path) -> None:
    write_shards([Made(30, bad=(2,)), Made(10, "b")], tmp_path / "whole", shard_bytes=20_000)

    class Stopping(Made):
        def record(self, index: int) -> Record:
            if index == 25:
                raise KeyboardInterrupt
            return super().record(index)

    out = tmp_path / "out"
    shards_module._AHEAD, ahead = 4, shards_module._AHEAD
    try:
        with pytest.raises(KeyboardInterrupt):
            write_shards([Stopping(30, bad=(2,)), Made(10, "b")], out, shard_bytes=20_000)
        assert not list(out.glob("*.partial"))
        finished = sorted(out.glob("*.tar"))
        assert len(finished) >= 2
        match damage:
            case "cut":
                finished[1].write_bytes(finished[1].read_bytes()[:-100])
            case "gone":
                finished[1].unlink()
        again, seen = Made(30, bad=(2,)), []
        written = write_shards([again, Made(10, "b")], out, shard_bytes=20_000, progress=seen.append)
    finally:
        shards_module._AHEAD = ahead
    assert written.before == (len(finished) if damage == "none" else 1)
    assert min(again.read) == written.shards[written.before].first > 0, "what is finished is not read again"
    assert sum(seen) == 40 and seen[0] == min(again.read)
    assert digests(out) == digests(tmp_path / "whole")
    assert written.left_out == ["made/2: no caption"], "also where an earlier run has left it out"


def test_a_run_that_is_killed_while_it_writes(tmp_path: Path) -> None:
    """What a kill can leave: a part of a shard, or a shard that the manifest does not know yet."""
    write_shards([Made(30)], tmp_path / "whole", shard_bytes=20_000)
    out = tmp_path / "out"
    write_shards([Made(30)], out, shard_bytes=20_000)
    manifest = json.loads((out / MANIFEST).read_text())
    manifest["shards"] = []
    (out / MANIFEST).write_text(json.dumps(manifest))
    (out / "shard-000001.tar.partial").write_bytes(b"part")
    assert write_shards([Made(30)], out, shard_bytes=20_000).before == 0
    assert digests(out) == digests(tmp_path / "whole") and not list(out.glob("*.partial"))


def test_a_finished_run_does_nothing(tmp_path: Path) -> None:
    write_shards([Made()], tmp_path)
    before = {f: f.stat().st_mtime_ns for f in tmp_path.glob("*.tar")}
    again = Made()
    written = write_shards([again], tmp_path)
    assert written.before == len(written.shards) and not again.read
    assert {f: f.stat().st_mtime_ns for f in tmp_path.glob("*.tar")} == before


@pytest.mark.parametrize(
    "other",
    [
        {"shard_bytes": 9999},
        {"image_size": 3},
        {"options": {"x": 1}},
        {"sources": [Made(3)]},
        {"sources": [Made(4, "n")]},
    ],
)
def test_shards_of_other_settings_are_not_mixed(other: dict, tmp_path: Path) -> None:
    write_shards([Made(4)], tmp_path)
    with pytest.raises(ZooError, match="holds shards of other settings"):
        write_shards(other.pop("sources", [Made(4)]), tmp_path, **other)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no flock")
def test_equal_runs_at_once_do_the_work_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards([Made()], tmp_path / "whole", shard_bytes=20_000)
    sources, written = [Made() for _ in range(3)], []
    begin = threading.Barrier(3)

    def run(source: Made) -> None:
        begin.wait()
        written.append(write_shards([source], tmp_path / "out", shard_bytes=20_000))

    threads = [threading.Thread(target=run, args=(source,)) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert sorted(len(source.read) for source in sources) == [0, 0, 40] and len(written) == 3
    assert capsys.readouterr().err.count("another process is writing into") == 2


def test_shards_of_unknown_origin_are_not_overwritten(tmp_path: Path) -> None:
    write_tar(tmp_path / "shard-000000.tar", pairs(2))
    with pytest.raises(ZooError, match=r"holds shards, but no shards\.json"):
        write_shards([Made(4)], tmp_path)
    (tmp_path / MANIFEST).write_text("{}")
    with pytest.raises(ZooError, match=r"shards\.json can't be read"):
        write_shards([Made(4)], tmp_path)


def test_damaged_pictures_are_counted_and_named(tmp_path: Path) -> None:
    images = {1: picture(1, (60, 60))[:-40], 3: b"", 5: giant_header(), 7: b"no picture", 8: tmp_path / "gone.png"}
    written = write_shards([Made(10, images=images)], tmp_path / "out")
    assert written.records == 5 and len(read_back(tmp_path / "out")) == 5
    wanted = (
        r"^made/1: image is damaged",
        r"^made/3: image is empty \(0 bytes\)$",
        r"^made/5: image (is too large|has 60000x60000)",
        r"^made/7: image is not a picture",
        r"^made/8: image .*gone.png can't be read: No such file",
    )
    assert len(written.left_out) == 5
    assert all(re.search(message, found) for message, found in zip(wanted, written.left_out, strict=True))
    with pytest.raises(ZooError, match=r"none of 3 records could be used; the first: made/0: no caption"):
        write_shards([Made(3, bad=(0, 1, 2))], tmp_path / "none")


def test_pictures_are_shrunk_to_a_shorter_side(tmp_path: Path) -> None:
    images = {0: picture(0, (100, 40)), 1: picture(1, (30, 20)), 2: picture(2, (40, 90), "JPEG")}
    write_shards([Made(3, images=images)], tmp_path, image_size=20)
    found = [open_image(image, "x") for image, _ in read_back(tmp_path)]
    assert [one.size for one in found] == [(50, 20), (30, 20), (20, 45)]
    assert read_back(tmp_path)[1][0] == images[1], "a small one stays as it is"
    for number in (0, 2):
        right = open_image(images[number], "x").getpixel((3, 3))
        assert all(abs(a - b) <= 3 for a, b in zip(found[number].getpixel((3, 3)), right, strict=True))


@pytest.mark.parametrize(
    ("kind", "mode", "ending"),
    [
        ("PNG", "RGBA", "png"),
        ("JPEG", "L", "jpg"),
        ("WEBP", "RGB", "webp"),
        ("GIF", "RGB", "png"),
        ("BMP", "RGB", "png"),
    ],
)
def test_formats(kind: str, mode: str, ending: str, tmp_path: Path) -> None:
    given = picture(3, (8, 8), kind, mode)
    write_shards([Made(1, images={0: given})], tmp_path)
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        assert f"000000000.{ending}" in tar.getnames()
        stored = tar.extractfile(f"000000000.{ending}").read()
    assert (stored == given) == (kind not in ("GIF", "BMP"))
    assert open_image(stored, "x").tobytes() == open_image(given, "x").tobytes()


@pytest.mark.parametrize("image_size", [None, 8])
def test_large_metadata_around_pixels_that_are_fine(image_size: int | None, tmp_path: Path) -> None:
    text = b"zTXt" + b"Comment\0\0" + zlib.compress(b"a" * 3_000_000)  # more than Pillow reads
    png = picture(0, (30, 20))
    odd = png[:33] + struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text)) + png[33:]
    write_shards([Made(2, images={0: odd, 1: png})], tmp_path, image_size=image_size)
    (first, _), (second, _) = read_back(tmp_path)
    assert first == (odd if image_size is None else second)


def test_a_jpeg_of_several_images_stays_as_it_is(tmp_path: Path) -> None:
    """As phones write them (MPO): a JPEG, with more behind it."""
    one, two = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    one.save(tmp_path / "several.jpg", "MPO", save_all=True, append_images=[two])
    write_shards([Made(1, images={0: tmp_path / "several.jpg"})], tmp_path / "out")
    assert read_back(tmp_path / "out")[0][0] == (tmp_path / "several.jpg").read_bytes()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux says what a process took at most")
def test_large_images_take_little_memory(tmp_path: Path) -> None:
    """A PNG of 36 million pixels with transparency is 144 MB in full, besides 108 MB as RGB."""
    Image.new("P", (6000, 6000), 3).save(tmp_path / "large.png", transparency=3)
    code = """
import sys
from pathlib import Path
from zoo.data.pairs import Record
from zoo.data.shard_members import members_of

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024

Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = peak()
for size in (None, 256):
    members_of(Record("x", Path(sys.argv[1]).read_bytes(), ("a",)), size)
print(peak() - before)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "large.png")], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) <= 100


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("side", [40, 6000])
def test_truncated_images_are_found_at_any_size(kind: str, side: int, tmp_path: Path) -> None:
    cut = picture(0, (side, side), kind)[:-200] if side > 100 else picture(0, (side, side), kind)[:-40]
    with pytest.raises(SampleError, match=r"^x: image is damaged"):
        members_of(Record("x", cut, ("a",)))


def test_a_record_larger_than_a_shard(tmp_path: Path) -> None:
    noise = Image.frombytes("RGB", (60, 60), random.Random(0).randbytes(10_800))
    noise.save(tmp_path / "noise.png")
    written = write_shards([Made(3, images={1: tmp_path / "noise.png"})], tmp_path / "out", shard_bytes=4000)
    assert [shard.records for shard in written.shards] == [1, 1, 1]
    assert read_back(tmp_path / "out")[1][0] == (tmp_path / "noise.png").read_bytes()


def test_a_place_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ZooError, match=r"file.* can't be written"):
        write_shards([Made(3)], tmp_path / "file" / "out")
    with pytest.raises(ZooError, match="too small"):
        write_shards([Made(3)], tmp_path / "out", shard_bytes=0)


# ---- what is read, and the command -----------------------------------------------------------------------------------


def folder_of_pictures(root: Path) -> Path:
    for number in range(4):
        file = root / f"class {number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(number))
        file.with_suffix(".txt").write_text(f"caption {number}\nanother {number}")
    return root


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    folder = folder_of_pictures(tmp_path / "pets")
    records = open_records(str(folder))
    write_shards([records], tmp_path / "out")
    original = ImageFolder(str(folder))
    right = [(f.read_bytes(), tuple(original.images.texts(f))) for f in original.images.files]
    assert read_back(tmp_path / "out") == right and len(right) == 4
    write_shards([open_records(str(folder), captions="folder")], tmp_path / "by-folder")
    assert [captions for _, captions in read_back(tmp_path / "by-folder")] == [("class 0",)] * 2 + [("class 1",)] * 2


def test_the_emoji(tmp_path: Path) -> None:
    write_shards([open_records("emoji:val")], tmp_path)
    right = [(one.drawings[style], (one.names["en"],)) for one in read_emoji("val") for style in STYLES]
    assert read_back(tmp_path) == right
    assert open_records("emoji").name == "emoji-train"


def test_samples_from_shards_equal_those_of_the_table(tmp_path: Path) -> None:
    captions = [[f"one {n}", f"two {n}"] for n in range(9)]
    content = pa.table({"image": [picture(n) for n in range(9)], "caption": captions})
    pq.write_table(content, tmp_path / "t.parquet")
    write_shards([open_records(str(tmp_path / "t.parquet"))], tmp_path / "out")
    tars = WebDataset(str(tmp_path / "out"), "json.captions", name="t")
    table = TablePairs(str(tmp_path / "t.parquet"))
    for number in range(9):
        one, two = (source.draw(number, random.Random(number)) for source in (tars, table))
        assert (one.views, one.label, one.source) == (two.views, two.label, two.source)


def test_shards_of_shards(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "a.tar", pairs(5))
    write_shards([open_records(str(tmp_path / "in"))], tmp_path / "out")
    assert read_back(tmp_path / "out") == read_back(tmp_path / "in", "txt")


def jsonl(path: Path, *records: object) -> Path:
    """With the pictures 0.png to 5.png beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in range(6):
        path.with_name(f"{number}.png").write_bytes(picture(number))
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), "utf-8")
    return path


def test_odd_lines_of_jsonl_are_named_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also captions of two kinds, which one column of a table could not hold."""
    path = jsonl(
        tmp_path / "p.jsonl",
        {"image": "0.png", "caption": "one on\u2028a line"},
        {"image": "1.png", "caption": ["two", "too"]},
        {"image": "2.png", "caption": "cut \ud83d"},
        '{"image"',
        {"image": "3.png", "caption": 5},
        {"image": "\ud83d.png", "caption": "four"},
        {"image": "a\0.png", "caption": "four"},
        {"caption": "five"},
    )
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    out = tmp_path / "out"
    assert main(["data", "shard", str(path), "--out", str(out)]) == 3
    assert "2 of 8 records" in (printed := capsys.readouterr().out) and "6 records could not be used" in printed
    assert [captions for _, captions in read_back(out)] == [("one on\u2028a line",), ("two", "too")]
    (tmp_path / "c.txt").write_text("one\ntwo\n")
    chosen = ["--concepts", str(tmp_path / "c.txt"), "--per-concept", "1", "--out", str(tmp_path / "chosen")]
    assert main(["data", "curate", str(path), *chosen]) == 0
    with pytest.raises(ZooError, match="has no column 'text' "):
        open_records(str(path), caption="text")


def test_lines_without_an_image_id_are_images_of_their_own(tmp_path: Path) -> None:
    rows = [{"image": f"{n}.png", "caption": "x", "key": key} for n, key in enumerate(["a", None, "a", None, ""])]
    write_shards([open_records(str(jsonl(tmp_path / "p.jsonl", *rows)), image_id="key")], tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        about = [json.load(tar.extractfile(f"{n:09d}.json")) for n in range(5)]
    assert [one.get("image_id") for one in about] == ["a", None, "a", None, None]


def test_several_jsonl_files_are_one_source(tmp_path: Path) -> None:
    for n in range(2):
        jsonl(tmp_path / "d [v1]" / f"{n}.JSONL", {"image": f"{n}.png", "caption": f"number {n}"})
    write_shards([open_records(str(tmp_path / "d [v1]" / "*.JSONL"))], tmp_path / "out")
    assert read_back(tmp_path / "out") == [(picture(n), (f"number {n}",)) for n in range(2)]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_file_name_that_is_not_utf_8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of_pictures(tmp_path / "pets")
    for ending, content in ((b"png", picture(9)), (b"txt", b"x")):
        with open(os.fsencode(folder) + b"/caf\xe9." + ending, "wb") as file:
            file.write(content)
    assert main(["data", "shard", str(folder), "--out", str(tmp_path / "out")]) == 3
    assert "1 records could not be used" in (out := capsys.readouterr().out) and "not valid Unicode" in out
    shards = tmp_path / os.fsdecode(b"caf\xe9.tar")
    write_tar(shards, pairs(2))
    assert len(WebDataset(str(shards))) == 2


@pytest.mark.parametrize(
    "kind", ["folder", "caption", "jsonl", "parquet", "paths", "struct", "tar", "saved", "curated"]
)
def test_a_source_that_changed_is_not_gone_on_with(kind: str, tmp_path: Path, monkeypatch) -> None:
    """A folder that was replaced, a file that a row names; or the same relative path from another folder."""
    changed = Path("s") / "pets" / "class 0" / ("0.txt" if kind == "caption" else "0.png")
    for place in ("a", "b"):
        folder = folder_of_pictures(tmp_path / place / "s" / "pets")
        names = [f"pets/class {n % 2}/{n}.png" for n in range(4)]
        rows = [{"image": name, "caption": name} for name in names]
        structs = pa.array(
            [{"bytes": None, "path": n} for n in names], pa.struct({"bytes": pa.binary(), "path": pa.string()})
        )
        tables = {
            "parquet": pa.table({"image": [picture(n) for n in range(4)], "caption": names}),
            "paths": pa.Table.from_pylist(rows),
            "struct": pa.table({"image": structs, "caption": names}),
        }
        for name, table in tables.items():
            pq.write_table(table, folder.parent / f"{name}.parquet")
        (folder.parent / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        write_tar(folder.parent / "t.tar", pairs(4))
        shutil.copytree(folder, folder.parent / "saved" / "pets")
        with pa.ipc.new_stream(str(folder.parent / "saved" / "0.arrow"), tables["struct"].schema) as writer:
            writer.write_table(tables["struct"])
        (folder.parent / "saved" / "state.json").write_text('{"_data_files": [{"filename": "0.arrow"}]}')
    source = {"jsonl": "s/p.jsonl", "tar": "s/t.tar", "saved": "s/saved", "curated": "s/p.jsonl"}.get(kind, "s/pets")
    source = f"s/{kind}.parquet" if kind in ("parquet", "paths", "struct") else source
    (tmp_path / "c.txt").write_text("pets\n")
    more = ["--concepts", str(tmp_path / "c.txt"), "--per-concept", "9"] if kind == "curated" else []
    command = ["data", "curate" if more else "shard", source, "--out", str(tmp_path / "out"), *more]

    monkeypatch.chdir(tmp_path / "a")
    assert main(command) == 0 == main(command)
    monkeypatch.chdir(tmp_path / "b")
    assert main(command) == 2
    monkeypatch.chdir(tmp_path / "a")
    if kind in ("parquet", "tar"):
        changed = Path(source)
    elif kind == "saved":
        changed = Path("s/saved") / changed.relative_to("s")
    os.utime(changed, ns=(1, 1))
    assert main(command) == 2
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    del manifest["settings"]["state of the files"]  # as earlier versions wrote it: shards stay valid
    (tmp_path / "out" / MANIFEST).write_text(json.dumps(manifest))
    assert main(command) == 0


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("gone", "'gone' can't be read: give a folder of pictures"),
        ("gone/{0..3}.parquet", "matches no file"),
        ("pipe:cat x.tar", "commands and addresses are never opened"),
        ("emoji:trian", "unknown emoji split 'trian'; did you mean 'train'"),
    ],
)
def test_places_that_hold_nothing(place: str, message: str) -> None:
    with pytest.raises(ZooError, match=message):
        open_records(place)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of_pictures(tmp_path / "pets")
    (folder / "class 0" / "0.png").write_bytes(b"nonsense")
    out = tmp_path / "out"
    assert main(["data", "shard", str(folder), "emoji:val", "--out", str(out), "--image-size", "32"]) == 3
    text = capsys.readouterr().out
    assert "681 of 682 records in 1 shards" in text and "1 records could not be used" in text
    assert "pets/class 0/0.png: image is not a picture" in text
    assert main(["data", "shard", str(folder), "emoji:val", "--out", str(out), "--image-size", "32"]) == 3
    assert "1 of 1 shards were there before" in capsys.readouterr().out
    assert main(["data", "shard", str(folder), "--out", str(out)]) == 2
    assert "holds shards of other settings" in capsys.readouterr().err
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = WebDataset(str(out), "json.captions")
    assert len(source) == 681 and source.record(0).captions == ("caption 2", "another 2")
    assert main(["data", "shard", "gone", "--out", str(out)]) == 2


def test_what_macos_packs_beside_every_file_is_no_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`tar` there writes `._0.png` (AppleDouble, of the Finder) beside `0.png`; another hidden member may be a record."""
    packed = [
        ("./._0.png", b"\0\5\x16\7" + bytes(200)),
        ("./0.png", picture(0)),
        ("./._0.txt", b"\0\5\x16\7"),
        ("./0.txt", b"red"),
    ]
    write_tar(tmp_path / "mac.tar", packed)
    assert main(["data", "shard", str(tmp_path / "mac.tar"), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "1 of 1 records" in printed.out and "not usable" not in printed.out
    assert "left out: 2 hidden members that hold no content" in printed.err
    write_tar(tmp_path / "other.tar", [*packed, (".1.png", picture(1))])
    assert main(["data", "shard", str(tmp_path / "other.tar"), "--out", str(tmp_path / "more")]) == 3
    assert "1 more members or records were not usable" in capsys.readouterr().out


def test_what_tars_leave_out_when_they_are_opened_is_told_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "some.tar", [("0.png", picture(0)), ("0.txt", b"red"), ("1.png", b""), ("1.txt", b"none")])
    assert main(["data", "shard", str(tmp_path / "some.tar"), "--out", str(tmp_path / "out")]) == 3
    printed = capsys.readouterr()
    assert "1 more members or records were not usable as files were opened" in printed.out
    assert "1 empty pictures (0 bytes) (some/some/1)" in printed.err
    (tmp_path / "concepts.txt").write_text("red\n", "utf-8")
    chosen = ["--concepts", str(tmp_path / "concepts.txt"), "--per-concept", "1", "--out", str(tmp_path / "chosen")]
    assert main(["data", "curate", str(tmp_path / "some.tar"), *chosen]) == 3
