"""Which files a pattern stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoo.data.left_out import LeftOutWarning
from zoo.data.patterns import braces, expand, has_files
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


@pytest.mark.parametrize("folder", ["data [v1]", "{a}", "{a,b}", "x*?", "[!x]/deep {0..2}"])
def test_folders_are_meant_as_they_are_called(folder: str, tmp_path: Path) -> None:
    """A pattern in the name of the file stays one."""
    (tmp_path / folder).mkdir(parents=True)
    for name in ("s-0.tar", "s-1.tar", "t.tar", "[v2].tar"):
        (tmp_path / folder / name).touch()

    def names(pattern: str) -> list[str]:
        found = expand(f"{tmp_path}/{folder}/{pattern}", ".tar")
        assert all(file.is_file() for file in found)
        return [file.name for file in found]

    assert names("s-{0..1}.tar") == names("s-*.tar") == names("s-[01].tar") == ["s-0.tar", "s-1.tar"]
    assert names("") == names("*") == ["[v2].tar", "s-0.tar", "s-1.tar", "t.tar"]
    assert names("[v2].tar") == ["[v2].tar"] and names("[s-t].tar") == ["t.tar"]


def test_patterns_in_folders_stay_patterns(tmp_path: Path) -> None:
    for folder in ("a1", "a2", "b [v1]"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.tar").touch()
    assert [f.parent.name for f in expand(f"{tmp_path}/a*/*.tar", ".tar")] == ["a1", "a2"]
    assert [f.parent.name for f in expand(f"{tmp_path}/a{{2..1}}/0.tar", ".tar")] == ["a2", "a1"]
    assert [f.parent.name for f in expand(f"{tmp_path}/{{a1,b [v1]}}/*.tar", ".tar")] == ["a1", "b [v1]"]


def test_compressed_files_of_a_folder_are_named(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar.gz", "C.TAR.ZST", "a.tar.index.npz", "notes.gz"):
        (tmp_path / name).touch()
    with pytest.warns(
        LeftOutWarning, match=r"1 usable files; left out: 2 compressed files.* \(C\.TAR\.ZST, b\.tar\.gz\)"
    ):
        assert expand(str(tmp_path), ".tar") == [tmp_path / "a.tar"]


def test_hidden_files_are_none_of_a_folder(tmp_path: Path) -> None:
    """macOS leaves `._a.tar` beside `a.tar` on disks that are not its own."""
    for name in ("a.tar", "._a.tar", "._b.jsonl"):
        (tmp_path / name).touch()
    assert expand(str(tmp_path), ".tar") == [tmp_path / "a.tar"] == expand(f"{tmp_path}/*.tar", ".tar")
    assert has_files(tmp_path, (".tar",)) and not has_files(tmp_path, (".jsonl",))


def test_endings_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "A.TAR").touch()
    assert expand(str(tmp_path), ".tar") == [tmp_path / "A.TAR"]


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
