"""Weights: fetched once, used offline, refused when wrong, never unpickled; and a way out where they can't be had."""

from __future__ import annotations

import errno
import json
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_hub
import huggingface_hub
import pytest
import torch
from fake_hub import FakeHub, serving
from huggingface_hub import constants
from safetensors.torch import save, save_file
from torch import nn

from zoo import hub as hub_module
from zoo.errors import WeightsError
from zoo.weights import fetch_file, fetch_folder, load_strictly, missing_keys, read_state, sha256, verify, weight_files

TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(2)}


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("ZOO_WEIGHTS", raising=False)


def point_to(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Have huggingface_hub ask this server."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A reachable hub."""
    files = {"model.safetensors": save(TENSORS), "config.json": b"{}", "modeling.py": b"1/0", "model.bin": b"pickle"}
    with serving(FakeHub(files)) as running:
        point_to(monkeypatch, running.url)
        yield running


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens there."""
    point_to(monkeypatch, "http://127.0.0.1:9")


# ---- the hub ---------------------------------------------------------------------------------------------------------


def test_fetched_once_then_offline(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch_folder("hf:org/repo@main")
    assert torch.equal(read_state(folder)["weight"], TENSORS["weight"])
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]  # no code, no pickles
    asked = len(hub.requests)
    point_to(monkeypatch, "http://127.0.0.1:9")
    assert fetch_folder("hf:org/repo@main") == folder == fetch_folder("hf:org/repo")
    assert fetch_folder(f"hf:org/repo@{fake_hub.COMMIT}") == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch_folder("hf:org/repo") == folder
    assert len(hub.requests) == asked


def test_pickles_are_fetched_only_where_there_is_nothing_else(hub: FakeHub) -> None:
    hub.files = {"adapter_model.bin": b"x", "adapter_config.json": b"{}"}
    assert sorted(p.name for p in fetch_folder("hf:org/repo").iterdir()) == ["adapter_config.json", "adapter_model.bin"]


def test_one_file(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch_file("hf:org/repo@main:config.json")
    assert path.read_bytes() == b"{}"
    point_to(monkeypatch, "http://127.0.0.1:9")
    assert fetch_file("hf:org/repo@main:config.json") == path
    with pytest.raises(WeightsError, match=r"Two ways out[\s\S]*hf download org/repo tokenizer\.json --revision main"):
        fetch_file("hf:org/repo@main:tokenizer.json")
    with pytest.raises(WeightsError, match="names no file"):
        fetch_file("hf:org/repo")


def test_a_half_fetched_repository_is_not_taken_for_the_whole(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files["second.safetensors"] = save(TENSORS)
    folder = fetch_folder("hf:org/repo")
    (folder / "second.safetensors").unlink()
    point_to(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match="Three ways out"):
        fetch_folder("hf:org/repo")


INDEX = json.dumps(
    {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
).encode()
OTHER_INDEX = json.dumps({"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}).encode()


@pytest.mark.parametrize("index", [True, False], ids=["with its index", "without its index"])
@pytest.mark.parametrize("there", [1, 2])
def test_one_of_two_shards_is_not_the_whole(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, index: bool, there: int
) -> None:
    """As after `hf download REPO FILE`: the cache itself does not know what is missing."""
    hub.files = {"config.json": b"{}", "model-00001-of-00002.safetensors": save(TENSORS)}
    hub.files |= {"pytorch_model.bin.index.json": OTHER_INDEX}  # of files that are not fetched beside safetensors
    if there == 2:
        hub.files["model-00002-of-00002.safetensors"] = save({"other": torch.zeros(2)})
    if index:
        hub.files["model.safetensors.index.json"] = INDEX
    for name in hub.files:
        huggingface_hub.hf_hub_download("org/repo", name, revision="main")
    point_to(monkeypatch, "http://127.0.0.1:9")
    if there == 2:
        assert (fetch_folder("hf:org/repo") / "model-00002-of-00002.safetensors").is_file()
    else:
        with pytest.raises(WeightsError, match="Three ways out"):
            fetch_folder("hf:org/repo")


@pytest.mark.parametrize(
    "text", ["", "[]", '{"weight_map": ["a"]}', '{"weight_map": {"a": 3}}', '{"weight_map": ' + "[" * 3000]
)
def test_a_damaged_index_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(WeightsError, match=r"model\.safetensors\.index\.json is damaged"):
        weight_files(tmp_path)


def assert_ways_out(error: BaseException, name: str) -> None:
    """The message holds all three, ready to be copied."""
    text = str(error)
    for way in (
        "hf download org/repo --revision v1",
        str(Path(constants.HF_HUB_CACHE).parent),
        f'zoo.load("{name}", weights="FOLDER")',
        "ZOO_WEIGHTS=FOLDER",
        f'zoo.load("{name}", weights=False)',
    ):
        assert way in text, text


@pytest.mark.usefixtures("no_hub")
def test_unreachable_hub_says_the_three_ways_out() -> None:
    with pytest.raises(WeightsError) as caught:
        fetch_folder("hf:org/repo@v1", name="abc-qwen2vl", together=["hf:org/repo@v1", "hf:org/adapter@v2", "path:x"])
    assert_ways_out(caught.value, "abc-qwen2vl")
    assert "hf download org/adapter --revision v2" in str(caught.value)


def test_offline_mode_asks_nobody(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set") as caught:
        fetch_folder("hf:org/repo@v1", name="abc-qwen2vl")
    assert_ways_out(caught.value, "abc-qwen2vl")
    assert hub.requests == []


def test_a_silent_hub_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "TIMEOUT", 0.5)
    with serving(FakeHub({}, silent=True)) as silent:
        point_to(monkeypatch, silent.url)
        start = time.monotonic()
        with pytest.raises(WeightsError, match="Three ways out"):
            fetch_folder("hf:org/repo@v1")
        assert time.monotonic() - start < 10


def test_unknown_repository(hub: FakeHub) -> None:
    with pytest.raises(WeightsError, match=r"org/other.*can't be fetched[\s\S]*hf auth login"):
        fetch_folder("hf:org/other")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_cache_that_cannot_be_written(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(number, "no")

    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: real(*a, **k) if k.get("local_files_only") else refused()
    )
    with pytest.raises(WeightsError, match=r"can't be written.*set HF_HOME"):
        fetch_folder("hf:org/repo")


def test_no_space_in_the_cache(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **k: Any) -> None:
        raise (FileNotFoundError if k.get("local_files_only") else OSError)(errno.ENOSPC, "full")

    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: real(*a, **k) if k.get("local_files_only") else full()
    )
    with pytest.raises(WeightsError, match="no space left in"):
        fetch_folder("hf:org/repo")


@pytest.mark.usefixtures("no_hub")
def test_a_read_only_cache_serves(tmp_path: Path) -> None:
    """As `hf download` leaves it on another machine, copied here and write-protected."""
    snapshot = tmp_path / "hf" / "hub" / "models--org--repo" / "snapshots" / fake_hub.COMMIT
    snapshot.mkdir(parents=True)
    save_file(TENSORS, snapshot / "model.safetensors")
    for path in [*snapshot.parents, *snapshot.rglob("*")]:
        if tmp_path in path.parents:
            path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert set(read_state(fetch_folder(f"hf:org/repo@{fake_hub.COMMIT}"))) == set(TENSORS)
    finally:
        for path in sorted(snapshot.parents):
            if tmp_path in path.parents:
                path.chmod(0o755)
        snapshot.chmod(0o755)


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("layout", ["org/repo", "repo"])
def test_a_local_copy_instead_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    (tmp_path / "mine" / layout).mkdir(parents=True)
    assert fetch_folder("hf:org/repo@v1", local=tmp_path / "mine") == tmp_path / "mine" / layout
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path / "mine"))
    assert fetch_folder("hf:org/repo@v1") == tmp_path / "mine" / layout


@pytest.mark.parametrize("source", ["hf:repo", "hf:a/b/c", "hf:", "hf:a/b@"])
def test_addresses_that_are_none(source: str) -> None:
    with pytest.raises(WeightsError, match="no hub address"):
        fetch_folder(source)


@pytest.mark.parametrize("source", ["path:nowhere", "nowhere", "packaged:nothing"])
def test_places_that_are_none(source: str) -> None:
    with pytest.raises(WeightsError, match="there is no"):
        fetch_folder(source)


# ---- hashes ----------------------------------------------------------------------------------------------------------


def test_hashes(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    digest = sha256(tmp_path / "model.safetensors")
    verify(tmp_path, digest)
    verify(tmp_path, {"model.safetensors": f"sha256:{digest.upper()}"})
    with pytest.raises(WeightsError, match=r"model\.safetensors is damaged or another version"):
        verify(tmp_path, "0" * 64)
    with pytest.raises(WeightsError, match=r"'other\.safetensors' is missing"):
        verify(tmp_path, {"other.safetensors": digest})


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_layouts(tmp_path: Path) -> None:
    index = {"weight_map": {"weight": "model-1.safetensors", "bias": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"weight": TENSORS["weight"]}, tmp_path / "model-1.safetensors")
    with pytest.raises(WeightsError, match=r"model-2\.safetensors"):
        read_state(tmp_path)
    save_file({"bias": TENSORS["bias"]}, tmp_path / "model-2.safetensors")
    assert set(read_state(tmp_path)) == {"weight", "bias"}
    with pytest.raises(WeightsError, match=r"has no model\.safetensors"):
        weight_files(tmp_path / "empty")


def test_hidden_files_are_no_weights(tmp_path: Path) -> None:
    for name in ("only.safetensors", "._only.safetensors"):
        (tmp_path / name).write_bytes(save(TENSORS))
    assert weight_files(tmp_path) == [tmp_path / "only.safetensors"]


def test_an_index_cannot_point_outside(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    save_file(TENSORS, tmp_path / "secret.safetensors")
    (inside / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "../secret.safetensors"}}))
    with pytest.raises(WeightsError, match="there is no"):
        read_state(inside)


def test_torch_files_and_lightning_checkpoints(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    assert set(read_state(tmp_path)) == set(TENSORS)
    torch.save({"state_dict": TENSORS, "epoch": 3}, tmp_path / "last.ckpt")
    assert set(read_state(tmp_path / "last.ckpt")) == set(TENSORS)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="no table of tensors"):
        read_state(tmp_path / "list.pt")


class Payload:
    """Writes a file when unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.canary, "executed"))


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_model.bin", "model.bin", "last.ckpt"])
@pytest.mark.parametrize("wrapped", ["bare", "in a dict", "beside the state", "raw pickle"])
def test_no_payload_runs(tmp_path: Path, name: str, wrapped: str) -> None:
    canary = tmp_path / "canary"
    payload = Payload(canary)
    path = tmp_path / name
    if wrapped == "raw pickle":
        path.write_bytes(pickle.dumps({"weight": payload}))
    else:
        content = {
            "bare": payload,
            "in a dict": {"weight": payload},
            "beside the state": {"state_dict": {}, "x": payload},
        }
        torch.save(content[wrapped], path)
    with pytest.raises(WeightsError, match=name):
        read_state(path)
    assert not canary.exists()
    pickle.loads(pickle.dumps(payload))  # the payload would have worked
    assert canary.exists()


