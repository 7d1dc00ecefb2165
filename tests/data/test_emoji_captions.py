"""Several texts per emoji."""

from __future__ import annotations

import random

import pytest

from zoo.data.sources.emoji import EmojiRetrieval
from zoo.errors import ZooError


def test_several_texts_make_the_text_view_a_tuple() -> None:
    source = EmojiRetrieval(per="base", direction="image_to_text", tag_probability=0.7, captions=4)
    rng, kinds = random.Random(0), set()
    for index in range(40):
        sample = source.draw(index, rng)
        assert list(sample.views) == ["query", "target"] and sample.views["query"].images
        texts = sample.views["target"]
        assert isinstance(texts, tuple) and len(texts) == 4 and all(item.text for item in texts)
        kinds.add(len({item.text for item in texts}))
    assert max(kinds) > 1
    other = EmojiRetrieval(captions=2, instructions=True).draw(3, random.Random(1)).views
    assert isinstance(other["query"], tuple) and all(item.instruction for item in other["query"])


def test_one_text_is_as_before() -> None:
    one, plain = EmojiRetrieval(captions=1), EmojiRetrieval()
    assert one.draw(5, random.Random(2)) == plain.draw(5, random.Random(2))
    with pytest.raises(ZooError, match="captions is 0"):
        EmojiRetrieval(captions=0)
