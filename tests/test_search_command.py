"""`zoo search`: the right order, the page, the kept index; and what it refuses."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
from PIL import Image

import zoo
from zoo import cli, files
from zoo.bundle import write_bundle
from zoo.errors import SampleError, ZooError
from zoo.vectors.search import nearest

COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("ZOO_TRACEBACK", "1")


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A toy that puts the word "red" where red pictures are, and so on."""
    module = toy.build(tmp_path)
    with torch.no_grad():
        module.linear.weight.zero_()
        module.linear.bias.zero_()
        for axis in range(3):
            module.linear.weight[axis, axis] = 1.0  # the words red, green, blue
            module.linear.weight[axis, len(toy.WORDS) + axis] = 1.0  # the colours
    return f"path:{write_bundle(module, toy.recipe(tmp_path), tmp_path / 'model')}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (300, 200), colour).save(tmp_path / "photos" / f"{name}.png")
    return tmp_path / "photos"


def find(*arguments: object) -> int:
    return cli.main(["search", *map(str, arguments), "--device", "cpu"])


class Page(HTMLParser):
    """What a page shows and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "src":
                self.sources.append(str(value))
            if name in ("href", "srcset", "action") or name.startswith("on"):
                self.links.append(str(value))

    def handle_data(self, data: str) -> None:
        self.text += data


def ranked(output: str) -> list[str]:
    return re.findall(r"│ \d+ +│ [\d.-]+ +│ (\S+) ", output)


@pytest.mark.parametrize("wanted", ["red", "green", "blue"])
def test_text_finds_the_picture(model: str, folder: Path, capsys: Any, wanted: str) -> None:
    assert find(model, wanted, "--in", folder) == 0
    output = capsys.readouterr().out
    assert ranked(output)[0] == f"{wanted}.png" and len(ranked(output)) == 3
    assert "1.0000" in output


def test_picture_and_mixed_queries(model: str, folder: Path, capsys: Any, tmp_path: Path) -> None:
    Image.new("RGB", (5, 5), (0, 0, 255)).save(tmp_path / "query.png")
    find(model, "--image", tmp_path / "query.png", "--in", folder)
    assert ranked(capsys.readouterr().out)[0] == "blue.png"
    find(model, "red red", "--image", tmp_path / "query.png", "--in", folder)
    assert ranked(capsys.readouterr().out) == ["red.png", "blue.png", "green.png"]
    find(model, "--image", tmp_path / "query.png", "--instruction", "green green green", "--in", folder, "--top", "2")
    assert ranked(capsys.readouterr().out) == ["green.png", "blue.png"]


def test_page_is_self_contained_and_shows_what_was_found(model: str, folder: Path, tmp_path: Path) -> None:
    html = tmp_path / "pages" / "found.html"
    assert find(model, "red", "--in", folder, "--html", html, "--instruction", "find <it>") == 0
    page = Page(html.read_text("utf-8"))
    assert len(page.sources) == 3 and not page.links and "script" not in page.tags and "link" not in page.tags
    for source, colour in zip(page.sources, [COLOURS["red"]], strict=False):
        kind, _, content = source.partition(";base64,")
        assert kind == "data:image/webp"
        with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
            assert max(picture.size) == 192
            assert np.abs(np.asarray(picture.convert("RGB"), int)[50, 50] - colour).max() < 12
    for shown in ("find <it>", "red.png", "1.0000", "3 rows"):
        assert shown in page.text


def test_nothing_in_data_becomes_markup(model: str, tmp_path: Path, capsys: Any) -> None:
    evil = "<script>alert(1)</script>[bold]x[/bold]$title"
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": evil, "text": evil}) + "\n")
    cli.main(["embed", model, str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "i.parquet")])
    find(model, evil, "--in", tmp_path / "i.parquet", "--html", tmp_path / "p.html")
    page = Page((tmp_path / "p.html").read_text("utf-8"))
    assert "script" not in page.tags and page.text.count(evil) >= 3
    assert "[bold]x[/bold]" in capsys.readouterr().out


def test_index_of_zoo_embed(model: str, folder: Path, tmp_path: Path, capsys: Any) -> None:
    cli.main(["embed", model, str(folder), "--out", str(tmp_path / "i.parquet")])
    capsys.readouterr()
    find(model, "green", "--in", tmp_path / "i.parquet", "--html", tmp_path / "p.html")
    assert ranked(capsys.readouterr().out)[0] == "green.png"
    assert len(Page((tmp_path / "p.html").read_text()).sources) == 3
    (folder / "green.png").unlink()  # gone since: still found, without its picture
    find(model, "green", "--in", tmp_path / "i.parquet", "--html", tmp_path / "p.html")
    assert "not readable" in (tmp_path / "p.html").read_text()


def test_index_of_other_weights_is_refused(model: str, folder: Path, tmp_path: Path) -> None:
    cli.main(["embed", model, str(folder), "--out", str(tmp_path / "i.parquet")])
    other = write_bundle(toy.build(tmp_path, seed=5), toy.recipe(tmp_path), tmp_path / "other")
    with pytest.raises(ZooError, match=r"vectors of model.*can't be compared"):
        find(f"path:{other}", "red", "--in", tmp_path / "i.parquet")


# ---- the kept index --------------------------------------------------------------------------------------------------


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the pictures that were embedded."""
    names: list[str] = []
    row = toy.ToyProcessor.row

    def counted(self: Any, item: zoo.Item, name: str, query: bool) -> Any:
        if item.images and not query:
            names.append(name)
        return row(self, item, name, query)

    monkeypatch.setattr(toy.ToyProcessor, "row", counted)
    yield names


