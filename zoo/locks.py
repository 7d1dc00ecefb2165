"""Which process may write into a folder, and what killed ones have left there.

The folder itself is locked (flock): that leaves no file, and ends with the process, however that ends. Where the system or
the disk has no such locks, nothing is held.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zoo.files import PARTIAL, made_folder


@contextmanager
def writing(folder: Path, shared: bool = False, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a folder, which is made if it is missing, while this process writes into it.

    The only process there removes what killed ones have left of files that they were writing (`zoo.files.replacing`).

    Args:
        folder: may be removed in the block.
        shared: others may write there at the same time, each under names of its own; else they wait.
        waiting: called before this process waits for another.

    Raises:
        ZooError: the folder can't be made or written.
    """
    while True:
        with _locked(made_folder(folder), shared, waiting) as there:
            if there:
                yield
                return


@contextmanager
def _locked(folder: Path, shared: bool, waiting: Callable[[], None]) -> Iterator[bool]:
    """Whether the folder is still the one that was locked: whoever held it may have removed it."""
    if sys.platform == "win32":
        yield True
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        alone = _wait(descriptor, shared, waiting)
        there = _is(folder, descriptor)
        if there and alone:
            remove_partials(folder)
        if shared:
            _share(descriptor)
        yield there
    finally:
        os.close(descriptor)


def _is(folder: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(folder.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _wait(descriptor: int, shared: bool, waiting: Callable[[], None]) -> bool:
    """Take the lock; returns whether nobody else was there."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        if not shared:
            waiting()
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        return not shared
    except OSError:  # a disk without locks
        return False


def _share(descriptor: int) -> None:
    """Let others in that share, too."""
    import fcntl

    with suppress(OSError):  # a disk without locks
        fcntl.flock(descriptor, fcntl.LOCK_SH)


def remove_partials(folder: Path) -> None:
    """Remove what killed processes left of files that they were writing; only for who holds the folder."""
    for path in folder.iterdir():
        if PARTIAL.fullmatch(path.name):
            path.unlink(missing_ok=True)
