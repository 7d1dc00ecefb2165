"""One file of latents: what comes back, and what is refused."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from zoo.data.latent_files import LatentError, LatentRows, LeftOutPart, map_rows, write_rows
from zoo.errors import ZooError


def rows(count: int = 5, dim: int = 3, dtype: str = "float32", tokens: bool = False) -> LatentRows:
    rng = np.random.default_rng(count)
    keys = rng.integers(0, 2**63, (count, 2)).astype(np.uint64)
    pooled = rng.standard_normal((count, dim)).astype(dtype)
    if not tokens:
        return LatentRows(keys, pooled)
    return LatentRows(keys, pooled, rng.standard_normal((count, 4, dim)).astype(dtype), np.arange(count) % 4 + 1)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("tokens", [False, True])
def test_what_is_written_comes_back(tmp_path: Path, dtype: str, tokens: bool) -> None:
    made, path = rows(dtype=dtype, tokens=tokens), tmp_path / "folder" / "part.safetensors"
    write_rows(path, made)
    found = map_rows(path)
    assert found.dtype == dtype
    for name in ("keys", "pooled", "tokens", "lengths"):
        expected, value = getattr(made, name), getattr(found, name)
        assert value is None if expected is None else np.array_equal(expected, value), name
    assert np.array_equal(load_file(path)["pooled"], made.pooled), "safetensors itself reads it"
    with pytest.raises(ValueError, match="read-only"):
        found.pooled[0, 0] = 1


def test_left_out_parts_travel_with_the_file(tmp_path: Path) -> None:
    left_out = (LeftOutPart(7, "ab", "damaged «picture»"),)
    write_rows(tmp_path / "a", LatentRows(rows().keys, rows().pooled, left_out=left_out))
    assert map_rows(tmp_path / "a").left_out == left_out


def test_mapping_reads_nothing_and_keeps_no_file_open(tmp_path: Path) -> None:
    write_rows(tmp_path / "a", rows(50_000, 128))
    before, files = _resident(), len(os.listdir("/proc/self/fd"))
    mapped = [map_rows(tmp_path / "a") for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) == files
    assert _resident() - before < 10e6  # one of them has 25 MB
    assert mapped[3].pooled[49_999, 5] == rows(50_000, 128).pooled[49_999, 5]


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "part"
    write_rows(path, rows(50))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(
        LatentError, match=rf"{path} is half-written .*zoo cache --folder {tmp_path.parents[1]} --remove"
    ):
        map_rows(path)


@pytest.mark.parametrize(
    "content",
    [b"x" * 40, struct.pack("<Q", 1 << 50) + b"{}", struct.pack("<Q", 2) + b"{}", struct.pack("<Q", 2) + b"[]"],
    ids=["no header", "giant header", "no tensor", "no mapping"],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "part").write_bytes(content)
    with pytest.raises(LatentError, match="half-written or no file of latents"):
        map_rows(tmp_path / "part")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LatentError, match=r"part is missing; remove its folder"):
        map_rows(tmp_path / "part")


def test_counts_that_do_not_match_are_refused(tmp_path: Path) -> None:
    save_file({"keys": rows(5).keys, "pooled": rows(4).pooled}, tmp_path / "part")
    with pytest.raises(LatentError, match=r"as many rows in each part: \{'keys': 5, 'pooled': 4\}"):
        map_rows(tmp_path / "part")
    save_file({"pooled": rows(4).pooled}, tmp_path / "part")
    with pytest.raises(LatentError, match="has no `keys`"):
        map_rows(tmp_path / "part")
    save_file({"keys": rows(4).keys.astype(np.int32), "pooled": rows(4).pooled}, tmp_path / "part")
    with pytest.raises(LatentError, match="holds `keys` as I32"):
        map_rows(tmp_path / "part")


def test_a_shape_that_lies_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "part"
    write_rows(path, rows(5))
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["pooled"]["shape"] = [5, 4]
    text = json.dumps(header).encode().ljust(length)
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    with pytest.raises(LatentError, match=r"holds 15 values of `pooled`, not \(5, 4\)"):
        map_rows(path)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ZooError, match=r"part can't be written"):
        write_rows(tmp_path / "file" / "part", rows())


def test_no_space_left_leaves_nothing_behind(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    path = tmp_path / "part"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZooError, match=rf"no space left to write {path}"):
        patch.setattr(Path, "open", lambda self, mode="r": open("/dev/full", mode))  # noqa: SIM115
        write_rows(path, rows())
    assert not path.exists()
