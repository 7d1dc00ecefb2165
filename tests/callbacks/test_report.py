"""The report is one file that needs nothing else, tells the truth and survives what the data holds."""

from __future__ import annotations

import errno
import html
import re
import xml.etree.ElementTree as ElementTree
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from callbacks.towers import Pairs, Towers, picture, task, trainer_of
from PIL import Image

from zoo.callbacks import report as module_under_test
from zoo.callbacks import report_page
from zoo.callbacks.evaluation import RetrievalEvaluation
from zoo.callbacks.history import History
from zoo.callbacks.report import Report
from zoo.callbacks.report_charts import Series, line_chart, number, ticks
from zoo.machine import cpu_model
from zoo.types import Item, RetrievalTask

VOID = {"meta", "img", "br", "link"}


class Structure(HTMLParser):
    """Fails on tags that do not close; keeps every address that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(page: str) -> Structure:
    structure = Structure()
    structure.feed(page)
    assert not structure.open
    return structure


def fitted(folder: Path, tasks: list[RetrievalTask], test: bool = False, name: str = "towers") -> str:
    callbacks = [RetrievalEvaluation(), History(every_n_steps=2), Report(folder / "run", name)]
    trainer = trainer_of(folder, *callbacks, max_epochs=2)
    module, data = Towers(), Pairs(tasks)
    trainer.fit(module, data)
    if test:
        trainer.test(module, data, verbose=False)
    return (folder / "run" / "report.html").read_text("utf-8")


def test_a_run_in_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = fitted(tmp_path, [task(), task("image_to_text[de]", 30, 19, pools=True)], test=True)
    structure = parsed(page)
    assert structure.addresses and all(a.startswith("data:image/webp;base64,") for a in structure.addresses)
    assert "script" not in structure.tags and "link" not in structure.tags
    assert not re.search(r"url\(|@import|https?://", page)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["report.html"]
    for text in (
        "towers",
        "Towers",
        "<h2>Test results</h2>",
        "<h2>Validation results at step 20</h2>",
        "24.39 %",
        "times chance",
    ):
        assert text in page, text
    assert re.search(r"thing &lt;\d+&gt;", page)
    for text in ("find the picture", "9 candidates each", "samples", "torch ", "embedding-zoo "):
        assert text in page, text
    titles = re.findall(r"<figcaption>([^<]+)", page)
    assert titles == [
        "loss",
        "learning rate",
        *(f"{m} on validation" for m in ("recall@1", "recall@10", "mrr", "ndcg@10")),
    ]
    assert page.count('class="card example"') == 12
    assert f"report: {(tmp_path / 'run' / 'report.html').resolve()}" in capsys.readouterr().out


def test_every_drawing_is_well_formed(tmp_path: Path) -> None:
    page = fitted(tmp_path, [task()])
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 6
    for drawing in drawings:
        points = [p for line in ElementTree.fromstring(drawing).iter("polyline") for p in line.attrib["points"].split()]
        assert points
        for point in points:
            x, y = map(float, point.split(","))
            assert 0 <= x <= 380 and 0 <= y <= 220


def test_right_candidates_are_marked_and_the_missed_one_is_shown(tmp_path: Path) -> None:
    one = task(queries=23, candidates=41)
    evaluation = RetrievalEvaluation()
    trainer_of(tmp_path, evaluation, Report(tmp_path)).validate(Towers(), Pairs([one]), verbose=False)
    page = (tmp_path / "report-validate.html").read_text("utf-8")
    examples = evaluation.results["val"][0].examples
    cards = page.split('class="card example"')[1:]
    assert len(cards) == len(examples) == 6
    for card, example in zip(cards, examples, strict=True):
        hit = example.rank <= 5
        assert card.count("✓ right") == 1
        assert card.count("<li") == (5 if hit else 6)
        assert ("missed" in card) == (not hit)
        assert f"right one at {example.rank:,.0f} of 41" in card
        assert html.escape(one.queries[example.query].text or "") in card
    assert examples[0].rank <= 5 < examples[-1].rank


def test_measuring_later_does_not_replace_the_report_of_the_training(tmp_path: Path) -> None:
    page = fitted(tmp_path, [task()])
    folder = tmp_path / "run"
    trainer_of(tmp_path, RetrievalEvaluation(), History(), Report(folder)).test(
        Towers(), Pairs([task()]), verbose=False
    )
    assert (folder / "report.html").read_text("utf-8") == page
    assert "Test results" in (folder / "report-test.html").read_text("utf-8")


def test_what_data_holds_is_text_and_never_markup(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script>$title'
    one = task('t<b>"[en]', 12, 12)
    queries = [Item(text=evil, instruction=evil)] * 12
    broken = [
        Item(images=(b"no picture " + evil.encode(),)),
        Item(images=(tmp_path / "<i>gone.png",)),
        *one.candidates[2:],
    ]
    page = fitted(
        tmp_path, [RetrievalTask(one.name, queries, broken, one.relevant, metrics=one.metrics)], name="<u>run"
    )
    structure = parsed(page)
    assert not {"script", "u"} & set(structure.tags)
    assert html.escape(evil) in page and "&lt;u&gt;run" in page


def huge(folder: Path) -> Path:
    """A PNG whose header claims far more pixels than it holds."""
    path = folder / "huge.png"
    data = bytearray(picture(1))
    data[16:24] = (12_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    return path


def test_pictures_that_cannot_be_shown_say_why(tmp_path: Path) -> None:
    assert "picture not shown: image is empty" in report_page.thumbnail(b"")
    assert "not a picture in one of the formats" in report_page.thumbnail(b"text")
    assert "truncated" in report_page.thumbnail(picture(1)[:-40])
    assert "does not exist" in report_page.thumbnail(tmp_path / "gone.png")
    assert "12000x12000 pixels, more than 64000000" in report_page.thumbnail(huge(tmp_path))
    assert all("<img" not in report_page.thumbnail(bad) for bad in (b"", huge(tmp_path), tmp_path))


def test_only_raster_formats_are_opened(tmp_path: Path) -> None:
    """Pillow hands EPS to another program, and a task's picture may be anything."""
    Image.new("RGB", (20, 20)).save(tmp_path / "page.eps")
    assert "not a picture in one of the formats" in report_page.thumbnail(tmp_path / "page.eps")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "I;16", "1"])
