"""The tar reader, against Python's own `tarfile`, and on tar files made to do harm."""

from __future__ import annotations

import bz2
import gzip
import io
import multiprocessing
import os
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from pair_files import member, pairs, picture, write_tar

from zoo.data import tar_index
from zoo.data.shard_files import OPEN_FILES, ShardFiles
from zoo.data.tar_headers import DamagedTarError, Member, read_members
from zoo.data.tar_index import index_shard, index_shards, split_name
from zoo.errors import SampleError, ZooError

NAMES = [
    "a.txt",
    "./b.jpg",
    "folder/c d.jpg",
    f"{'deep/' * 25}e.jpg",
    f"{'x' * 90}.jpg",
    f"long/{'y' * 180}.jpg",
    "straße/日本.png",
    " leading and trailing .txt ",
]


def names(path: Path) -> list[str]:
    return [found.name for found in read_members(path)]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_finds(form: int, tmp_path: Path) -> None:
    wanted = [n for n in NAMES if form != tarfile.USTAR_FORMAT or len(n) < 100]
    files = {name: os.urandom(number * 300) for number, name in enumerate(wanted)}
    path = write_tar(tmp_path / "a.tar", files, form)
    with tarfile.open(path) as tar:
        right = [(m.name, m.offset_data, m.size) for m in tar]
    assert [(m.name, m.offset, m.size) for m in read_members(path)] == right
    content = path.read_bytes()
    assert {m.name: content[m.offset : m.offset + m.size] for m in read_members(path)} == files


def test_sizes_in_binary_and_in_extended_headers(tmp_path: Path) -> None:
    """Sizes from 8 GiB on are written otherwise; a sparse file lets us read such headers without the bytes."""
    size = (8 << 30) + 7
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        info = member("big.bin")
        info.size = size
        path = tmp_path / f"{form}.tar"
        with path.open("wb") as file:
            file.write(info.tobuf(form))
            file.truncate(file.tell() + size + 505)
            file.seek(0, 2)
            file.write(member("after.txt", b"x").tobuf() + b"x" + bytes(511 + 1024))
        assert [(m.name, m.size) for m in read_members(path)] == [("big.bin", size), ("after.txt", 1)]


def test_joined_archives_are_read_to_the_end(tmp_path: Path) -> None:
    one, two = (write_tar(tmp_path / f"{n}.tar", {f"{n}.txt": b"x"}) for n in (1, 2))
    both = tmp_path / "both.tar"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    assert names(both) == ["1.txt", "2.txt"]


@pytest.mark.parametrize("cut", [512, 513, 700, 1023])
def test_a_cut_off_member(cut: int, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.txt": b"", "b.bin": bytes(600)})
    path.write_bytes(path.read_bytes()[: 512 + cut])
    found: list[Member] = []
    with pytest.raises(DamagedTarError, match=r"'b.bin' is cut off: 600 bytes from 1,024 on, the file ends at"):
        for one in read_members(path):
            found.append(one)
    assert [m.name for m in found] == ["a.txt"]


@pytest.mark.parametrize("keep", [1024, 1024 + 513, 2048])
def test_a_file_that_ends_between_members_is_cut_off(keep: int, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.txt": b"x", "b.txt": b"y", "c.txt": b"z"})
    path.write_bytes(path.read_bytes()[:keep])
    found: list[Member] = []
    with pytest.raises(DamagedTarError, match=f"ends at {keep:,} without the empty blocks"):
        for one in read_members(path):
            found.append(one)
    assert len(found) == -(-keep // 1024)
    assert index_shard(path).left_out.counts == {"damaged ends": 1}


def test_a_cut_off_header_and_a_damaged_one(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", {"a.txt": b"x", "b.txt": b"y"}).read_bytes()
    for content in (whole[: 1024 + 300], whole[:1024] + b"\xff" + whole[1025:]):
        (tmp_path / "b.tar").write_bytes(content)
        with pytest.raises(DamagedTarError, match="no valid header at byte 1,024"):
            names(tmp_path / "b.tar")


def signed(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize("size", [b"\xff" * 12, b"99999999999\0", b"-0000000001\0", b"\x80" + b"\xff" * 11])
def test_sizes_that_are_none(size: bytes, tmp_path: Path) -> None:
    header = bytearray(member("a.txt").tobuf())
    header[124:136] = size
    (tmp_path / "a.tar").write_bytes(signed(header) + bytes(1024))
    with pytest.raises(DamagedTarError, match=r"no valid size|cut off"):
        names(tmp_path / "a.tar")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"99 path=x\n", "not readable"),
        (b"0 path=x\n", "not readable"),
        (b"-1 path=x\n", "not readable"),
        (b"nonsense", "not readable"),
        (b"9" * 5000 + b" path=x\n", "not readable"),
        (b"0" * 5000 + b"9 path=x\n", "not readable"),
        (b"20 size=-1000000000\n", "no valid size"),
        (b"30 size=99999999999999999999\n", "not readable|no valid size"),
    ],
)
def test_hostile_extended_headers_end_at_once(record: bytes, message: str, tmp_path: Path) -> None:
    extended = member("x", record, tarfile.XHDTYPE).tobuf() + record + bytes(-len(record) % 512)
    (tmp_path / "a.tar").write_bytes(extended + member("a.txt").tobuf() + bytes(1024))
    with pytest.raises(DamagedTarError, match=message):
        names(tmp_path / "a.tar")


def test_an_extended_header_of_many_entries_is_read_in_one_go(tmp_path: Path) -> None:
    """A mebibyte of the shortest entries took half a minute when each copied the rest."""
    record = b"5 a=\n" * ((1 << 20) // 5 - 3) + b"14 path=b.txt\n"
    extended = member("x", record, tarfile.XHDTYPE).tobuf() + record + bytes(-len(record) % 512)
    (tmp_path / "a.tar").write_bytes(extended + member("a.txt").tobuf() + bytes(1024))
    begin = time.monotonic()
    assert names(tmp_path / "a.tar") == ["b.txt"]
    assert time.monotonic() - begin < 5


def test_an_extended_header_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    info = member("x", b"", tarfile.GNUTYPE_LONGNAME)
    info.size = 1 << 30
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(info.tobuf())
        file.truncate(512 + (1 << 30))
    with pytest.raises(DamagedTarError, match="claims 1,073,741,824 bytes"):
        names(tmp_path / "a.tar")


def test_zeros_without_end_are_not_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.txt": b"x"})
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # sparse: takes no room
    start = time.monotonic()
    with pytest.raises(DamagedTarError, match="only zeros from byte 1,024 on"):
        names(path)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no tar file"),
        (b"hello" * 300, "is no tar file"),
        (gzip.compress(bytes(9999), mtime=0), r"is compressed \(gzip\).*unpack it"),
        (bz2.compress(bytes(9999)), r"is compressed \(bzip2\)"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), r"is compressed \(zstd\)"),
    ],
)
def test_what_is_no_tar_file(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ZooError, match=message):
        index_shard(tmp_path / "a.tar")


