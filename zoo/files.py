"""Where files lie: those that a recipe names, what the zoo keeps for later; and how one is written, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from zoo.errors import SampleError, ZooError

PARTIAL = re.compile(r"\.(.+)\.\d+\.\d+\.partial")
"""Names of files that are not whole yet: of the file, process and thread (`replacing`)."""

TRIED_IMAGES = 50  # images of a table that are looked for before it is read
PACKAGED = Path(__file__).parent / "data" / "packaged"


def locate(source: str) -> Path:
    """`packaged:FILE`, `package:MODULE/FILE`, `hf:ORG/REPO[@REVISION]:FILE` or a path -> the file on this disk.

    Raises:
        ZooError: no such file; WeightsError (a ZooError): the hub can't be reached, with the ways out.
    """
    kind, _, rest = source.partition(":")
    if kind == "hf":
        from zoo.weights import fetch_file

        return fetch_file(source)
    if kind == "package":
        from zoo.weights import installed

        return installed(rest)
    path = below(PACKAGED, rest, source) if kind == "packaged" else Path(source).expanduser()
    if not path.is_file():
        raise ZooError(f"there is no file '{path}' (from '{source}')")
    return path


def user_path(text: str) -> Path:
    """A path as somebody typed it, `~` for their home. ZooError if there is no such home."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ZooError(f"'{text}': {error}; write the path out, or ./{text} for a file of that name") from error


def below(folder: Path, name: str, where: str) -> Path:
    """The place that data calls `name`, inside the folder that its user named: data may not point anywhere else.

    Links that lie in the folder are followed; whoever laid them could reach what they lead to.

    Args:
        folder: what names are relative to.
        name: a relative path, or an absolute one that lies in the folder.
        where: the record that says it, for the message.

    Raises:
        SampleError: `..` or a root leads out of the folder.
    """
    root = os.path.abspath(folder)
    place = os.path.abspath(os.path.join(root, name))
    if not Path(place).is_relative_to(root):
        raise SampleError(
            f"{where}: '{name}' leads out of {folder}, and data can only name what lies in that folder; "
            "name a folder that holds all of it (`images`, --images), or put the list there"
        )
    return folder / os.path.relpath(place, root)


def file_state(path: Path) -> str:
    """Size and time of change of a file; "gone" for one that vanished: whoever reads it says so."""
    try:
        facts = path.stat()
    except (OSError, ValueError):
        return "gone"
    return f"{facts.st_size}\t{facts.st_mtime_ns}"


def state_of(files: Iterable[Path], root: Path | None = None) -> str:
    """A digest that changes when a file does; "" of no files. They are called by their paths below `root`, else by name."""
    digest = None
    for file in files:
        digest = digest or hashlib.sha256()
        name = file.name if root is None else os.path.relpath(file, root)
        digest.update(f"{name}\t{file_state(file)}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest() if digest else ""


def check_images(files: Iterable[Path], rows: int, owner: object, folder: Path, option: str) -> None:
    """Refuse a wrong folder of images at once.

    Args:
        files: what the rows name, in order.
        rows: how many rows there are. Where few of them name an image, these may be what is wrong.
        owner: what names them, for the message.
        folder: where they should be.
        option: how to name another folder.

    Raises:
        ZooError: of the first images named none is there.
    """
    named = list(islice(files, TRIED_IMAGES))
    if len(named) >= min(rows, TRIED_IMAGES) and named and not any(file.is_file() for file in named):
        raise ZooError(
            f"the images of {owner} are not in {folder}, for example {named[0]} is not there; "
            f"name their folder with {option}"
        )


def cache_folder() -> Path:
    """Where the zoo keeps what it can make again: ZOO_CACHE, else XDG_CACHE_HOME/zoo, else ~/.cache/zoo."""
    if os.environ.get("ZOO_CACHE"):
        return Path(os.environ["ZOO_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "zoo"


def made_folder(folder: Path) -> Path:
    """The folder, made if it is missing. ZooError if it can't be made, or nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _explained(error, folder) or ZooError(f"{folder} can't be written ({error.strerror})") from error
    if not os.access(folder, os.W_OK):
        raise ZooError(f"{folder} can't be written; choose another place")
    return folder


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well, and vanishes when it does not.

    Its content has reached the disk before it is renamed, so that a power cut leaves one of the two whole.

    Raises:
        ZooError: no space left, or the place can't be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.partial")  # see PARTIAL
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _flush(partial)
        os.replace(partial, path)
        _flush(path.parent)
    except OSError as error:
        if explained := _explained(error, path):
            raise explained from error
        raise
    finally:
        with suppress(OSError):  # where the place itself is the problem, there is nothing to remove
            partial.unlink(missing_ok=True)


def _explained(error: OSError, path: Path) -> ZooError | None:
    """What it means for who wanted to write there; None where nothing is known."""
    if isinstance(error, ZooError):
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ZooError(f"no space left to write {path}: free some or choose another disk; nothing was lost")
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return ZooError(f"{path} can't be written ({error.strerror}); choose another place")
    return None


def _flush(path: Path) -> None:
    """Have a file, or the names in a folder, written to the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders, and needs no flush of them
        return
    opened = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
