"""`~` is the user's home in every path: options of commands, and values of recipes."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from zoo import cli
from zoo.data.latent_folder import latents_folder
from zoo.data.sources.folder import ImageFolder
from zoo.data.sources.table import TablePairs
from zoo.errors import ZooError
from zoo.files import locate, user_path
from zoo.nn.word_embeddings import WordEmbeddings
from zoo.weights import fetch_folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    found = []
    for action in parser._actions:
        subparsers = action.choices.values() if isinstance(action, argparse._SubParsersAction) else ()
        found += [action, *(one for sub in subparsers for one in actions(sub))]
    return found


@pytest.mark.parametrize("name", sorted(set(cli.COMMANDS) - {"fit", "validate", "test", "predict"}))
def test_options_of_commands(name: str, home: Path) -> None:
    parser = cli.Parser()
    importlib.import_module(f"zoo.commands.{name.replace('-', '_')}").add_arguments(parser)
    paths = [action for action in actions(parser) if action.type in (Path, user_path)]
    assert all(action.type("~/x") == home / "x" for action in paths), [action.dest for action in paths]


def test_values_of_recipes(home: Path) -> None:
    (home / "photos").mkdir()
    Image.new("RGB", (4, 4)).save(home / "photos/a.png")
    (home / "photos/a.txt").write_text("a cat", "utf-8")
    parquet.write_table(pyarrow.table({"image": [b"x"], "caption": ["a cat"]}), home / "t.parquet")
    (home / "counts.txt").write_text("3\n", "utf-8")
    assert len(ImageFolder("~/photos")) == len(TablePairs("~/t.parquet")) == 1
    assert locate("~/counts.txt") == home / "counts.txt"
    assert fetch_folder("path:~/photos") == fetch_folder("~/photos") == home / "photos"
    assert latents_folder("~/kept") == home / "kept"


def test_frequencies_of_words(home: Path) -> None:
    with pytest.raises(ZooError) as caught:
        WordEmbeddings(words=3, width=2, frequencies="~/none.txt")
    assert str(home / "none.txt") in str(caught.value)


def test_a_home_that_is_not_there() -> None:
    with pytest.raises(ZooError, match=r"'~nobody-here/x': .*write the path out"):
        user_path("~nobody-here/x")