@pytest.mark.parametrize("size", [0, 7, 60, 200])
def test_truncated_files(tmp_path: Path, size: int) -> None:
    for name, content in (("model.safetensors", save(TENSORS)), ("pytorch_model.bin", _torch_bytes())):
        path = tmp_path / name
        path.write_bytes(content[:size] if size < 200 else content[:-1])
        with pytest.raises(WeightsError, match=name):
            read_state(path)


def test_a_huge_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((1 << 40).to_bytes(8, "little") + b"{" + b" " * 100)
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        read_state(path)


def _torch_bytes() -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save(TENSORS, buffer)
    return buffer.getvalue()


# ---- strict loading --------------------------------------------------------------------------------------------------


def test_strict() -> None:
    layer = nn.Linear(3, 2)
    load_strictly(layer, TENSORS, "here")
    assert torch.equal(layer.weight, TENSORS["weight"])
    with pytest.raises(
        WeightsError, match=r"here do not fit Linear; 1 unexpected: 'wieght' \(did you mean 'weight'\?\); 1 miss"
    ):
        load_strictly(layer, {"wieght": TENSORS["weight"], "bias": TENSORS["bias"]}, "here")
    with pytest.raises(WeightsError, match=r"1 missing: bias$"):
        load_strictly(layer, {"weight": TENSORS["weight"]}, "here")
    with pytest.raises(WeightsError, match=r"weight is \(3,\), the model has \(2, 3\)"):
        load_strictly(layer, {"weight": torch.zeros(3), "bias": TENSORS["bias"]}, "here")


