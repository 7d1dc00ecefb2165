"""Places on their way into a model, and the places of time zones with the flags of their countries."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.data.processors.collate import content_key
from zoo.data.processors.dual import DualProcessor
from zoo.data.processors.dual_arrays import Picture
from zoo.data.sources.places import FlagPlaces, PlaceTasks, read_flags, read_places
from zoo.errors import SampleError
from zoo.items import to_items
from zoo.types import Item, Sample

VIENNA, SYDNEY = (48.2, 16.4), (-33.9, 151.2)
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "build_places.py"
ZONES = """# a comment
AD\t+4230+00131\tEurope/Andorra
AQ\t-7750+16636\tAntarctica/McMurdo\tNew Zealand time
US\t+384749-1215926\tAmerica/Somewhere
"""


def processor(**arguments: Any) -> DualProcessor:
    return DualProcessor("packaged:emoji-tokenizer.json", Picture(size=16), **arguments)


def inputs(*items: Item, **arguments: Any) -> dict[str, torch.Tensor]:
    samples = [Sample(str(i), {"query": item}) for i, item in enumerate(items)]
    return processor(places=True, **arguments)(samples).views["query"]


# ---- to a model ------------------------------------------------------------------------------------------------------


def test_places_go_with_their_rows() -> None:
    batch = inputs(Item("a cat"), Item(place=VIENNA), Item("a dog", place=SYDNEY))
    assert batch["place_rows"].tolist() == [1, 2] and batch["text_rows"].tolist() == [0, 2]
    assert batch["places"].dtype == torch.float32
    torch.testing.assert_close(batch["places"], torch.tensor([VIENNA, SYDNEY]))
    first, second = processor().split(batch, 2)
    assert first["place_rows"].tolist() == [1] and second["place_rows"].tolist() == [0]
    torch.testing.assert_close(second["places"], torch.tensor([SYDNEY]))
    assert "places" not in inputs(Item("a cat"))


@pytest.mark.parametrize("place", [(90.1, 0), (-91, 0), (0, 180.5), (0, -181), (float("nan"), 0), (0, float("nan"))])
def test_what_is_no_place_is_refused(place: tuple[float, float]) -> None:
    with pytest.raises(SampleError, match=r"1 \(query\): the place \(.*latitude lies within -90 and 90"):
        inputs(Item(place=VIENNA), Item(place=place))


def test_models_without_an_encoder_for_places_say_so(tmp_path: Path) -> None:
    from tiny import vlm_encoder

    sample = Sample("x", {"query": Item("a cat", place=VIENNA)})
    for refusing in (processor(), vlm_encoder(tmp_path).processor):
        with pytest.raises(SampleError, match=r"x \(query\): this model takes no places; leave the place out"):
            refusing([sample])


def test_equal_places_are_duplicates() -> None:
    assert content_key(Item(place=(0.0, 5.0))) == content_key(Item(place=(-0.0, 5.0)))
    keys = {content_key(item) for item in (Item("a"), Item("a", place=VIENNA), Item("a", place=SYDNEY))}
    assert len(keys) == 3
    assert content_key(Item(place=VIENNA, key="zone")) == content_key(Item(place=SYDNEY, key="zone"))


def test_places_as_people_give_them() -> None:
    assert to_items([{"place": [48.2, 16]}, {"text": "a", "place": SYDNEY}]) == [
        Item(place=(48.2, 16.0)),
        Item("a", place=SYDNEY),
    ]
    for wrong in ("48.2, 16.4", [48.2], [48.2, "16.4"], [1, 2, 3]):
        with pytest.raises(SampleError, match="item 0: 'place' is a latitude and a longitude"):
            to_items([{"place": wrong}])
    with pytest.raises(SampleError, match="neither text nor image nor place"):
        to_items([{"place": None}])


# ---- of the time zones -----------------------------------------------------------------------------------------------


def test_the_table_is_that_of_the_tz_database() -> None:
    spec = importlib.util.spec_from_file_location("build_places", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.rows(ZONES) == [
        ("AD", 42.5, 1.51667, "Europe/Andorra"),
        ("AQ", -77.83333, 166.6, "Antarctica/McMurdo"),
        ("US", 38.79694, -121.99056, "America/Somewhere"),
    ]


def test_every_country_is_in_one_split_or_trains_with_one_place() -> None:
    places = read_places()
    assert len(places) == 418 and all(place.country in read_flags() for place in places)
    training = [place for place in places if place.split == "train"]
    assert len({place.country for place in training}) == len(training) == len(FlagPlaces()) == 168
    known = {place.country for place in training}
    assert all(place.known == (place.country in known) for place in places)
    assert not {p.country for p in places if p.split == "val" and not p.known} & {
        p.country for p in places if p.split == "test" and not p.known
    }
    by_name = {place.zone: place for place in places}
    assert by_name["Europe/Vienna"].latitude == pytest.approx(48.2167, abs=1e-4)
    assert read_flags()["AT"].names["en"] == "flag: Austria"


def test_pairs_of_place_and_flag_hold_no_text() -> None:
    source = FlagPlaces()
    listed = list(source.items())
    for index in (0, 5, 167):
        sample = source.draw(index, random.Random(index))
        place, flag = sample.views["query"], sample.views["target"]
        assert place.text is None and flag.text is None and place.place is not None
        assert place in listed and flag in listed
        assert sample.label == read_flags()[source.records[index].country].label


def test_tasks_show_places_that_training_has_not_seen() -> None:
    trained = {item.place for item in FlagPlaces().items() if item.place is not None}
    tasks = {task.name: task for task in PlaceTasks("test").tasks()}
    assert len(tasks) == 6
    for name, task in tasks.items():
        assert not trained & {item.place for item in (*task.queries, *task.candidates) if item.place is not None}, name
        assert len(task.queries) == len(task.relevant) > 10 and all(task.relevant)
    task = tasks["place_to_text[new]"]
    countries = {place.zone: place.country for place in read_places()}
    for query, right in zip(task.queries, task.relevant, strict=True):
        assert [task.candidates[i].text for i in right] == [read_flags()[countries[query.key]].names["en"]]
    task = tasks["text_to_place[known]"]
    number = next(i for i, item in enumerate(task.queries) if item.text == "flag: United States")
    assert all(task.candidates[i].key.startswith(("America/", "Pacific/")) for i in task.relevant[number])
