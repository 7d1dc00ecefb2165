"""`zoo export`, from the command line to the folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from zoo.cli import main


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny encoder, released."""
    from zoo.bundle import write_bundle

    folder = tmp_path_factory.mktemp("bundle")
    module = tiny.vlm_encoder(folder)
    parts = "zoo.data.processors"
    processor = {
        "tokenizer": str(folder / "tokenizer.json"),
        "template": {"class_path": f"{parts}.vlm_arrays.Template", "init_args": {"suffix": "<|endoftext|>"}},
        "pixels": {
            "class_path": f"{parts}.vlm_arrays.Pixels",
            "init_args": {"patch_size": 4, "min_pixels": 64, "max_pixels": 4096},
        },
    }
    backbone = {"text": tiny.TEXT, "vision": tiny.VISION, "image_token_id": 1}
    init_args = {
        "backbone": {"class_path": "zoo.nn.backbones.qwen2_vl.Qwen2VL", "init_args": backbone},
        "processor": {"class_path": f"{parts}.vlm.VlmProcessor", "init_args": processor},
    }
    recipe = {
        "card": {"title": "Tiny", "family": "vlm-encoder", "license": "Apache-2.0"},
        "model": {"class_path": "VlmEncoder", "init_args": init_args},
    }
    return write_bundle(module, recipe, folder / "tiny")


@pytest.mark.parametrize("traced", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_export_of_a_bundle(
    traced: bool, request: pytest.FixtureRequest, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not traced:
        request.getfixturevalue("without_tracing")
    assert main(["export", f"path:{bundle}", "--to", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    for part in ("vision: tracing, opset 20", "language: running in ONNX Runtime at 4 sizes", "max diff", "embed.py"):
        assert part in out
    assert "e-0" in out and str(tmp_path / "out") in out.replace("\n", "")
    assert (tmp_path / "out" / "language.onnx").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "there"], "there exists and is no export"),
        (["--to", "new", "--opset", "17"], "choose one of 18 to 25"),
        (["--to", "new", "--opest", "20"], "did you mean --opset?"),
    ],
)
def test_bad_requests_are_one_line(
    arguments: list[str],
    message: str,
    bundle: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("x")
    assert main(["export", f"path:{bundle}", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_missing_packages_name_the_extra(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoo.commands import export

    monkeypatch.setattr(export, "_PACKAGES", ("onnx", "no_such_package"))
    assert main(["export", f"path:{bundle}", "--to", str(tmp_path / "out")]) == 2
    assert "embedding-zoo[export]" in capsys.readouterr().err
