"""Which captions of a web-scale collection are worth training on, told from the texts alone."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from zoo.errors import RecipeError


@dataclass(frozen=True, slots=True)
class CaptionFilter:
    """ALIGN's rules for captions, by length and frequency (arXiv:2102.05918, section 3, "Text-based filtering").

    The defaults are ALIGN's, but for `min_count`: they drop captions with a word or pair of words outside the 100
    million most frequent ones, which means nothing for smaller collections. Words are what white space separates, so
    `min_words` and `max_words` do not suit Chinese, Japanese or Thai.

    Args:
        max_images: drop captions that more pictures than this have, such as "image" or "1920x1080"; 0 = keep them.
        min_words: drop shorter captions.
        max_words: drop longer captions; 0 = keep them.
        min_count: drop captions with a word that occurs less often than this in all captions; 1 = keep them.
    """

    max_images: int = 10
    min_words: int = 3
    max_words: int = 20
    min_count: int = 1

    def __post_init__(self) -> None:
        if min(self.max_images, self.min_words, self.max_words) < 0 or self.min_count < 1:
            raise RecipeError(f"{self}: numbers are not negative, and min_count is at least 1")
        if self.max_words and self.max_words < self.min_words:
            raise RecipeError(
                f"a caption of at least {self.min_words} and at most {self.max_words} words does not exist"
            )

    def fit(self, captions: Iterable[Sequence[str]]) -> CaptionRules:
        """Count over the captions of all pictures. Memory: 8 bytes a caption, and the vocabulary if `min_count` asks."""
        words: Counter[str] = Counter()
        texts = array("Q")
        for several in captions:
            if self.max_images:
                texts.extend({_code(text) for text in several})
            if self.min_count > 1:
                for text in several:
                    words.update(_words(text))
        found, counts = np.unique(np.frombuffer(texts, np.uint64), return_counts=True)
        shared = frozenset(found[counts > self.max_images].tolist()) if self.max_images else frozenset()
        known = frozenset(word for word, count in words.items() if count >= self.min_count)
        return CaptionRules(self, shared, known)


@dataclass(frozen=True, slots=True)
class CaptionRules:
    """A filter that has seen its collection.

    shared: codes of the captions that too many pictures have; known: the words that are frequent enough.
    """

    filter: CaptionFilter
    shared: frozenset[int]
    known: frozenset[str]

    def kept(self, captions: Sequence[str]) -> tuple[str, ...]:
        """Those of one picture that pass."""
        return tuple(text for text in captions if not self.reason(text))

    def reason(self, caption: str) -> str:
        """Why a caption is dropped; "" if it is not."""
        words = _words(caption)
        if len(words) < self.filter.min_words:
            return f"captions of less than {self.filter.min_words} words"
        if self.filter.max_words and len(words) > self.filter.max_words:
            return f"captions of more than {self.filter.max_words} words"
        if self.shared and _code(caption) in self.shared:
            return f"captions of more than {self.filter.max_images} pictures"
        if self.filter.min_count > 1 and not self.known.issuperset(words):
            return f"captions with a word that occurs less than {self.filter.min_count} times"
        return ""


def _words(text: str) -> list[str]:
    return text.lower().split()


def _code(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(_words(text)).encode(), digest_size=8).digest(), "big")
