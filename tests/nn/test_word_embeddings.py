"""Frozen word embeddings: where they come from, what is kept of them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from zoo.errors import RecipeError, WeightsError
from zoo.nn.word_embeddings import WordEmbeddings


def test_random_ones_are_unit_fixed_and_in_no_checkpoint() -> None:
    words = WordEmbeddings(7, 4)
    vectors, prior = words()
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(7))
    torch.testing.assert_close(prior, torch.full((7,), 1 / 7))
    assert torch.equal(vectors, WordEmbeddings(7, 4)()[0]) and not torch.equal(
        vectors, WordEmbeddings(7, 4, seed=1)()[0]
    )
    assert not words.state_dict() and not list(words.parameters())


def test_pretrained_ones_are_read_when_fitting_starts(tmp_path: Path) -> None:
    wanted = torch.arange(28.0).reshape(7, 4)
    save_file({"lm.embed.weight": wanted, "other": torch.zeros(3)}, tmp_path / "model.safetensors")
    words = WordEmbeddings(7, 4, pretrained=str(tmp_path), tensor="lm.embed.weight")
    words.load_pretrained()
    assert torch.equal(words()[0], wanted)
    with pytest.raises(WeightsError, match=r"no tensor 'embed'; of the shape \(7, 4\) there are: lm.embed.weight"):
        WordEmbeddings(7, 4, pretrained=str(tmp_path), tensor="embed").load_pretrained()
    with pytest.raises(WeightsError, match=r"is \(7, 4\): set words and width"):
        WordEmbeddings(6, 4, pretrained=str(tmp_path), tensor="lm.embed.weight").load_pretrained()


def test_packaged_embeddings_of_a_shipped_text_tower() -> None:
    words = WordEmbeddings(
        21727, 384, pretrained="packaged:clip-emoji", tensor="text.model.embeddings.word_embeddings.weight"
    )
    before = words()[0].clone()
    words.load_pretrained()
    assert not torch.equal(words()[0], before) and torch.isfinite(words()[0]).all()


def test_prior_follows_frequencies(tmp_path: Path) -> None:
    path = tmp_path / "frequencies.json"
    path.write_text(json.dumps([0.5, 0.25, 0.25]))
    prior = WordEmbeddings(3, 2, frequencies=str(path))()[1]
    torch.testing.assert_close(prior, torch.tensor([2.0, 1.0, 1.0]).softmax(0))
    with pytest.raises(RecipeError, match="each of 4 words"):
        WordEmbeddings(4, 2, frequencies=str(path))
    path.write_text("[1, ")
    with pytest.raises(RecipeError, match="can't be read"):
        WordEmbeddings(3, 2, frequencies=str(path))