def test_a_folder_is_embedded_once_until_it_changes(
    model: str, folder: Path, tmp_path: Path, embedded: list[str]
) -> None:
    find(model, "red", "--in", folder)
    assert len(embedded) == 3
    find(model, "green", "--in", folder)
    assert len(embedded) == 3
    Image.new("RGB", (9, 9), (120, 120, 0)).save(folder / "new.png")
    find(model, "red", "--in", folder)
    assert len(embedded) == 7
    assert len(list((tmp_path / "cache" / "indexes").glob("*.parquet"))) == 1  # the new one took its place
    write_bundle(toy.build(tmp_path, seed=4), toy.recipe(tmp_path), tmp_path / "model")
    find(model, "red", "--in", folder)
    assert len(embedded) == 11


def test_a_cache_that_cannot_be_written(
    model: str, folder: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "file"))
    assert find(model, "blue", "--in", folder) == 0
    output = capsys.readouterr().out
    assert ranked(output)[0] == "blue.png"
    assert "so the index is not kept (ZOO_CACHE names another place)" in output
    assert "no page was written" in output and "page:" not in output
    assert find(model, "blue", "--in", folder, "--html", tmp_path / "p.html") == 0
    assert f"page: {tmp_path / 'p.html'}" in capsys.readouterr().out


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.cache_folder() == Path(os.environ["ZOO_CACHE"])
    monkeypatch.delenv("ZOO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert files.cache_folder() == Path("/x/zoo")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert files.cache_folder() == Path.home() / ".cache" / "zoo"


def test_pictures_that_cannot_be_read_are_left_out(model: str, folder: Path, capsys: Any) -> None:
    (folder / "broken.png").write_bytes(b"no picture")
    find(model, "red", "--in", folder)
    output = capsys.readouterr().out
    assert len(ranked(output)) == 3 and "1 of 4 rows could not be used" in output


# ---- refused ---------------------------------------------------------------------------------------------------------


def test_queries_that_hold_nothing(model: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="give a text, --image FILE, or both"):
        find(model, "--in", folder, "--instruction", "find")
    with pytest.raises(ZooError, match="nothing to look for"):
        find(model, " ", "--in", folder)
    with pytest.raises(SampleError, match=r"nowhere\.png does not exist"):
        find(model, "--image", tmp_path / "nowhere.png", "--in", folder)
    with pytest.raises(ZooError, match="--top 0: at least 1"):
        find(model, "red", "--in", folder, "--top", "0")
    with pytest.raises(ZooError, match="--in nowhere does not exist: give a folder"):
        find(model, "red", "--in", "nowhere")


def test_nearest_keeps_the_order_of_ties() -> None:
    vectors = np.array([[0, 1], [1, 0], [0, 1], [1, 0], [0.6, 0.8]], np.float32)
    query = np.array([1, 0], np.float32)
    assert [hit.row for hit in nearest(query, vectors, 99)] == [1, 3, 4, 0, 2]
    assert [hit.row for hit in nearest(query, vectors, 1)] == [1]
    assert nearest(query, vectors, 3)[2].score == pytest.approx(0.6)


@pytest.mark.slow
def test_packaged_emoji(model: str, capsys: Any, tmp_path: Path) -> None:
    assert find(model, "green", "--in", "emoji", "--html", tmp_path / "p.html", "--top", "20") == 0
    assert len(re.findall("/(google|twitter)", capsys.readouterr().out)) == 20
    assert len(Page((tmp_path / "p.html").read_text()).sources) == 20