def test_hostile_members_are_counted_and_never_used(tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    entries = [
        *pairs(1).items(),
        ("../outside.txt", b"x"),
        (f"{outside}", b"x"),
        ("a/../../outside.txt", b"x"),
        member("l.png", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        member("h.png", kind=tarfile.LNKTYPE, link="0000.png"),
        member("d.png", kind=tarfile.CHRTYPE),
        member("f.png", kind=tarfile.FIFOTYPE),
        member("folder", kind=tarfile.DIRTYPE),
        ("run.pyd", b"x"),
        ("run.pickle", b"x"),
        ("run.model.pth", b"x"),
        ("._0000.png", b"x"),
        (".0000.png", b"x"),
        ("README", b"x"),
        ("0000.png", b"another"),
    ]
    index = index_shard(write_tar(tmp_path / "in" / "a.tar", entries))
    assert index.left_out.counts == {
        "members with a path that leads outside": 3,
        "members that are no plain files (link)": 2,
        "members that are no plain files (device)": 2,
        "members that are pickles": 3,
        "hidden members that hold no content": 1,
        "hidden members": 1,
        "members without key and ending": 1,
        "members of a name that was there before": 1,
    }
    assert [index.key(0)] == ["0000"] and len(index.key_ends) == 1
    assert sorted(os.listdir(tmp_path)) == ["in"] and sorted(os.listdir(tmp_path / "in")) == [
        "a.tar",
        "a.tar.index.npz",
    ]
    content = (tmp_path / "in" / "a.tar").read_bytes()
    file = index.files("png")[0]
    assert content[index.offset[file] :][: index.size[file]] == picture(0), "the first of equal names counts"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.jpg", ("a", "jpg")),
        ("./a.JPG", ("a", "jpg")),
        ("s/t.1/a.b.seg.png", ("s/t.1/a", "b.seg.png")),
        ("a", ("", "")),
        ("s/.jpg", ("", "")),
        ("a.", ("", "")),
    ],
)
def test_names_are_split_as_webdataset_does(name: str, parts: tuple[str, str]) -> None:
    assert split_name(name) == parts


def test_records_need_not_lie_together(tmp_path: Path) -> None:
    files = {"a.png": b"1", "b.png": b"2", "b.txt": b"33", "a.txt": b"4"}
    index = index_shard(write_tar(tmp_path / "a.tar", files))
    assert [index.key(k) for k in range(2)] == ["a", "b"]
    assert index.size[index.files("txt")].tolist() == [1, 2] and index.files("jpg").tolist() == [-1, -1]


def same(one, two) -> bool:
    fields = ("key_ends", "record", "ending", "offset", "size")
    return (one.keys, one.endings, one.left_out.as_json()) == (two.keys, two.endings, two.left_out.as_json()) and all(
        np.array_equal(getattr(one, name), getattr(two, name)) for name in fields
    )


