"""`zoo ambiguous`: the least certain first, of pictures and of texts; and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import toy
from PIL import Image

from zoo import cli
from zoo.bundle import write_bundle
from zoo.errors import ZooError

REDS = {"pale": 40, "red": 250, "dark": 5, "middle": 120}


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("ZOO_TRACEBACK", "1")


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A toy that is the less sure of a picture the redder it is, and of a text the longer it is."""
    content = toy.recipe(tmp_path)
    content["model"]["class_path"] = "toy.UnsureEncoder"
    words = content["model"]["init_args"]["processor"]["init_args"]["words"]
    module = toy.UnsureEncoder(toy.ToyProcessor(words))
    return f"path:{write_bundle(module, content, tmp_path / 'model')}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name, red in REDS.items():
        Image.new("RGB", (60, 40), (red, 0, 0)).save(tmp_path / "photos" / f"{name}.png")
    return tmp_path / "photos"


def listed(capsys: Any, *arguments: object) -> list[str]:
    """The ids in the order in which they are printed."""
    assert cli.main(["ambiguous", *map(str, arguments), "--device", "cpu"]) == 0
    return re.findall(r"│ \d+ +│ [^│]+│ [^│]+│ (\S+)", capsys.readouterr().out)


def test_pictures_in_the_order_of_their_variance(model: str, folder: Path, capsys: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert listed(capsys, model, "--in", folder, "--html", page) == ["red.png", "middle.png", "pale.png", "dark.png"]
    text = page.read_text("utf-8")
    assert text.count("<img") == 4 and text.index("red.png") < text.index("dark.png")
    assert "The least certain of" in text and "http" not in text
    assert listed(capsys, model, "--in", folder, "--certain", "--top", 2) == ["dark.png", "pale.png"]


def test_texts_of_zoo_embed(model: str, tmp_path: Path, capsys: Any) -> None:
    table = tmp_path / "texts.jsonl"
    table.write_text('{"id": "b", "text": "red"}\n{"id": "a", "text": "red cat dog"}\n', "utf-8")
    assert cli.main(["embed", model, str(table), "--out", str(tmp_path / "t.parquet"), "--device", "cpu"]) == 0
    capsys.readouterr()
    assert listed(capsys, model, "--in", tmp_path / "t.parquet") == ["a", "b"]


def test_what_is_refused(model: str, folder: Path, tmp_path: Path) -> None:
    plain = f"path:{write_bundle(toy.build(tmp_path), toy.recipe(tmp_path), tmp_path / 'plain')}"
    with pytest.raises(ZooError, match="gives vectors without variances, so it can't tell what is ambiguous"):
        cli.main(["ambiguous", plain, "--in", str(folder), "--device", "cpu"])
    with pytest.raises(ZooError, match="--top 0: at least 1"):
        cli.main(["ambiguous", model, "--in", str(folder), "--top", "0"])
    with pytest.raises(ZooError, match="give a folder of pictures"):
        cli.main(["ambiguous", model, "--in", str(tmp_path / "nowhere"), "--device", "cpu"])
