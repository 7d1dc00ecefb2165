"""`embed.py` gives torch's vectors where there is no torch."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import pickle
import py_compile
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

Run = Callable[..., "subprocess.CompletedProcess[str]"]

MANY = """
import pickle, sys
from pathlib import Path
import numpy as np
from embed import Embedder

folder, items, out = map(Path, sys.argv[1:4])
model = Embedder(folder, threads=1)
np.savez(out, **{f"{side}/{size}": model.encode(pickle.loads(items.read_bytes()), side=side, batch_size=size)
                 for side in ("query", "document") for size in (32, 2)})
assert "torch" not in sys.modules and "zoo" not in sys.modules
"""


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pictures of every mode that files have, of several sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)

    def noise(height: int, width: int, channels: int) -> Image.Image:
        values = generator.integers(0, 255, (height, width, channels), dtype=np.uint8)
        return Image.fromarray(values if channels > 1 else values[..., 0])

    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    noise(40, 24, 3).save(folder / "rgb.png")
    noise(20, 70, 4).save(folder / "alpha.png")
    noise(33, 21, 1).save(folder / "grey.png")
    noise(30, 30, 2).save(folder / "grey-alpha.png")
    noise(48, 48, 3).quantize(16).save(folder / "palette.png", transparency=3)
    noise(24, 60, 3).save(folder / "turned.jpg", exif=turned, quality=95)
    noise(24, 60, 3).convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    noise(16, 16, 3).save(folder / "film.webp", save_all=True, append_images=[noise(16, 16, 3)], lossless=True)
    noise(30, 20, 1).convert("1").save(folder / "black-white.png")
    Image.fromarray(generator.integers(0, 65535, (30, 22), dtype=np.uint16)).save(folder / "sixteen-bit.png")
    Image.fromarray(generator.random((30, 22), dtype=np.float32)).save(folder / "real.tiff")
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(scope="session")
def items(pictures: dict[str, Path]) -> list[Any]:
    """Text, pictures, both, several pictures, instructions; given in every way they may be given."""
    return [
        "a cat",
        *(path for _, path in sorted(pictures.items())),
        {"text": "red dog w1 w2 w3 w4 w5 w6 w7", "instruction": "find w9"},
        {"image": str(pictures["alpha"]), "instruction": "find"},
        {"text": "two", "images": [pictures["rgb"], pictures["alpha"]]},
        {"text": "zwölf 赤い\n <|endoftext|> 🐟"},
        pictures["grey"].read_bytes(),
        {"images": [pictures["palette"], str(pictures["rgb"]), pictures["rgb"].read_bytes()], "instruction": "red"},
    ]


def vectors_without_torch(run: Run, export: Path, items: list[Any], scratch: Path) -> dict[str, Any]:
    script, out = export / "many.py", scratch / "vectors.npz"
    script.write_text(MANY, "utf-8")
    (scratch / "items.pickle").write_bytes(pickle.dumps(items))
    result = run(script, export, scratch / "items.pickle", out)
    assert result.returncode == 0, result.stderr
    return dict(np.load(out))


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_vectors_are_torch_s(
    padding_side: str, embedder: Any, copied: Path, items: list[Any], run_without_torch: Run, tmp_path: Path
) -> None:
    manifest = json.loads((copied / "manifest.json").read_text("utf-8"))
    manifest["processor"]["padding_side"] = padding_side
    (copied / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    found = vectors_without_torch(run_without_torch, copied, items, tmp_path)
    for side in ("query", "document"):
        expected = embedder.encode(items, side=side)
        for size in (32, 2):
            assert np.abs(found[f"{side}/{size}"] - expected).max() <= 1e-4
    assert np.abs(np.linalg.norm(found["query/32"], axis=1) - 1).max() < 1e-5


def test_the_same_with_other_parts(
    make_embedder: Callable[..., Any], items: list[Any], run_without_torch: Run, tmp_path: Path
) -> None:
    """Bidirectional attention, mean pooling, a head, adapters that act on instructed rows, flat positions, a prompt."""
    from zoo.data.processors.vlm_arrays import Template
    from zoo.export.folder import export_embedder
    from zoo.nn.adapters import Lora
    from zoo.nn.heads import ResidualMlp
    from zoo.nn.pooling import MeanPooling

    template = Template("<unk> ", " <|endoftext|>", " w1", " w2 ", "<|vision_start|><|image_pad|><|vision_end|>")
    other = make_embedder(
        tmp_path,
        template=template,
        processor_target_template=replace(
            template, suffix=" {words} <|endoftext|>", words={"text": "w5", "image": "w6", "image text": "w7"}
        ),
        backbone_attention="bidirectional",
        processor_position_mode="flat",
        processor_padding_side="left",
        pooling=MeanPooling(silent_token=0),
        head=ResidualMlp(32, 64),
        adapter=Lora(4, 8.0, r".*language_model.*(q|v)_proj", init="gaussian", when="instruction"),
    )
    for name, parameter in other.module.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5)  # zero at first, and then the adapter would do nothing
    plain, instructed = other.encode("a cat"), other.encode("a cat", instruction="w3")
    exported = export_embedder(other, tmp_path / "out")
    assert max(exported.runtime.values()) <= 1e-5
    found = vectors_without_torch(run_without_torch, tmp_path / "out", items, tmp_path)
    for side in ("query", "document"):
        assert np.abs(found[f"{side}/32"] - other.encode(items, side=side)).max() <= 1e-4
    assert np.abs(plain - instructed).max() > 1e-2


# ---- the command -----------------------------------------------------------------------------------------------------


def test_check_passes_without_torch(exported: Any, run_without_torch: Run) -> None:
    result = run_without_torch(exported.folder / "embed.py", exported.folder, "--check")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 8 and "largest difference to torch" in result.stdout


def test_check_sees_changed_weights(copied: Path, run_without_torch: Run) -> None:
    data = bytearray((copied / "language.onnx.data").read_bytes())
    data[5000] ^= 0x40
    (copied / "language.onnx.data").write_bytes(data)
    result = run_without_torch(copied / "embed.py", copied, "--check")
    assert result.returncode == 2 and "language.onnx.data was changed after the export" in result.stderr


def test_a_path_may_begin_at_home(
    runtime: ModuleType, exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").symlink_to(exported.folder)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert runtime.main(["~/model", "--image", "~/a.png", "--out", "~/v.npy"]) == 0
    assert np.load(tmp_path / "v.npy").shape[0] == 1


def test_check_sees_other_vectors(runtime: ModuleType, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((copied / "manifest.json").read_text("utf-8"))
    manifest["processor"]["template"]["suffix"] = ""
    (copied / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    assert runtime.main([str(copied), "--check"]) == 1
    assert "allowed 1e-04" in capsys.readouterr().out


@pytest.fixture(scope="session")
def runtime(exported: Any) -> ModuleType:
    """`embed.py`, imported here: quicker than a new interpreter where errors are tested."""
    spec = importlib.util.spec_from_file_location("embed_under_test", exported.folder / "embed.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["embed_under_test"] = module
    spec.loader.exec_module(module)
    return module


def test_command_prints_and_writes(
    runtime: ModuleType, exported: Any, embedder: Any, pictures: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    picture = pictures["alpha"]
    request = [
        str(exported.folder),
        "--text",
        "a cat",
        "--image",
        str(picture),
        "--instruction",
        "find",
        "--side",
        "query",
    ]
    expected = embedder.encode_query({"text": "a cat", "image": picture, "instruction": "find"})
    assert runtime.main(request) == 0
    assert np.abs(np.array(json.loads(capsys.readouterr().out)) - expected).max() <= 1e-4
    assert runtime.main([*request, "--out", str(tmp_path / "x.npy")]) == 0
    written = np.load(tmp_path / "x.npy")
    assert written.shape == (1, 32) and written.dtype == np.float32
    assert np.abs(written - expected).max() <= 1e-4


def test_command_reads_many_items(
    runtime: ModuleType, exported: Any, embedder: Any, pictures: dict[str, Path], tmp_path: Path
) -> None:
    things = [{"text": "a cat"}, {"image": str(pictures["rgb"])}, {"text": "dog", "instruction": "red"}]
    lines = tmp_path / "items.jsonl"
    lines.write_text("\n".join(map(json.dumps, things)) + "\n\n", "utf-8")
    arguments = [str(exported.folder), "--jsonl", str(lines), "--out", str(tmp_path / "x.npy"), "--instruction", "find"]
    assert runtime.main(arguments) == 0
    assert np.abs(np.load(tmp_path / "x.npy") - embedder.encode(things, instruction="find")).max() <= 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "  "], "item 0: the text is empty"),
        ([], "item 0: neither text nor image"),
        (["--instruction", "find"], "neither text nor image"),
        (["--image", "nowhere.png"], "item 0: image nowhere.png does not exist"),
        (["--image", "empty.png"], "item 0: image empty.png is empty (0 bytes)"),
        (["--image", "cut.png"], "item 0: image cut.png is damaged: "),
        (["--image", "page.eps"], "page.eps is not a picture in one of the formats"),
        (["--image", "huge.png"], "item 0: image huge.png has 9000x9000 pixels, more than 64000000"),
        (["--image", "long.png"], "item 0: aspect ratio of 402x1 is above 200"),
        (["--text", "a <|image_pad|>"], "item 0: the text holds the image token"),
        (["--jsonl", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--image", "https://example.org/a.png"], "image https://example.org/a.png is an address"),
        (["--jsonl", "utf16.jsonl"], "utf16.jsonl is UTF-16"),
        (["--jsonl", "empty.png"], "empty.png has no lines"),
        (["--text", "cut \ud83d"], "item 0: the text is not valid Unicode"),
        (["--image", "\x1b[31mred.png"], "image \\x1b[31mred.png does not exist"),
        (["--text", "a", "--threads", "0"], "threads=0: give 1 or more"),
        (["--jsonl", "bad.jsonl", "--text", "a"], "either --jsonl, or --text and --image"),
    ],
)
def test_bad_items_are_one_line(
    arguments: list[str],
    message: str,
    runtime: ModuleType,
    exported: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = io.BytesIO()
    Image.effect_noise((50, 50), 90).save(whole, "png")
    Path("empty.png").write_bytes(b"")
    Path("cut.png").write_bytes(whole.getvalue()[:800])
    Image.new("RGB", (402, 1)).save("long.png")
    Image.new("RGB", (20, 20)).save("page.eps")
    Image.new("1", (9000, 9000)).save("huge.png")
    Path("bad.jsonl").write_text('{"text": "a"}\n{"text"\n', "utf-8")
    Path("utf16.jsonl").write_text('{"text": "a"}\n', "utf-16")
    assert runtime.main([str(exported.folder), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "manifest.json").unlink(), "no export: it has no manifest.json"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (lambda f: (f / "vision.onnx.data").unlink(), "vision.onnx.data is missing"),
        (lambda f: (f / "language.onnx.data").write_bytes(b"0"), "language.onnx.data is truncated or changed"),
        (
            lambda f: (f / "manifest.json").write_text('{"format": 99, "files": {}}'),
            "has format 99; use the embed.py that lies in it",
        ),
    ],
)
def test_damaged_folders_are_named(
    damage: Callable[[Path], object], message: str, runtime: ModuleType, copied: Path
) -> None:
    damage(copied)
    with pytest.raises(runtime.EmbedError, match=message):
        runtime.Embedder(copied)


CANARY = "import pathlib; pathlib.Path('canary').write_text('executed')\n"


@pytest.mark.parametrize("place", ["../code.py", "{folder}/../code.py", "sub/code.py", "unlisted.py"])
def test_code_that_is_no_file_of_the_export_is_not_run(
    place: str, runtime: ModuleType, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copied)
    name = place.format(folder=copied)
    (copied / "sub").mkdir()
    (copied / name).write_text(CANARY)
    manifest = json.loads((copied / "manifest.json").read_text("utf-8"))
    manifest["processor"]["code"] = name
    if place != "unlisted.py":
        manifest["files"][name] = {
            "bytes": len(CANARY),
            "sha256": hashlib.sha256(CANARY.encode()).hexdigest(),
        }
    (copied / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(runtime.EmbedError, match=r"names the (code|file) '.*\.py', which is no file of the export"):
        runtime.Embedder(copied)
    assert not (copied / "canary").exists()


@pytest.mark.parametrize("where", ["source", "bytecode"])
def test_changed_code_is_not_run(
    where: str, runtime: ModuleType, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size alone is what every start compares; and Python prefers bytecode of the right time stamp to the source."""
    monkeypatch.chdir(copied)
    code = copied / "vlm_arrays.py"
    original, stamp = code.read_bytes(), code.stat()
    code.write_text(CANARY + "#" * (len(original) - len(CANARY)))
    if where == "bytecode":
        os.utime(code, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        py_compile.compile(str(code))
        code.write_bytes(original)
        os.utime(code, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        runtime.Embedder(copied)
    else:
        with pytest.raises(runtime.EmbedError, match=r"vlm_arrays\.py was changed after the export and is not run"):
            runtime.Embedder(copied)
    assert not (copied / "canary").exists()


# ---- the class -------------------------------------------------------------------------------------------------------


def test_one_item_gives_one_vector_and_none_gives_none(runtime: ModuleType, exported: Any) -> None:
    model = runtime.Embedder(exported.folder)
    assert model.encode("a cat").shape == (32,) and model.encode(["a cat"]).shape == (1, 32)
    assert model.encode([]).shape == (0, 32)
    assert not np.allclose(model.encode_query("a"), model.encode_document("b"))
    with pytest.raises(runtime.EmbedError, match="side must be"):
        model.encode("a", side="target")
    with pytest.raises(runtime.EmbedError, match="item 1: a int can't be embedded"):
        model.encode(["a", 3])


def test_the_bad_item_of_a_batch_is_named(runtime: ModuleType, exported: Any) -> None:
    model = runtime.Embedder(exported.folder)
    with pytest.raises(runtime.EmbedError, match=r"item 2: the text holds the image token"):
        model.encode(["a", "b", "a <|image_pad|>", "c"])


def test_many_large_pictures_run_in_parts(
    runtime: ModuleType, exported: Any, pictures: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = runtime.Embedder(exported.folder)
    things = [pictures["rgb"], {"text": "a", "images": [pictures["alpha"], pictures["grey"]]}, pictures["palette"]]
    whole = model.encode(things)
    monkeypatch.setattr(runtime._model, "_ATTENTION_CELLS", 1)
    assert np.abs(model.encode(things) - whole).max() <= 1e-6


def test_text_alone_never_loads_the_vision_graph(runtime: ModuleType, copied: Path) -> None:
    size = (copied / "vision.onnx").stat().st_size
    (copied / "vision.onnx").write_bytes(b"x" * size)
    assert runtime.Embedder(copied).encode("a cat").shape == (32,)


def test_images_are_read_by_the_code_of_the_zoo(exported: Any) -> None:
    from zoo.data.processors import image_arrays, image_sources

    for module in (image_arrays, image_sources):
        source = Path(str(module.__file__))
        assert (exported.folder / source.name).read_bytes() == source.read_bytes()


@pytest.mark.slow
def test_fresh_environment_with_four_packages(exported: Any, items: list[Any], embedder: Any, tmp_path: Path) -> None:
    """Nothing of the zoo is installed there: the vectors come from the folder alone."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    packages = ["onnxruntime", "numpy", "pillow", "tokenizers"]
    subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages], check=True)
    installed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert "torch" not in installed and "embedding-zoo" not in installed
    command = [python, exported.folder / "embed.py", exported.folder, "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "largest difference to torch" in result.stdout

    def run(script: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([python, script, *map(str, arguments)], capture_output=True, text=True, cwd=tmp_path)

    folder = Path(shutil.copytree(exported.folder, tmp_path / "copy"))
    found = vectors_without_torch(run, folder, items, tmp_path)
    assert np.abs(found["query/32"] - embedder.encode_query(items)).max() <= 1e-4