def test_the_index_is_kept_until_the_shard_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "a.tar", [*pairs(3).items(), ("../x.txt", b""), member("s.png", kind=tarfile.SYMTYPE)])
    first = index_shard(path)
    with monkeypatch.context() as patch:
        patch.setattr(tar_index, "_scan", None)  # would fail if called
        assert same(index_shard(path), first)
    write_tar(path, pairs(4))
    assert len(index_shard(path).key_ends) == 4


@pytest.mark.parametrize("how", ["garbage", "empty", "pickle", "beyond", "keys", "other"])
def test_a_kept_index_that_is_no_good_is_made_again(how: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", pairs(3))
    right, kept = index_shard(path), tmp_path / "a.tar.index.npz"
    arrays = dict(np.load(kept))
    match how:
        case "garbage":
            kept.write_bytes(b"PK\3\4 nonsense")
        case "empty":
            kept.write_bytes(b"")
        case "pickle":
            np.savez(kept, **arrays | {"keys": np.array([object()], object)})
        case "beyond":
            np.savez(kept, **arrays | {"offset": arrays["offset"] + 10**9})
        case "keys":
            np.savez(kept, **arrays | {"record": arrays["record"] + 7})
        case "other":
            np.savez(kept, x=np.zeros(1))
    assert same(index_shard(path), right)
    assert same(index_shard(path), right)


def test_a_folder_that_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "shards" / "a.tar", pairs(2))
    cache = tmp_path / "cache"
    monkeypatch.setenv("ZOO_CACHE", str(cache))
    beside = path.with_name("a.tar.index.npz")
    beside.mkdir()  # holds for the administrator too: a file can't take the place of a folder
    first = index_shard(path)
    assert [file.suffix for file in (cache / "shards").iterdir()] == [".npz"]
    assert [file.name for file in path.parent.iterdir() if "partial" in file.name] == []
    monkeypatch.setattr(tar_index, "_scan", None)
    assert same(index_shard(path), first)


def test_nowhere_to_keep_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "a.tar", pairs(2))
    path.with_name("a.tar.index.npz").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "file"))
    assert len(index_shard(path).key_ends) == 2


def test_many_shards_are_indexed_in_order(tmp_path: Path) -> None:
    paths = [write_tar(tmp_path / f"{n:02d}.tar", pairs(1, n)) for n in range(20)]
    assert [index.key(0) for index in index_shards(paths)] == [f"{n:04d}" for n in range(20)]


def test_a_hundred_thousand_members(tmp_path: Path) -> None:
    header = [bytearray(member(f"{n:06d}.txt", b"x").tobuf()) for n in range(3)]
    assert all(len(block) == 512 for block in header)
    content = io.BytesIO()
    for number in range(100_000):
        content.write(member(f"{number:06d}.txt", b"x").tobuf() + b"x" + bytes(511))
    (tmp_path / "a.tar").write_bytes(content.getvalue() + bytes(1024))
    start = time.monotonic()
    index = index_shard(tmp_path / "a.tar")
    seconds = time.monotonic() - start
    assert len(index.key_ends) == 100_000 and index.key(99_999) == "099999"
    assert seconds < 30


def test_shards_are_closed_and_opened_again(tmp_path: Path) -> None:
    paths = [write_tar(tmp_path / f"{n:03d}.tar", {"a.txt": str(n).encode()}) for n in range(OPEN_FILES + 5)]
    files = ShardFiles(index_shards(paths))
    for _ in range(2):
        assert [files.read_text(n, 0, "w") for n in range(len(paths))] == [str(n) for n in range(len(paths))]
    assert len(files._open) == OPEN_FILES


def test_a_shard_that_changes_during_a_run(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.txt": b"one"})
    files = ShardFiles([index_shard(path)])
    write_tar(path, {"b.txt": b"two"})
    os.utime(path, ns=(1, 1))
    with pytest.raises(SampleError, match=r"^w: .*a.tar was changed since it was indexed"):
        files.read(0, 0, "w")
    path.unlink()
    with pytest.raises(SampleError, match=r"^w can't be read from .*a.tar: No such file"):
        files.read(0, 0, "w")


def _read(files: ShardFiles, number: int, result) -> None:
    result.value = int(files.read_text(0, number, "w"))


def test_forked_processes_do_not_disturb_one_another(tmp_path: Path) -> None:
    """A process that went on with the file its parent has open would move the parent's position in it."""
    path = write_tar(tmp_path / "a.tar", {f"{n}.txt": f"{n:0200d}".encode() for n in range(20)})
    files = ShardFiles([index_shard(path)])
    assert int(files.read_text(0, 3, "w")) == 3  # opens the shard
    position = files._open[0].tell()
    fork = multiprocessing.get_context("fork")
    result = fork.Value("i", -1)
    worker = fork.Process(target=_read, args=(files, 17, result))
    worker.start()
    worker.join(60)
    assert result.value == 17
    assert files._open[0].tell() == position and int(files.read_text(0, 4, "w")) == 4
