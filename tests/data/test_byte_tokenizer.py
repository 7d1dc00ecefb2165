"""The packaged tokenizer of bytes: nothing is unknown, nothing is lost."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from zoo.files import locate


@pytest.mark.parametrize("text", ["a red dog", "  Ünïcode, 日本 😀\n", "<pad>", "".join(map(chr, range(1, 300)))])
def test_one_token_per_byte(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(locate("packaged:bytes-tokenizer.json")))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert len(ids) == len(text.encode()) and 0 not in ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.get_vocab_size() == 257 and tokenizer.token_to_id("<pad>") == 0
