"""One way of reading text files: what a line is, which encodings are taken, what is said of the others."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from zoo.data.processors.collate import collate
from zoo.data.text_files import JsonLines, check_unicode, decoded, json_line, lines_of, read_json, read_text
from zoo.errors import SampleError, ZooError
from zoo.types import Item, Sample

INSIDE = "a dog on\u2028a sofa\x0bwith a\x85blanket\x0c\x1c\x1d\x1e\u2029here"
"""One line, by everything but `str.splitlines`."""


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_only_a_line_feed_ends_a_line() -> None:
    assert list(lines_of(f"{INSIDE}\r\n\n  x \n")) == [(1, INSIDE), (3, "x")]
    assert list(lines_of("")) == []


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n \r\n"])
def test_rows_of_jsonl(mark: bytes, end: bytes, tmp_path: Path) -> None:
    records = [{"id": 1, "text": INSIDE}, {"text": "\ud83d"}, {"id": "x"}]
    raw = [json.dumps(records[0], ensure_ascii=False).encode(), *(json.dumps(r).encode() for r in records[1:])]
    lines = JsonLines(write(tmp_path / "x.jsonl", mark + end.join(raw)))
    assert [lines[row] for row in (2, 0, 1)] == [records[row] for row in (2, 0, 1)] and len(lines) == 3
    assert lines.names() == ["id", "text"] and lines.value("id", 1) is None
    again = pickle.loads(pickle.dumps(lines))
    assert [again[row] for row in range(3)] == records


def test_a_forked_process_has_a_position_of_its_own(tmp_path: Path) -> None:
    lines = JsonLines(write(tmp_path / "x.jsonl", "".join(f'{{"n": {n}}}\n' for n in range(5000))))
    assert lines[4999] == {"n": 4999}
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(lines.__getitem__, range(5000)) == [{"n": n} for n in range(5000)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}'.encode("utf-16"), "is UTF-16.*UTF-8 is expected"),
        ('{"text": "a"}'.encode("utf-16-be"), "is UTF-16.*UTF-8 is expected"),
        ('{"text": "a"}'.encode("utf-32-le"), "is UTF-16, UTF-32.*UTF-8 is expected"),
        (b'[\n{"text": "a"},\n{"text": "b"}\n]\n', "is one JSON array, not JSONL: write one object a line"),
        (b' [{"text": "a"}, {"text": "b"}]', "is one JSON array, not JSONL"),
    ],
)
def test_files_that_are_no_jsonl_say_it_once(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=rf"x\.jsonl {message}"):
        JsonLines(write(tmp_path / "x.jsonl", content))


def test_lines_that_are_no_object_keep_their_row(tmp_path: Path) -> None:
    content = b'{"n": 0}\n\n[1]\n{"n"\n"x"\n\xff\n{"n": ' + b"9" * 5000 + b"}\n" + b"[" * 100_000 + b'\n{"n": 7}\n'
    lines = JsonLines(write(tmp_path / "x.jsonl", content))
    assert len(lines) == 8 and lines[0] == {"n": 0} and lines[7] == {"n": 7}
    for row in range(1, 7):
        with pytest.raises(SampleError, match=rf"x\.jsonl line {row + 2} is no JSON"):
            lines[row]
    with pytest.raises(ZooError, match=r"has no line that is a JSON object; the first: .*line 1 is no JSON"):
        JsonLines(write(tmp_path / "y.jsonl", "no\nno")).names()


def test_whole_files(tmp_path: Path) -> None:
    assert read_text(write(tmp_path / "a", "\ufeffcafé")) == "café" == decoded("café".encode(), "x")
    assert read_json(write(tmp_path / "b", b'\xef\xbb\xbf{"a": [1]}')) == {"a": [1]}
    for content in (b"\xff\xfea\0", b"caf\xe9"):
        with pytest.raises(SampleError, match=r"c is (not UTF-8|UTF-16)"):
            read_text(write(tmp_path / "c", content))
    for content in ("{", "[" * 100_000):
        with pytest.raises(SampleError, match=r"d can't be read"):
            read_json(write(tmp_path / "d", content))
    with pytest.raises(SampleError, match=r"gone can't be read: No such file"):
        read_text(tmp_path / "gone")


@pytest.mark.parametrize("field", ["text", "instruction", "key", "name"])
def test_no_item_goes_on_with_half_a_surrogate_pair(field: str) -> None:
    """Tokenizers, tables and hashes would each fail in a way of their own."""
    item = Item(text="a", instruction="b", key="c")
    sample = Sample(
        "x\ud83d" if field == "name" else "x",
        {"query": item if field == "name" else replace(item, **{field: "\ud83d"})},
    )
    with pytest.raises(SampleError, match=rf"the {field}.* is not valid Unicode: '.*\\ud83d"):
        collate([sample], lambda view, items, names: {})


def test_half_a_surrogate_pair() -> None:
    """UTF-8 can't hold it, JSON can write it."""
    assert check_unicode("🐕 ü", "x") == "🐕 ü"
    with pytest.raises(SampleError, match=r"row 3: the text is not valid Unicode: 'cut \\ud83d'"):
        check_unicode("cut \ud83d", "row 3: the text")
    record = {"id": "a\ud83d\u2028é"}
    assert json_line(record).count(b"\n") == 1 and json.loads(json_line(record)) == record
    assert json_line({"id": "é"}) == '{"id": "é"}\n'.encode()
