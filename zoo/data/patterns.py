"""Which files a pattern stands for: `cc3m/{00000..00331}.tar`, `coco/*.parquet`, a folder, a file."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from zoo.data.left_out import LeftOut
from zoo.errors import RecipeError, ZooError

MOST = 1_000_000
"""Names that one pattern may stand for (ours): more is a slip of the keyboard."""

_PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4")
_BRACES = re.compile(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://|(pipe|hf):", re.IGNORECASE)


def expand(patterns: str | Sequence[str], ending: str) -> list[Path]:
    """The files, in the order of the patterns; those of a folder or of `*` sorted.

    Args:
        patterns: files, folders, names with `*`, `?`, `[...]`, `{a,b}`, `{000..012}`; each file once. A folder or file
            that is called so is meant as it is.
        ending: of the files that a folder stands for, such as ".tar".

    Raises:
        RecipeError: an address or a command (`pipe:`) instead of a file; a file named twice.
        ZooError: a pattern that nothing matches, or numbered files of which some are missing; names them.
    """
    given = [patterns] if isinstance(patterns, str) else list(patterns)
    if not given:
        raise ZooError(f"no {ending} file is named")
    files = [file for pattern in given for file in _files(pattern, ending)]
    if len(set(files)) < len(files):
        twice = next(file for file in files if files.count(file) > 1)
        raise RecipeError(f"{twice} is named twice: to see data more often, raise its weight")
    return files


def files_in(folder: Path, endings: Sequence[str]) -> list[Path]:
    """The files of a folder with these endings, sorted. Compressed ones are counted and named in a warning, hidden ones
    passed over, as a shell does: macOS leaves `._x.tar` beside `x.tar` on other disks.
    """
    found = sorted(filter(Path.is_file, _called(folder, endings)))
    left_out = LeftOut()
    for file in sorted(folder.iterdir()):
        name, packed = os.path.splitext(file.name.lower())
        if packed in _PACKED and name.endswith(tuple(endings)):
            left_out.note("compressed files, which are not read: unpack them", file.name)
    left_out.warn(folder.name, len(found), "files")
    return found


def has_files(folder: Path, endings: Sequence[str]) -> bool:
    """Whether a folder has files that `files_in` would find."""
    return any(map(Path.is_file, _called(folder, endings)))


def _called(folder: Path, endings: Sequence[str]) -> Iterator[Path]:
    return (file for file in folder.iterdir() if file.suffix.lower() in endings and not file.name.startswith("."))


def _files(pattern: str, ending: str) -> list[Path]:
    if _ADDRESS.match(pattern):
        raise RecipeError(f"'{pattern}' is no file on this disk: commands and addresses are never opened; copy it here")
    if "::" in pattern:
        raise RecipeError(f"'{pattern}' joins patterns with '::': give them as a list")
    path = Path(pattern).expanduser()
    if path.is_dir():
        return _some(files_in(path, (ending,)), f"there is no {ending} file in the folder {path}")
    if path.is_file():  # also one whose name has braces in it
        return [path]
    folder, rest = _split(path)
    names = [str(folder / text) for text in braces(rest)]
    found = [file for name in names for file in _matches(Path(name))]
    missing = [file for file in found if not file.is_file()]
    if missing and len(missing) < len(found):
        raise ZooError(
            f"{len(missing)} of the {len(found)} files of '{pattern}' are missing: {_few(missing)}; copy them, or "
            "give the numbers that are there"
        )
    return _some([] if missing else found, f"'{pattern}' matches no file; looked for {_few(names)}")


def _split(path: Path) -> tuple[Path, str]:
    """The folders of a pattern that are there under this very name, whatever is in it, and the rest."""
    folder, *parts = [Path(path.anchor), *path.parts[bool(path.anchor) :]]
    while len(parts) > 1 and (folder / parts[0]).is_dir():
        folder /= parts.pop(0)
    return folder, os.path.join(*parts) if parts else ""


def _matches(path: Path) -> list[Path]:
    folder, rest = _split(path)
    if path.exists() or not glob.has_magic(rest):
        return [path]
    return [folder / name for name in sorted(glob.glob(rest, root_dir=folder))]


def braces(text: str) -> list[str]:
    """`a{1,2}{08..10}` -> all six names. Leading zeros are kept, as in a shell. RecipeError for too many."""
    match = _BRACES.search(text)
    if match is None:
        return [text]
    before, rest = text[: match.start()], braces(text[match.end() :])
    parts = _numbers(match[1], text) if _RANGE.fullmatch(match[1]) else match[1].split(",")
    if len(parts) * len(rest) > MOST:
        raise RecipeError(f"'{text}' stands for more than {MOST:,} names")
    return [f"{before}{part}{end}" for part in parts for end in rest]


def _numbers(inside: str, text: str) -> Sequence[str]:
    first, last = inside.split("..")
    start, stop = int(first), int(last)
    if abs(stop - start) >= MOST:
        raise RecipeError(f"'{text}' stands for more than {MOST:,} names")
    padded = any(len(number) > 1 and number.startswith("0") for number in (first, last))
    width = max(len(first), len(last)) if padded else 0
    step = 1 if stop >= start else -1
    return [f"{number:0{width}d}" for number in range(start, stop + step, step)]


def _some(found: list[Path], message: str) -> list[Path]:
    if not found:
        raise ZooError(message)
    return found


def _few(names: Iterable[object], most: int = 3) -> str:
    texts = [str(name) for name in names]
    return ", ".join(texts[:most]) + (", ..." if len(texts) > most else "")
