"""`embed.py` reads the lines and images that the zoo reads, leaves out what can't be used, and trusts no changed file."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.errors import SampleError, ZooError
from zoo.export.folder import import_runtime
from zoo.vectors.rows import open_rows
from zoo.vectors.run import embed_rows


@pytest.fixture(scope="module")
def runtime(exported: Any) -> ModuleType:
    return import_runtime(exported.folder)


@pytest.fixture(scope="module")
def model(runtime: ModuleType, exported: Any) -> Any:
    return runtime.Embedder(exported.folder, threads=1)


def png(colour: str = "red", **options: Any) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (20, 30), colour).save(content, "PNG", **options)
    return content.getvalue()


# ---- lines -----------------------------------------------------------------------------------------------------------

LINES = {
    "byte order mark, carriage returns": b'\xef\xbb\xbf{"text":"a dog"}\r\n\r\n{"text":"a cat"}\r\n',
    "empty image": b'{"text":"a dog","image":""}\n{"text":"a cat","image":null}\n',
    "id": b'{"id":"7","text":"a dog"}\n{"id":8,"text":"a cat"}\n{"id":null,"text":"red"}',
    "line separators in a text": '{"text":"a dog\u2028on a\u0085sofa"}\n{"text":"a cat"}\n'.encode(),
    "blank lines": b'\n  \n{"text":"a dog"}\n\n{"text":"a cat"}\n\n',
    "a lone surrogate": b'{"id":"1","text":"a dog"}\n{"id":"2","text":"cut \\ud83d"}\n{"id":"3","text":"a cat"}\n',
    "a surrogate in an id": b'{"id":"\\ud83d","text":"a dog"}\n{"id":"3","text":"a cat"}\n',
    "no JSON": b'{"text":"a dog"}\n{"text"\n["a"]\n{"text":"a cat"}\n',
    "no UTF-8": b'{"text":"a dog"}\n{"text":"caf\xe9"}\n{"text":"a cat"}\n',
    "deep": b'{"text":"a dog"}\n' + b"[" * 100_000 + b"\n",
    "a number for an image": b'{"text":"a dog"}\n{"image":5}\n',
    "an image beside the file": b'{"image":"red.png"}\n{"image":"gone.png"}\n{"image":["red.png",""],"text":"a dog"}\n',
    "an address": b'{"image":"https://example.org/a.png"}\n{"text":"a dog"}\n',
    "an image in the line": b'{"image":"data:image/png;base64,' + base64.b64encode(png()) + b'"}\n{"text":"a dog"}\n',
    "a number for a text": b'{"text":5}\n{"text":"a dog"}\n',
    "empty text": b'{"text":""}\n{"text":"a dog"}\n',
}


@pytest.mark.parametrize("name", LINES)
def test_the_same_lines_as_zoo_embed(
    name: str, runtime: ModuleType, exported: Any, embedder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "x.jsonl", tmp_path / "v.npy"
    file.write_bytes(LINES[name])
    (tmp_path / "red.png").write_bytes(png())
    expected: dict[str, Any] = {}
    rows = open_rows(file)
    for _, shard in rows.shards(100, [0]):
        for row in shard:
            try:
                assert not row.error
                expected[row.id] = embedder.encode(row.item)
            except (AssertionError, ValueError):
                continue
    code = runtime.main([str(exported.folder), "--jsonl", str(file), "--out", str(out)])
    found, ids = (
        np.load(out),
        [json.loads(line)["id"] for line in (tmp_path / "v.npy.ids.jsonl").read_text().splitlines()],
    )
    assert ids == list(expected) and len(found) == len(ids)
    assert np.abs(found - np.stack(list(expected.values()))).max() <= 1e-4
    left_out = len(rows) - len(ids)
    error = capsys.readouterr().err
    assert code == (3 if left_out else 0)
    assert (f"{left_out} of {len(rows)} items could not be used" in error) == bool(left_out)
    assert error.count(f"{file}, line ") == left_out and "Traceback" not in error


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'[\n{"text":"a"},\n{"text":"b"}\n]\n', "is one JSON array, not JSONL"),
        (b'[{"text":"a"},{"text":"b"}]', "is one JSON array, not JSONL"),
        (b'{"text":""}\n{"image":"gone.png"}\n', "none of the 2 "),
    ],
)
def test_what_zoo_embed_refuses_as_a_whole_is_refused(
    content: bytes, told: str, runtime: ModuleType, exported: Any, embedder: Any, tmp_path: Path, capsys: Any
) -> None:
    file, out = tmp_path / "x.jsonl", tmp_path / "v.npy"
    file.write_bytes(content)
    with pytest.raises(ZooError, match=told):
        embed_rows(embedder, open_rows(file), tmp_path / "zoo.npy")
    assert runtime.main([str(exported.folder), "--jsonl", str(file), "--out", str(out)]) == 2
    assert told in capsys.readouterr().err and not out.exists()


def test_what_else_a_line_holds_does_not_matter(model: Any, runtime: ModuleType, exported: Any, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"label": 3, "text": "a dog", "source": {"a": 1}}\n')
    assert (
        runtime.main([str(exported.folder), "--jsonl", str(tmp_path / "x.jsonl"), "--out", str(tmp_path / "v.npy")])
        == 0
    )
    assert np.abs(np.load(tmp_path / "v.npy")[0] - model.encode("a dog")).max() <= 1e-6


# ---- images ----------------------------------------------------------------------------------------------------------


def test_an_image_may_be_given_in_every_way(model: Any, embedder: Any, tmp_path: Path) -> None:
    content, path = png("green"), tmp_path / "green.png"
    path.write_bytes(content)
    pixels = np.asarray(Image.open(path))
    ways: list[Callable[[], Any]] = [
        lambda: path,
        lambda: content,
        lambda: bytearray(content),
        lambda: memoryview(content),
        lambda: io.BytesIO(content),
        lambda: path.open("rb"),
        lambda: pixels,
        lambda: torch.from_numpy(pixels.copy()).permute(2, 0, 1),
        lambda: {"image": str(path)},
        lambda: {"image": "data:image/png;base64," + base64.b64encode(content).decode()},
        lambda: {"image": base64.b64encode(content).decode()},
        lambda: {"images": [io.BytesIO(content)]},
    ]
    expected = embedder.encode(Image.open(path))
    for way in ways:
        for encode in (model.encode, embedder.encode):
            found = encode(way())
            assert found.shape == expected.shape and np.abs(found - expected).max() <= 1e-4
            assert encode([way(), "a cat"]).shape == (2, len(expected))


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (
            {"image": "s3://bucket/a.png"},
            "image s3://bucket/a.png is an address, and nothing is fetched from addresses",
        ),
        (Path("https://example.org/a.png"), "is an address"),
        ({"image": "data:image/png;base64,%%%"}, "is no valid data: address"),
        (io.StringIO("text"), "is a file opened as text; open it with 'rb'"),
        (io.BytesIO(b""), "is empty"),
        (np.zeros((4, 4, 3)), "is an array of float64, not of uint8"),
        (np.zeros((5, 4, 7), np.uint8), r"is an array of shape \(5, 4, 7\)"),
        ({"image": 5}, "image is a int, not a path"),
    ],
)
def test_what_is_no_image_is_named_in_one_line(
    thing: Any, message: str, model: Any, embedder: Any, runtime: ModuleType
) -> None:
    for encode in (model.encode, embedder.encode):
        with pytest.raises(Exception, match=rf"item 1\b.*{message}") as caught:
            encode(["a cat", thing])
        assert type(caught.value).__name__ in ("EmbedError", "SampleError") and "\n" not in str(caught.value)


# ---- what is asked for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thing", [5, None, [5], 2.5])
def test_what_is_nothing_to_embed_is_named(thing: Any, model: Any, runtime: ModuleType, embedder: Any) -> None:
    for refused, encode in ((runtime.EmbedError, model.encode), (SampleError, embedder.encode)):
        with pytest.raises(refused, match=r"^item 0: a \w+ can't be embedded; give a"):
            encode(thing)


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_size_below_one_is_refused(size: int, model: Any, runtime: ModuleType) -> None:
    with pytest.raises(runtime.EmbedError, match=f"batch_size={size}: give 1 or more"):
        model.encode(["a cat"], batch_size=size)


def test_a_provider_that_is_not_there_is_refused(runtime: ModuleType, exported: Any) -> None:
    with pytest.raises(runtime.EmbedError, match=r"onnxruntime has no 'TensorrtExecutionProvider' here, only .*CPU"):
        runtime.Embedder(exported.folder, providers=["TensorrtExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(runtime.EmbedError, match="no 'NoSuchProvider' here"):
        runtime.Embedder(exported.folder, providers=[("NoSuchProvider", {"device_id": 0})])


def test_a_provider_that_does_not_start_is_refused(runtime: ModuleType, exported: Any, monkeypatch: Any) -> None:
    """ONNX Runtime only warns where a library of it is missing, and takes the processor."""
    monkeypatch.setattr(
        "onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    model = runtime.Embedder(exported.folder, providers=["CUDAExecutionProvider"])
    with pytest.raises(
        runtime.EmbedError, match=r"could not start CUDAExecutionProvider and would use|can't be loaded"
    ):
        model.encode("a cat")


# ---- the folder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["language.onnx.data", "language.onnx", "tokenizer.json"])
def test_a_changed_byte_is_an_error_when_the_file_is_used(file: str, runtime: ModuleType, copied: Path) -> None:
    content = bytearray((copied / file).read_bytes())
    content[len(content) // 2] ^= 0x40
    (copied / file).write_bytes(content)
    with pytest.raises(
        runtime.EmbedError, match=rf"{file} was changed after the export; copy or export the folder again"
    ):
        runtime.Embedder(copied).encode("a cat")


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["processor"].update(tokenizer="../tokenizer.json"),
        lambda m: m["graphs"]["language"].update(file="../language.onnx"),
        lambda m: m.update(golden="../items.json"),
        lambda m: m.update(images=["../image_sources.py", "image_arrays.py"]),
        lambda m: m["files"].update({"../tokenizer.json": {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}}),
        lambda m: m["files"].update({"/etc/hostname": {"bytes": 1, "sha256": "0"}}),
    ],
)
def test_files_outside_the_folder_are_not_followed(change: Any, runtime: ModuleType, copied: Path) -> None:
    for name in ("tokenizer.json", "language.onnx", "items.json", "image_sources.py"):
        (copied.parent / name).write_bytes(b"x")
    rewrite(copied, change)
    with pytest.raises(runtime.EmbedError, match="is no file of the export"):
        model = runtime.Embedder(copied)
        model.encode("a cat")
        model.check()


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("dim"),
        lambda m: m.pop("processor"),
        lambda m: m["processor"].pop("pixels"),
        lambda m: m.update(graphs=[]),
        lambda m: m.update(files=None),
        lambda m: m["files"]["embed.py"].pop("bytes"),
        lambda m: m.pop("format"),
        lambda m: m["processor"]["pixels"].update(unknown=3),
    ],
)
def test_a_manifest_that_lacks_something_is_damaged(
    change: Any, runtime: ModuleType, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(copied, change)
    assert runtime.main([str(copied), "--text", "a cat"]) == 2
    error = capsys.readouterr().err
    assert "manifest.json is damaged" in error and error.count("\n") == 1


def test_names_do_not_steer_the_terminal(
    runtime: ModuleType, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(copied, lambda m: m.update(name="\x1b[31mred"))
    items = json.loads((copied / "golden/items.json").read_text("utf-8"))
    items[0]["name"] = "text\x1b]0;title\x07"
    content = json.dumps(items).encode()
    (copied / "golden/items.json").write_bytes(content)
    facts = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewrite(copied, lambda m: m["files"].update({"golden/items.json": facts}))
    assert runtime.main([str(copied), "--check"]) == 0
    assert runtime.main([str(copied), "--text", "a cat", "--out", str(tmp_path / "\x1b[2J.npy")]) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err and "\x07" not in said.out and "\\x1b[2J.npy" in said.out
