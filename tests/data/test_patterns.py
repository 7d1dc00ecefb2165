"""Which files a pattern stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoo.data.patterns import braces, expand
from zoo.errors import RecipeError, ZooError


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a{08..11}.tar", ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]),
        ("{9..11}", ["9", "10", "11"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{000..002}", ["000", "001", "002"]),
        ("{train,val}-{0..1}", ["train-0", "train-1", "val-0", "val-1"]),
        ("a{b}c", ["a{b}c"]),
        ("{}", ["{}"]),
    ],
)
def test_braces_as_in_a_shell(text: str, names: list[str]) -> None:
    assert braces(text) == names


@pytest.mark.parametrize("text", ["{0..99999999999}", "{000..999}{000..999}{00..99}"])
def test_too_many_names_are_refused_at_once(text: str) -> None:
    with pytest.raises(RecipeError, match="stands for more than 1,000,000 names"):
        braces(text)


def test_files_folders_and_globs(tmp_path: Path) -> None:
    for name in ("b-10.tar", "b-9.tar", "a.tar", "c{1,2}.tar", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.tar").mkdir()

    def names(*patterns: str) -> list[str]:
        return [file.name for file in expand([f"{tmp_path}{pattern}" for pattern in patterns], ".tar")]

    assert names("") == ["a.tar", "b-10.tar", "b-9.tar", "c{1,2}.tar"]
    assert names("/b-{9..10}.tar", "/a.tar") == ["b-9.tar", "b-10.tar", "a.tar"]
    assert names("/b-*.tar") == ["b-10.tar", "b-9.tar"]
    assert names("/c{1,2}.tar") == ["c{1,2}.tar"]
    assert expand(str(tmp_path / "a.tar"), ".tar") == [tmp_path / "a.tar"]


@pytest.mark.parametrize(
    ("patterns", "error", "message"),
    [
        ("pipe:curl -s https://x/{0..9}.tar", RecipeError, r"'pipe:curl .*' is no file on this disk: commands"),
        ("PIPE:cat x.tar", RecipeError, "is no file on this disk"),
        ("https://x/a.tar", RecipeError, "is no file on this disk"),
        ("s3://x/a.tar", RecipeError, "is no file on this disk"),
        ("hf:org/repo:a.tar", RecipeError, "is no file on this disk"),
        ("a.tar::b.tar", RecipeError, "give them as a list"),
        ("{tmp}/gone.tar", ZooError, r"gone.tar' matches no file; looked for .*gone.tar$"),
        ("{tmp}/gone-*.tar", ZooError, r"'.*gone-\*\.tar' matches no file"),
        ("{tmp}/gone-{000..012}.tar", ZooError, r"looked for .*gone-000.tar, .*gone-001.tar, .*gone-002.tar, \.\.\.$"),
        ("{tmp}/s-{0..3}.tar", ZooError, r"2 of the 4 files of .* are missing: .*s-2.tar, .*s-3.tar; copy them"),
        ("{tmp}/empty", ZooError, "there is no .tar file in the folder .*empty"),
        ([], ZooError, "no .tar file is named"),
        (["{tmp}/s-0.tar", "{tmp}/s-*.tar"], RecipeError, "s-0.tar is named twice"),
    ],
)
def test_what_stands_for_no_files(patterns, error, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for number in range(2):
        (tmp_path / f"s-{number}.tar").touch()

    def here(text: str) -> str:
        return text.replace("{tmp}", str(tmp_path))

    with pytest.raises(error, match=message):
        expand(here(patterns) if isinstance(patterns, str) else list(map(here, patterns)), ".tar")