def test_pictures_of_every_mode(mode: str, tmp_path: Path) -> None:
    for source in (Image.new(mode, (300, 20)), Image.new(mode, (1, 1))):
        assert report_page.thumbnail(source).startswith('<img alt="" src="data:image/webp;base64,')
        assert source.size in ((300, 20), (1, 1))  # the sample's own picture is not touched


def test_a_report_that_cannot_be_written_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, text: str, encoding: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    history = History()
    with monkeypatch.context() as patch:
        patch.setattr(module_under_test.Path, "write_text", full)
        trainer_of(tmp_path, RetrievalEvaluation(), history, Report(tmp_path / "run"), max_epochs=3).fit(
            Towers(), Pairs([task()])
        )
    assert len(history.curves["val/primary"]) == 3
    assert capsys.readouterr().out.count("warning: the report can't be written: no space left to write") == 1
    assert list((tmp_path / "run").iterdir()) == []


def test_a_run_without_evaluation(tmp_path: Path) -> None:
    trainer_of(tmp_path, Report(tmp_path), History(1), max_epochs=1, limit_val_batches=0).fit(Towers(), Pairs([]))
    page = (tmp_path / "report.html").read_text("utf-8")
    parsed(page)
    assert "Examples" not in page and "<figcaption>loss" in page


def test_fast_dev_run_writes_nothing(tmp_path: Path) -> None:
    trainer_of(tmp_path, RetrievalEvaluation(), Report(tmp_path / "run"), fast_dev_run=True).fit(
        Towers(), Pairs([task()])
    )
    assert not (tmp_path / "run").exists()


def test_many_tasks_are_drawn_as_their_mean() -> None:
    lines = [Series(f"t{i}", [(10.0, float(i)), (20.0, i + 1.0)], 0.5) for i in range(9)]
    mean = report_page._mean(lines)
    assert mean == Series("mean of 9 tasks", [(10.0, 4.0), (20.0, 5.0)], 0.5)


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0, 100, [0, 25, 50, 75, 100]),
        (3, 97, [0, 25, 50, 75, 100]),
        (0.012, 0.047, [0.01, 0.02, 0.03, 0.04, 0.05]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks(low: float, high: float, wanted: list[float]) -> None:
    assert ticks(low, high, 5) == pytest.approx(wanted)


@pytest.mark.parametrize(("low", "high"), [(0, 0), (5, 5), (1e-9, 1e-9), (-3, -3), (0, 1e-7), (10, 11), (1, 123456)])
def test_ticks_hold_their_range(low: float, high: float) -> None:
    for whole in (False, True):
        found = ticks(low, high, 5, whole)
        assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 8
        assert found == sorted(set(found))
        assert not whole or all(tick == int(tick) for tick in found)


def test_numbers_are_short() -> None:
    assert [number(v) for v in (0, 0.05, 12.5, 1200, 3e-5, 2.5e-4)] == [
        "0",
        "0.05",
        "12.5",
        "1,200",
        "3e-5",
        "2.5e-4",
    ]


def test_a_chart_leaves_out_what_is_not_finite() -> None:
    drawn = line_chart("loss", [Series("loss", [(1, 2.0), (2, float("nan")), (3, float("inf")), (4, 1.0)])], "loss")
    assert drawn.count("<circle") == 2 and "nan" not in drawn and "inf" not in drawn
    assert line_chart("loss", [Series("loss", [(1, float("nan"))])], "loss") == ""


def test_cpu_model(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Fast CPU @ 9 GHz\n")
    assert cpu_model(info) == "Fast CPU @ 9 GHz"
    assert cpu_model(tmp_path / "none")
