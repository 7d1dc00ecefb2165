"""A long embedding run cut into shards: what is done stays done when it is stopped, and serves only the same run."""

from __future__ import annotations

import glob
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zoo.data.text_files import JsonLines, check_unicode, json_line
from zoo.errors import ZooError
from zoo.files import PARTIAL, replacing
from zoo.locks import writing
from zoo.vectors.files import LOG_VAR_NPY, read_facts, write_npy, write_vectors

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = (".parquet", ".npy")
Earlier = Literal["refuse", "replace", "discard"]
Former = Callable[[], Mapping[str, Any]]
NAMED_FILES = "files that rows name"
_LATER = (
    NAMED_FILES,
)  # facts that results of earlier versions don't have: where they are missing, they are not asked for
_FILES = ("", LOG_VAR_NPY, ".ids.jsonl", ".json", ".bad.jsonl")  # endings of what makes up a result
_PART = re.compile(r"part-\d+\.(parquet|bad\.jsonl)|run\.json")
_SMALLEST = 256  # rows: what is lost at most when a run is stopped
_MOST = 2000  # shards: more files in a folder serve nobody


class Shards:
    """The finished parts of one result, in a `with` block: another process that wants the same result waits for its end.

    Args:
        out: the result, `.parquet` or `.npy`; the parts lie in `<out>.parts/` until all are there.
        facts: what the vectors depend on: equal facts = the same result. Kept in the result.
        rows: how many rows the input has.
        earlier: what to do with what another run left there: "refuse", "replace" it, or "discard" even the same run's.
        former: gives those facts that earlier versions put in another way.

    Raises:
        ZooError: `out` has another ending; `out` or its parts come from another run: says what differs.
    """

    def __init__(
        self, out: Path, facts: Mapping[str, Any], rows: int, earlier: Earlier = "refuse", former: Former = dict
    ) -> None:
        if out.suffix not in FORMATS:
            raise ZooError(f"'{out}' is no name for a result: it ends in {' or '.join(FORMATS)}")
        check_unicode(str(out), "the name of the result")
        self.out, self.rows = out, rows
        self.facts: dict[str, Any] = _as_read(facts)
        self.folder, self.bad_list = out.with_name(out.name + ".parts"), out.with_name(out.name + ".bad.jsonl")
        self.size = max(_SMALLEST, -(-rows // _MOST))
        self.count = -(-rows // self.size)
        self.earlier, self.former = earlier, former
        self._held = ExitStack()

    def __enter__(self) -> Shards:
        with ExitStack() as held:
            if not self._is_done():
                held.enter_context(writing(self.folder, waiting=self._say_waiting))
                held.callback(self._remove_empty)
                self._take_over()
            self._held = held.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def _is_done(self) -> bool:
        """Whether nothing is to be written; then the folder need not even be writable."""
        if self.earlier == "discard" or self.folder.exists():
            return False
        try:
            self._check(_result_facts(self.out), "")
        except ZooError:  # said, or mended, once nobody else writes there
            return False
        return self.complete

    def _take_over(self) -> None:
        """Decide what becomes of what is there."""
        if self.out.is_dir():
            raise ZooError(f"{self.out} is a folder; choose another --out")
        self._remove_partials()
        if self.earlier == "discard":
            self._discard()
        try:
            self._check(_result_facts(self.out), f"{self.out} is")
            self._check(_started_facts(self.folder), f"{self.folder} belongs to")
        except ZooError:
            if self.earlier != "replace":
                raise
            self._discard()
        if self.complete:  # another process has just made it, or was stopped while it tidied up
            self._remove_parts()

    def _say_waiting(self) -> None:
        print(f"another process is making {self.out}; this one waits for it", file=sys.stderr)

    def _remove_empty(self) -> None:
        with suppress(OSError):  # holds something, or is gone
            self.folder.rmdir()

    def _remove_parts(self) -> None:
        """But not their folder, which is what is locked."""
        for path in self.folder.iterdir():
            if _PART.fullmatch(path.name):
                path.unlink()

    def _remove_partials(self) -> None:
        """What a killed run left beside the result."""
        for path in self.out.parent.glob(f".{glob.escape(self.out.name)}*.partial"):
            name = PARTIAL.fullmatch(path.name)
            if name and name[1] in [self.out.name + suffix for suffix in _FILES]:
                path.unlink(missing_ok=True)

    def _discard(self) -> None:
        self._remove_parts()
        for suffix in _FILES:
            self.out.with_name(self.out.name + suffix).unlink(missing_ok=True)

    def _check(self, earlier: Mapping[str, Any] | None, subject: str) -> None:
        if earlier is None:
            return
        changed = _changed(earlier, self.facts)
        if not changed or not _changed(earlier, self.facts | _as_read(self.former())):
            return
        raise ZooError(
            f"{subject} the result of another run: {'; '.join(changed)}. "
            "Choose another --out, or discard it with --restart"
        )

    @property
    def complete(self) -> bool:
        """Whether the result is there already."""
        return self.out.is_file()

    @property
    def bad(self) -> int:
        """How many rows the result leaves out."""
        return len(JsonLines(self.bad_list)) if self.bad_list.is_file() else 0

    def missing(self) -> list[int]:
        """Numbers of the shards that are still to be made; shard k holds the rows from k * size on."""
        return [k for k in range(self.count) if not self._part(k).is_file()]

    def save(self, number: int, table: pa.Table, bad: Sequence[Mapping[str, Any]]) -> None:
        """Keep a finished shard: the table of its vectors, and a record of each row that could not be embedded."""
        started = self.folder / "run.json"
        if not started.is_file():
            with replacing(started) as partial:
                partial.write_text(json.dumps(self.facts, indent=2), "utf-8")
        with replacing(self._bad(number)) as partial:
            partial.write_bytes(b"".join(map(json_line, bad)))
        write_vectors(self._part(number), [table])

    def finish(self) -> None:
        """Join the parts into the result, list the bad rows in `<out>.bad.jsonl`, remove the parts.

        Raises:
            ZooError: not one row could be embedded; says why the first could not. A part can't be read.
        """
        bad = b"".join(_read(self._bad(k)) for k in range(self.count))
        rows = sum(len(table) for table in self._tables())
        if not rows:
            first = json.loads(bad.partition(b"\n")[0])
            raise ZooError(f"none of the {self.rows} rows could be used; the first, '{first['id']}': {first['error']}")
        if bad:
            with replacing(self.bad_list) as partial:
                partial.write_bytes(bad)
        else:  # one of an earlier result would be taken for this one's
            self.bad_list.unlink(missing_ok=True)
        if self.out.suffix == ".npy":
            write_npy(self.out, self._tables(), rows, self.facts)
        else:
            write_vectors(self.out, self._tables())
        self._remove_parts()

    def _tables(self) -> Iterator[pa.Table]:
        import pyarrow.parquet as pq

        for k in range(self.count):
            try:
                table = pq.read_table(self._part(k))
            except (OSError, ValueError) as error:
                raise _damaged(self._part(k), error) from error
            yield table

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.parquet"

    def _bad(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.bad.jsonl"


def _as_read(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as they come back from a file."""
    found: dict[str, Any] = json.loads(json.dumps(dict(facts)))
    return found


def _changed(earlier: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """What differs between the facts of an earlier run and those of this one, in words."""
    return [
        f"{key} was {_short(earlier.get(key))}, is {_short(value)}"
        for key, value in facts.items()
        if earlier.get(key) != value and (key in earlier or key not in _LATER)
    ]


def _started_facts(folder: Path) -> dict[str, Any] | None:
    path = folder / "run.json"
    try:
        facts: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    return facts


def _result_facts(out: Path) -> dict[str, Any] | None:
    if not out.is_file():
        return None
    if out.suffix == ".parquet":
        try:
            return read_facts(out)
        except ZooError as error:
            raise ZooError(f"{error}; choose another --out, or replace it with --restart") from error
    about = out.with_name(out.name + ".json")
    if not about.is_file():
        raise ZooError(
            f"{out} exists and was not written by zoo embed; choose another --out, or replace it with --restart"
        )
    try:
        facts: dict[str, Any] = json.loads(_read(about))
    except (ValueError, RecursionError) as error:
        raise _damaged(about, error) from error
    return facts


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        content.decode()
        return content
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ZooError:
    return ZooError(f"{path} can't be read ({error}); discard what the earlier run left, with --restart or by hand")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
