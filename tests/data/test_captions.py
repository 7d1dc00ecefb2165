"""The caption filter: against counts made by hand."""

from __future__ import annotations

import pickle

import pytest

from zoo.data.captions import CaptionFilter
from zoo.errors import RecipeError

LOOSE = {"max_images": 0, "min_words": 0, "max_words": 0}


def kept(captions: list[list[str]], **settings: int) -> list[tuple[str, ...]]:
    rules = pickle.loads(pickle.dumps(CaptionFilter(**{**LOOSE, **settings}).fit(captions)))
    return [rules.kept(several) for several in captions]


def test_the_defaults_are_those_of_align() -> None:
    found = CaptionFilter()
    assert (found.max_images, found.min_words, found.max_words) == (10, 3, 20)


def test_length_in_words() -> None:
    captions = [["one two", "one two three"], ["  one\ttwo \n three four  "], ["one two three four five"]]
    assert kept(captions, min_words=3, max_words=4) == [("one two three",), (captions[1][0],), ()]


def test_captions_of_too_many_pictures() -> None:
    captions = [["a stock photo", "a red car"], ["A stock  Photo"], ["a stock photo"], ["a red car"]]
    assert kept(captions, max_images=2) == [("a red car",), (), (), ("a red car",)]


def test_a_caption_repeated_for_one_picture_counts_once() -> None:
    assert kept([["a cat", "a cat", "a cat"], ["a dog"]], max_images=1) == [("a cat",) * 3, ("a dog",)]


def test_rare_words() -> None:
    captions = [["a red car"], ["a blue car"], ["A Red bus"], ["a bus"]]
    assert kept(captions, min_count=2) == [("a red car",), (), ("A Red bus",), ("a bus",)]


def test_reasons() -> None:
    captions = [["x y z"], ["x y z"], ["x y z w"], ["x"], ["a b c d e"]]
    rules = CaptionFilter(max_images=1, min_words=2, max_words=4, min_count=2).fit(captions)
    assert [rules.reason(text) for (text,) in captions] == [
        "captions of more than 1 pictures",
        "captions of more than 1 pictures",
        "captions with a word that occurs less than 2 times",
        "captions of less than 2 words",
        "captions of more than 4 words",
    ]


@pytest.mark.parametrize("settings", [{"max_images": -1}, {"min_count": 0}, {"min_words": 5, "max_words": 4}])
def test_rules_that_nothing_can_pass(settings: dict[str, int]) -> None:
    with pytest.raises(RecipeError):
        CaptionFilter(**settings)


def test_no_captions_at_all() -> None:
    assert CaptionFilter().fit([]).kept(["a b c"]) == ("a b c",)
