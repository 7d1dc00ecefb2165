"""Text files as people have them, read in one way by every source.

UTF-8, with or without a byte order mark. Only a line feed ends a line (a carriage return before it is taken off), because
U+2028, vertical tabs and the like stand inside texts. Blank lines are skipped.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from zoo.errors import SampleError, ZooError

_BOM = b"\xef\xbb\xbf"
_FIRST = 1000  # lines whose fields are taken for the columns of a file


def decoded(content: bytes, where: object) -> str:
    """Bytes as text. SampleError, beginning with `where`, if they are not UTF-8."""
    _check_encoding(content, where)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SampleError(f"{where} is not UTF-8 ({error}); save it as UTF-8") from error


def read_text(path: Path) -> str:
    """A whole file. SampleError if it can't be read, or is not UTF-8."""
    try:
        return decoded(path.read_bytes(), path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """Number, from 1 on, and text of every line that is not blank, without white space around it."""
    for number, line in enumerate(text.split("\n"), 1):
        if stripped := line.strip():
            yield number, stripped


def read_json(path: Path) -> Any:
    """What a JSON file holds. SampleError if it can't be read."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error


def json_line(record: Any) -> bytes:
    """A record as one line of a JSONL file; half a surrogate pair, which UTF-8 can't hold, as its JSON escape."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def check_unicode(text: str, where: str) -> str:
    """The text itself. SampleError if UTF-8 can't hold it: JSON can write half a surrogate pair, and a file name may be in
    another encoding.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        shown = text[max(0, error.start - 20) : error.end + 20]
        raise SampleError(f"{where} is not valid Unicode: {shown!a}; {_CURE}") from error
    return text


_CURE = "take the broken character out, or rename the file"


class JsonLines:
    """The objects of a JSONL file. Where lines begin is found once; a line is parsed when it is asked for.

    Raises:
        ZooError: the file can't be read, is not UTF-8, or is one JSON array.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts, self._numbers = array("q"), array("q")
        self._file: BinaryIO | None = None
        self._process = 0
        try:
            with path.open("rb") as file:
                self._index(file)
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error

    def _index(self, file: BinaryIO) -> None:
        _check_encoding(file.read(64), self.path)
        file.seek(0)
        position = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
        file.seek(position)
        for number, line in enumerate(file, 1):
            if content := line.strip():
                if not self._starts and content.startswith(b"["):
                    self._refuse_array(content)
                self._starts.append(position)
                self._numbers.append(number)
            position += len(line)

    def _refuse_array(self, first: bytes) -> None:
        try:
            found = json.loads(first)
        except (ValueError, RecursionError):
            found = [{}]  # the array goes on in further lines
        if found and all(isinstance(one, dict) for one in found):
            raise ZooError(
                f"{self.path} is one JSON array, not JSONL: write one object a line, for example with `jq -c '.[]'`"
            )

    def __len__(self) -> int:
        return len(self._starts)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}

    def __getitem__(self, row: int) -> dict[str, Any]:
        """The object of row `row`, blank lines not counted. SampleError, which names the line, if there is none."""
        where = f"{self.path} line {self._numbers[row]}"
        try:
            record = json.loads(self._line(self._starts[row]).decode())
        except (OSError, ValueError, RecursionError) as error:
            raise SampleError(f"{where} is no JSON: {error}") from error
        if not isinstance(record, dict):
            raise SampleError(f"{where} is no JSON object")
        return record

    def value(self, column: str, row: int) -> Any:
        """One field; None where a line leaves it out. SampleError as above."""
        return self[row].get(column)

    def names(self) -> list[str]:
        """The fields of the first lines together: a line may leave out what it does not have.

        Raises:
            ZooError: none of these lines is an object; says why the first is not.
        """
        found: dict[str, None] = {}
        problems = []
        for row in range(min(len(self), _FIRST)):
            try:
                found |= dict.fromkeys(self[row])
            except SampleError as error:
                problems.append(error)
        if len(problems) and len(problems) == min(len(self), _FIRST):
            raise ZooError(f"{self.path} has no line that is a JSON object; the first: {problems[0]}")
        return list(found)

    def _line(self, start: int) -> bytes:
        if self._file is None or self._process != os.getpid():  # a forked process would share the position in the file
            self._file, self._process = self.path.open("rb"), os.getpid()
        self._file.seek(start)
        return self._file.readline()


def _check_encoding(first: bytes, where: object) -> None:
    """Refuse UTF-16 and UTF-32, which Windows writes as "Unicode"."""
    if first.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in first[:64]:
        raise SampleError(f"{where} is UTF-16, UTF-32 or no text: UTF-8 is expected; save it as UTF-8")


def _unreadable(path: Path, error: Exception) -> SampleError:
    if isinstance(error, SampleError):
        return error
    return SampleError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}")
