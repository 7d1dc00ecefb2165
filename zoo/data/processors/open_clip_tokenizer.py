"""CLIP's tokenizer as a tokenizer.json, made from the vocabulary inside the installed open_clip, which is not imported.

Text must come cleaned and lower-cased (`Caption.cleaning: lower`): then the ids are those of `open_clip.SimpleTokenizer`.
The normalizer does what a tokenizer.json can of that, for runtimes that know nothing else.
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zoo.errors import ZooError

SOURCE = "open_clip:tokenizer.json"
_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
_MERGES = 49152 - 256 - 2  # of CLIP's vocabulary; the file holds more (openai/CLIP, simple_tokenizer.py)
_SPECIAL = ("<start_of_text>", "<end_of_text>")
# open_clip's pattern ignores the case: so the long s is an s, and the Greek accent U+0345, whose capital is a letter, falls
# out of every alternative
_WORDS = r"'[sſ]|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}\x{0345}]+"


@cache
def tokenizer_json() -> str:
    """The text of tokenizer.json. ZooError: open_clip is not installed, or its vocabulary is another one."""
    merges = _merges()
    letters = list(_byte_letters().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), *_SPECIAL]
    vocabulary = {word: number for number, word in enumerate(words)}
    return json.dumps(_tokenizer(vocabulary, merges), ensure_ascii=False)


def _merges() -> list[list[str]]:
    spec = find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise ZooError("CLIP's tokenizer is read from open_clip, which is not installed: pip install open_clip_torch")
    path = Path(spec.origin).with_name(_VOCABULARY)
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ZooError(
            f"CLIP's vocabulary can't be read from {path}: {error}; install open_clip_torch again"
        ) from error
    merges = [line.split() for line in lines[1 : _MERGES + 1]]  # the first line is a comment
    if len(merges) != _MERGES or any(len(pair) != 2 for pair in merges):
        raise ZooError(f"{path} is not CLIP's vocabulary: it has not {_MERGES} pairs; install open_clip_torch again")
    return merges


def _byte_letters() -> dict[int, str]:
    """Byte -> the letter that stands for it, in the order of the vocabulary: printable ones stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(rest)}


def _tokenizer(vocabulary: dict[str, int], merges: list[list[str]]) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = [{"id": vocabulary[token], "content": token, **flags, "special": True} for token in _SPECIAL]
    split = {"type": "Split", "pattern": {"Regex": _WORDS}, "behavior": "Removed", "invert": True}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    spaces = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "Sequence", "normalizers": [spaces, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
