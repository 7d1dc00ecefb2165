"""Make the tokenizer of bytes: 256 tokens and padding, no vocabulary to learn and no unknown character.

python scripts/build_byte_tokenizer.py --out zoo/data/packaged/bytes-tokenizer.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

PAD = "<pad>"


def byte_tokenizer() -> Tokenizer:
    """Token 0 is padding; the others are single bytes of UTF-8."""
    pieces = [PAD, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    byte_tokenizer().save(str(parser.parse_args().out), pretty=False)
