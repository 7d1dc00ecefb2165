"""Names that data and recipes may give: they stay in the folder that was meant."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from zoo.errors import SampleError, WeightsError, ZooError
from zoo.files import below, locate
from zoo.weights import fetch_folder


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.png", "a.png"),
        ("sub/a.png", "sub/a.png"),
        ("./sub/../a.png", "a.png"),
        ("..a.png", "..a.png"),
        ("sub/..", "."),
    ],
)
def test_what_lies_in_the_folder_is_found(name: str, found: str, tmp_path: Path) -> None:
    assert below(tmp_path, name, "row 3") == tmp_path / found
    assert below(tmp_path, str(tmp_path / name), "row 3") == tmp_path / found


@pytest.mark.parametrize("name", ["../a.png", "..", "sub/../../a.png", "/etc/passwd", "{folder}-other/a.png"])
def test_what_leads_out_is_refused_with_the_record(name: str, tmp_path: Path) -> None:
    name = name.format(folder=tmp_path)
    with pytest.raises(SampleError, match=rf"row 3: '{re.escape(name)}' leads out of .*name a folder that holds"):
        below(tmp_path, name, "row 3")


def test_a_relative_folder_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert below(Path("pictures"), "a.png", "x") == Path("pictures/a.png")
    assert below(Path(), "a.png", "x") == Path("a.png")
    with pytest.raises(SampleError):
        below(Path(), "../a.png", "x")
    assert below(Path("/"), "/etc/passwd", "x") == Path("/etc/passwd")  # whoever names the root means all of it


def test_links_in_the_folder_are_followed(tmp_path: Path) -> None:
    """Large data sets often are links to another disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.png").write_bytes(b"x")
    (tmp_path / "pictures").mkdir()
    os.symlink(tmp_path / "disk", tmp_path / "pictures" / "train")
    assert below(tmp_path / "pictures", "train/a.png", "x").read_bytes() == b"x"


@pytest.mark.parametrize("source", ["packaged:../../__init__.py", "packaged:/etc/passwd", "packaged:.."])
def test_packaged_files_lie_in_the_package(source: str) -> None:
    with pytest.raises(ZooError, match="leads out of"):
        locate(source)


@pytest.mark.parametrize("source", ["packaged:..", "packaged:../nn", "packaged:/etc", "packaged:"])
def test_packaged_bundles_lie_in_the_package(source: str) -> None:
    with pytest.raises(WeightsError, match=r"is no name of a packaged bundle; packaged are: .*vlm2vec-emoji"):
        fetch_folder(source)


@pytest.mark.parametrize("source", ["package:torch/../yaml", "package:torch//etc/passwd"])
def test_packages_keep_their_files_too(source: str) -> None:
    with pytest.raises(WeightsError, match="leads outside of the package"):
        fetch_folder(source)
