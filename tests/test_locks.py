"""Who may write into a folder, and what becomes of the rest of killed processes."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from zoo.errors import ZooError
from zoo.files import replacing
from zoo.locks import writing

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no flock")


def test_one_after_the_other(tmp_path: Path) -> None:
    inside, most, waited = [0], [0], []

    def work() -> None:
        with writing(tmp_path / "f", waiting=lambda: waited.append(1)):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.05)
            inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and len(waited) == 3
    assert not list((tmp_path / "f").iterdir()), "a lock leaves no file"


def test_together(tmp_path: Path) -> None:
    """The first removes what was left; the second must not touch what the first is writing."""
    (tmp_path / ".x.parquet.1.2.partial").touch()
    (tmp_path / ".mine.partial").touch()
    with writing(tmp_path, shared=True):
        assert [p.name for p in tmp_path.iterdir()] == [".mine.partial"]
        with replacing(tmp_path / "x.parquet") as partial:
            partial.write_text("x")
            with writing(tmp_path, shared=True):
                assert partial.is_file()
    assert (tmp_path / "x.parquet").read_text() == "x"


def test_a_folder_that_its_holder_removes_is_made_again(tmp_path: Path) -> None:
    folder, entered = tmp_path / "a" / "f", threading.Event()

    def second() -> None:
        with writing(folder, waiting=entered.set):
            (folder / "second").touch()

    thread = threading.Thread(target=second)
    with writing(folder):
        thread.start()
        assert entered.wait(10)
        folder.rmdir()
    thread.join()
    assert (folder / "second").is_file()


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    def hold() -> None:
        with writing(tmp_path):
            (tmp_path / "held").touch()
            time.sleep(600)

    process = multiprocessing.get_context("fork").Process(target=hold, daemon=True)
    process.start()
    while not (tmp_path / "held").is_file():
        time.sleep(0.01)
    os.kill(process.pid or 0, 9)
    begin = time.monotonic()
    with writing(tmp_path):
        assert time.monotonic() - begin < 10
    process.join()


def test_a_folder_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "f", Path("/proc/zoo")):
        with pytest.raises(ZooError, match=f"{folder}.*can't be written"), writing(folder):
            pass