def test_nothing_is_copied_when_something_does_not_fit() -> None:
    layer = nn.Linear(3, 2)
    before = layer.bias.clone()
    with pytest.raises(WeightsError):
        load_strictly(layer, {"bias": torch.full((2,), 9.0)}, "here")
    assert torch.equal(layer.bias, before)


def test_what_may_be_missing_and_tied_names() -> None:
    layer = nn.Linear(3, 2)
    load_strictly(layer, {"bias": TENSORS["bias"]}, "here", may_miss={"weight"})
    pair = nn.ModuleList([nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)])
    pair[1].weight = pair[0].weight
    assert missing_keys(pair, {"1.weight"}) == set()
    assert missing_keys(pair, set()) == {"0.weight", "1.weight"}


def test_digests_by_name_hold_for_a_file_that_is_given_by_itself(tmp_path: Path) -> None:
    """The card names `model.safetensors` beside other files; people give the file, perhaps under another name."""
    right = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"  # printf hello | sha256sum
    hashes = {"model.safetensors": right, "tokenizer.json": "0" * 64}
    for name in ("model.safetensors", "renamed.safetensors"):
        (tmp_path / name).write_text("hello")
        verify(tmp_path / name, hashes)
        (tmp_path / name).write_text("hell0")
        with pytest.raises(WeightsError, match="damaged or another version"):
            verify(tmp_path / name, hashes)
    shards = {"a-1.safetensors": right, "a-2.safetensors": right}
    with pytest.raises(WeightsError, match=r"no sha256 for 'model\.safetensors', only for a-1\.safetensors, a-2"):
        verify(tmp_path / "model.safetensors", shards)
