"""Folders of latents and looking them up: what is found, and what is refused and why."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo.data import latent_folder
from zoo.data.latent_files import LatentError, LatentRows, LeftOutPart, write_rows
from zoo.data.latent_folder import (
    EncoderKey,
    LatentFolder,
    folders_in,
    list_name,
    open_folder,
    read_manifest,
    row_ranges,
)
from zoo.data.latents import Latents
from zoo.data.parts import Keys, as_keys, part_key
from zoo.errors import ZooError

FACTS = {"weights": "w", "preparation": {"size": 8}, "dtype": "float32", "tokens": False}
KEY = EncoderKey("text", FACTS)


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_folder, "_ROWS", dict.fromkeys(latent_folder._ROWS, 4))


def keys_of(texts: list[str]) -> Keys:
    return as_keys(b"".join(part_key("text", text) for text in texts))


def values(text: str, dim: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(abs(hash(text)) % 2**32).standard_normal(dim).astype(np.float32)


def store(root: Path, texts: list[str], key: EncoderKey = KEY, dim: int = 3, **fields: Any) -> Path:
    """A complete folder of these texts."""
    keys = keys_of(texts)
    folder = LatentFolder(root / key.name / list_name(keys), keys, key)
    for number in folder.missing():
        start, stop = folder.ranges[number]
        pooled = np.stack([values(text, dim) for text in texts[start:stop]]).astype(key.made_of["dtype"])
        folder.write(number, LatentRows(keys[start:stop], pooled, **fields))
    folder.finish("texts")
    return folder.path


TEXTS = [f"text {n}" for n in range(10)]


def test_latents_are_found_by_content_in_any_order(tmp_path: Path) -> None:
    latents = Latents([store(tmp_path, TEXTS)])
    asked = [*TEXTS[::-1], "never seen", TEXTS[3], TEXTS[3]]
    found = latents.find(keys_of(asked))
    assert found[10] == -1 and (np.delete(found, 10) >= 0).all()
    expected = np.stack([values(text) for text in asked if text != "never seen"])
    assert np.array_equal(latents.pooled(np.delete(found, 10)), expected)
    assert len(latents) == 10 and latents.dim == 3


def test_several_lists_are_one_and_the_first_answers(tmp_path: Path) -> None:
    folders = [store(tmp_path, TEXTS[:6]), store(tmp_path, TEXTS[4:])]
    latents = Latents(folders)
    found = latents.find(keys_of(TEXTS))
    assert np.array_equal(latents.pooled(found), np.stack([values(text) for text in TEXTS]))
    shared = replace(open_folder(folders[1])[0], pooled=np.full((4, 3), 9, np.float32))
    (folders[1] / "part-00000.safetensors").unlink()
    write_rows(folders[1] / "part-00000.safetensors", shared)
    joined = Latents(folders, verify=False)
    assert np.array_equal(joined.pooled(joined.find(keys_of(TEXTS[4:6]))), np.stack([values(t) for t in TEXTS[4:6]]))
    assert (joined.pooled(joined.find(keys_of(TEXTS[6:7]))) == 9).all()


def test_half_precision_comes_back_as_float32(tmp_path: Path) -> None:
    latents = Latents([store(tmp_path, TEXTS, EncoderKey("text", FACTS | {"dtype": "float16"}))])
    pooled = latents.pooled(latents.find(keys_of(TEXTS[:1])))
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(pooled[0], values(TEXTS[0]), rtol=1e-3)


def test_tokens_are_padded_to_the_longest_that_is_asked_for(tmp_path: Path) -> None:
    keys = keys_of(TEXTS[:3])
    folder = LatentFolder(tmp_path / KEY.name / list_name(keys), keys, KEY)
    tokens = np.arange(3 * 4 * 2, dtype=np.float32).reshape(3, 4, 2)
    folder.write(0, LatentRows(keys, np.ones((3, 3), np.float32), tokens, np.array([2, 4, 1])))
    assert folder.finish("texts").tokens == 4
    latents = Latents([folder.path])
    found, mask = latents.tokens(latents.find(keys[[0, 2]]))
    assert mask.tolist() == [[1, 1], [1, 0]] and mask.dtype == np.int64
    assert (
        np.array_equal(found[0], tokens[0, :2]) and np.array_equal(found[1, 0], tokens[2, 0]) and not found[1, 1].any()
    )
    without = Latents([store(tmp_path, TEXTS[3:])])
    with pytest.raises(LatentError, match="keeps no tokens"):
        without.tokens(without.find(keys_of(TEXTS[3:4])))


def test_pickled_small_and_open_again(tmp_path: Path) -> None:
    latents = Latents([store(tmp_path, [f"t{n}" for n in range(400)], dim=200)])
    content = pickle.dumps(latents)
    assert len(content) < 1000
    again = pickle.loads(content)
    asked = keys_of(["t7", "t300"])
    assert np.array_equal(again.pooled(again.find(asked)), latents.pooled(latents.find(asked)))


def test_the_ranges_are_a_function_of_the_length_and_cover_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for count in (1, 255, 256, 257, 25_600, 25_601, 1_000_000):
        ranges = row_ranges(count, "image")
        assert (
            [r[0] for r in ranges[1:]] == [r[1] for r in ranges[:-1]] and ranges[0][0] == 0 and ranges[-1][1] == count
        )
        assert len(ranges) <= 100
    assert [row_ranges(3000, name)[0] for name in ("image", "text")] == [(0, 256), (0, 1024)]


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_another_encoder_is_refused_and_the_change_named(tmp_path: Path) -> None:
    folder = store(tmp_path, TEXTS)
    for change, said in (
        ({"weights": "other"}, "changed since: weights"),
        ({"preparation": {"size": 9}}, "changed since: preparation"),
        ({"weights": "other", "tokens": True}, "changed since: tokens and weights"),
    ):
        other = EncoderKey("text", FACTS | change)
        assert other.name != KEY.name
        with pytest.raises(LatentError, match=f"{folder} holds latents of another text encoder .{said}.*zoo cache"):
            Latents([folder], other)
    assert len(Latents([folder], KEY)) == 10


def test_a_changed_byte_is_found_by_the_digest(tmp_path: Path) -> None:
    folder = store(tmp_path, TEXTS)
    part = folder / "part-00001.safetensors"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    with pytest.raises(LatentError, match=r"part-00001.safetensors has changed: its digest"):
        Latents([folder])


def test_a_part_that_is_cut_off_or_gone_is_named(tmp_path: Path) -> None:
    folder = store(tmp_path, TEXTS)
    part = folder / "part-00002.safetensors"
    part.write_bytes(part.read_bytes()[:-4])
    with pytest.raises(
        LatentError, match=r"part-00002.safetensors has \d+ bytes, manifest.json says \d+: it is cut off"
    ):
        Latents([folder])
    part.unlink()
    with pytest.raises(LatentError, match=r"part-00002.safetensors is missing; remove its folder"):
        Latents([folder])


def test_counts_of_manifest_and_parts_must_agree(tmp_path: Path) -> None:
    folder = store(tmp_path, TEXTS)
    manifest = json.loads((folder / "manifest.json").read_text())
    changed = manifest | {"parts": [manifest["parts"][0] | {"rows": 3}, *manifest["parts"][1:]]}
    (folder / "manifest.json").write_text(json.dumps(changed))
    with pytest.raises(LatentError, match=r"part-00000.safetensors has 4 rows, manifest.json says 3"):
        Latents([folder])
    (folder / "manifest.json").write_text(json.dumps(manifest | {"rows": 11}))
    with pytest.raises(LatentError, match=r"manifest.json says 11 rows"):
        Latents([folder])


def test_unfinished_damaged_and_newer_folders_are_refused(tmp_path: Path) -> None:
    folder = store(tmp_path, TEXTS)
    manifest = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(manifest[:100])
    with pytest.raises(LatentError, match=r"manifest.json can't be read"):
        open_folder(folder)
    (folder / "manifest.json").write_text(json.dumps(json.loads(manifest) | {"format": 99}))
    with pytest.raises(LatentError, match=r"has format 99, this zoo reads 1; upgrade"):
        open_folder(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(LatentError, match=r"is not complete: it has no manifest.json; run `zoo cache` to the end"):
        open_folder(folder)


def test_two_contents_under_one_key_in_different_lists(tmp_path: Path) -> None:
    folders = []
    for second in (1, 2):
        keys = np.array([[5, second]], np.uint64)
        folder = LatentFolder(tmp_path / KEY.name / list_name(keys), keys, KEY)
        folder.write(0, LatentRows(keys, np.ones((1, 3), np.float32)))
        folder.finish("texts")
        folders.append(folder.path)
    with pytest.raises(LatentError, match=r"two contents have the key 0000000000000005"):
        Latents(folders)
    assert Latents(folders[:1]).find(np.array([[5, 2], [5, 1]], np.uint64)).tolist() == [-1, 0]


def test_lists_of_other_width_do_not_mix(tmp_path: Path) -> None:
    with pytest.raises(LatentError, match=r"widths \[3, 4\] do not belong together"):
        Latents([store(tmp_path, TEXTS[:5]), store(tmp_path, TEXTS[5:], dim=4)])


def test_a_list_of_which_nothing_is_usable(tmp_path: Path) -> None:
    keys = keys_of(TEXTS[:1])
    folder = LatentFolder(tmp_path / KEY.name / list_name(keys), keys, KEY)
    out = (LeftOutPart(0, keys[0].tobytes().hex(), "it is empty"),)
    folder.write(0, LatentRows(keys[:0], np.zeros((0, 0), np.float32), left_out=out))
    assert not folder.missing()
    with pytest.raises(ZooError, match="none of the 1 texts of 'texts' can be used; the first: it is empty"):
        folder.finish("texts")


def test_a_file_of_other_parts_or_precision_is_made_again(tmp_path: Path) -> None:
    keys = keys_of(TEXTS)
    folder = LatentFolder(tmp_path / "x", keys, KEY)
    folder.write(0, LatentRows(keys[1:5], np.ones((4, 3), np.float32)))
    folder.write(1, LatentRows(keys[4:8], np.ones((4, 3), np.float16)))
    folder.write(2, LatentRows(keys[8:], np.ones((2, 3), np.float32)))
    assert folder.missing() == [0, 1]


def test_what_is_there_is_not_replaced(tmp_path: Path) -> None:
    keys = keys_of(TEXTS[:4])
    folder = LatentFolder(tmp_path / "x", keys, KEY)
    for value in (1, 2):  # the second process comes later: its bits may differ
        folder.write(0, LatentRows(keys, np.full((4, 3), value, np.float32)))
    folder.finish("texts")
    assert (open_folder(folder.path)[0].pooled == 1).all()


def test_only_folders_of_latents_are_listed(tmp_path: Path) -> None:
    folder = store(tmp_path, TEXTS)
    for name in ("text-photos/2024", "notes-0123456789abcdef/0123456789abcdef"):
        (tmp_path / name).mkdir(parents=True)
    assert list(folders_in(tmp_path)) == [folder]
    assert read_manifest(folder).source == "texts"
