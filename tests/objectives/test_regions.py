"""Scores of regions and texts against loops; order, number and padding of regions; the loss on them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from encoded_rows import WIDTH, check_ranks, check_tiles, close, encoded, leaves, outcome, trained, unit
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.objectives.infonce import InfoNCE
from zoo.objectives.regions import BestMatch, NonLocalSentence, RegionSentence, best_regions
from zoo.objectives.token_matching import TokenMatching
from zoo.objectives.triplet import Triplet
from zoo.types import Embedding


def real(e: Embedding, row: int) -> list[Tensor]:
    return [e.tokens[row, n] for n in range(e.tokens.shape[1]) if e.mask[row, n]]


def best_match(image: Embedding, text: Embedding, i: int, j: int, reduce: str, mutual: bool, normalize: bool) -> Tensor:
    regions, words = real(image, i), real(text, j)
    if normalize:
        regions, words = [v / v.norm() for v in regions], [w / w.norm() for w in words]

    def one_way(left: list[Tensor], right: list[Tensor]) -> Tensor:
        best = [max((w @ v for v in right), key=lambda s: float(s.detach())) for w in left]
        return sum(best) / (len(best) if reduce == "mean" else 1)

    score = one_way(words, regions)
    return (score + one_way(regions, words)) / 2 if mutual else score


def region_sentence(image: Embedding, text: Embedding, i: int, j: int, pool: str, gamma: float) -> Tensor:
    scores = [v @ text.vector[j] / v.norm() for v in real(image, i)]
    if pool == "max":
        return max(scores, key=lambda s: float(s.detach()))
    if pool == "mean":
        return sum(scores) / len(scores)
    powers = [(gamma * s).exp() for s in scores]
    if pool == "lse":
        return (sum(powers) / len(powers)).log() / gamma
    return sum(p * s for p, s in zip(powers, scores, strict=True)) / sum(powers)


def non_local(score: NonLocalSentence, image: Embedding, text: Embedding, i: int, j: int) -> Tensor:
    regions = real(image, i)
    total = torch.zeros(WIDTH, dtype=torch.float64)
    for v in regions:
        query = score.query(v)
        powers = [(query @ score.key(w) / math.sqrt(len(query))).exp() for w in regions]
        seen = sum(p * score.value(w) for p, w in zip(powers, regions, strict=True)) / sum(powers)
        total = total + v + score.output(seen)
    return total / total.norm() @ text.vector[j]


def made(score: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for part in score.modules():
        if isinstance(part, nn.Linear):
            part.reset_parameters()
    return score.double()


SCORES = {
    "dvsa": (BestMatch, {}, best_match, ("sum", False, False)),
    "mean": (BestMatch, {"reduce": "mean", "normalize": True}, best_match, ("mean", False, True)),
    "mutual": (BestMatch, {"reduce": "mean", "mutual": True}, best_match, ("mean", True, False)),
    **{
        pool: (RegionSentence, {"pool": pool, "gamma": 3.0}, region_sentence, (pool, 3.0))
        for pool in ("max", "mean", "lse", "attention")
        if pool != "mean"
    },
    "average": (RegionSentence, {"pool": "mean"}, region_sentence, ("mean", 0.0)),
    "non-local": (NonLocalSentence, {"dim": WIDTH}, None, ()),
}


def build(name: str) -> nn.Module:
    kind, options, _, _ = SCORES[name]
    return made(kind(**options))


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("tokens", [(4, 3), (2, 2)])
def test_scores_equal_the_loop(name: str, tokens: tuple[int, int]) -> None:
    batch, score = encoded(4, 2, tokens), build(name)
    image, text = batch.views["query"], batch.views["target"]
    _, _, slow, arguments = SCORES[name]
    expected = torch.stack(
        [
            torch.stack(
                [
                    non_local(score, image, text, i, j) if slow is None else slow(image, text, i, j, *arguments)
                    for j in range(8)
                ]
            )
            for i in range(4)
        ]
    )
    weights = unit(4, 8, seed=9)
    tensors = [*leaves(batch), *trained(score)]
    found = score(image, text)
    close([found.detach()], [expected.detach()])
    close(outcome((found * weights).sum(), tensors), outcome((expected * weights).sum(), tensors))


@pytest.mark.parametrize("name", SCORES)
def test_neither_order_nor_padding_of_regions_matters(name: str) -> None:
    batch, score = encoded(4, 1, (5, 3)), build(name)
    image, text = batch.views["query"], batch.views["target"]
    before = score(image, text)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(1))
    close([score(Embedding(image.vector, None, image.tokens[:, order], image.mask[:, order]), text)], [before])
    longer = Embedding(image.vector, None, F.pad(image.tokens, (0, 0, 0, 2), value=7.0), F.pad(image.mask, (0, 2)))
    close([score(longer, text)], [before])
    wordier = Embedding(text.vector, None, F.pad(text.tokens, (0, 0, 0, 2), value=7.0), F.pad(text.mask, (0, 2)))
    close([score(image, wordier)], [before])
    assert (score(Embedding(image.vector, None, image.tokens.roll(1, 0), image.mask), text) - before).abs().max() > 1e-3


def test_pools_lie_between_mean_and_max() -> None:
    batch = encoded(4, 1, (5, 0))
    score = {pool: RegionSentence(pool, 4.0)(*batch.views.values()) for pool in ("max", "mean", "lse", "attention")}
    for pool in ("lse", "attention"):
        assert ((score["mean"] < score[pool]) & (score[pool] < score["max"])).all()
        sharp, flat = (RegionSentence(pool, gamma)(*batch.views.values()) for gamma in (1e4, 1e-6))
        torch.testing.assert_close(sharp, score["max"], atol=1e-3, rtol=0)
        torch.testing.assert_close(flat, score["mean"], atol=1e-5, rtol=0)


def test_words_name_their_regions() -> None:
    regions = torch.eye(3)[None]
    words = torch.eye(3)[[2, 0, 1]][None]
    mask = torch.tensor([[1, 1, 0]])
    found = best_regions(Embedding(regions[:, 0], None, regions), Embedding(words[:, 0], None, words, mask))
    assert found.tolist() == [[2, 0, -1]]


OBJECTIVES = {
    "dvsa": lambda: TokenMatching(build("dvsa"), "hinge"),
    "hardest": lambda: TokenMatching(build("mutual"), "hinge", margin=0.3, negatives="hardest"),
    "nce": lambda: TokenMatching(build("mean"), "nce", 0.2, learn="log"),
    "lse": lambda: TokenMatching(build("lse"), "nce", 0.2, duplicates="positive"),
    "non-local": lambda: TokenMatching(build("non-local"), "nce", 0.2, learn="linear", symmetric=False),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_tiles_and_ranks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = encoded(6, 2, (4, 3), labels=torch.tensor([7, -1, 7, -1, 3, -1]))
    batch.weights = torch.linspace(1, 2, 6)
    check_tiles(OBJECTIVES[name], batch, monkeypatch)
    check_ranks(OBJECTIVES[name], batch)


@pytest.mark.parametrize("name", ["dvsa", "mutual", "attention"])
@pytest.mark.parametrize("loss", ["nce", "hinge"])
def test_equals_the_loss_of_the_whole_matrix(name: str, loss: str) -> None:
    batch, score = encoded(5, 1, (4, 3)), build(name)
    scores = score(*batch.views.values())
    assert (scores - scores.T).abs().max() > 0.1
    if loss == "nce":
        expected = sum(F.cross_entropy(s / 0.25, torch.arange(5)) for s in (scores, scores.T)) / 2
    else:
        own, off = scores.diag(), 1 - torch.eye(5, dtype=torch.float64)
        expected = sum(((0.7 + s - own[:, None]).clamp(min=0) * off).sum() for s in (scores, scores.T)) / 5
    tensors = leaves(batch)
    found = outcome(TokenMatching(score, loss, 0.25, margin=0.7)(batch, batch)["loss"], tensors)
    close(found, outcome(expected, tensors))


@pytest.mark.parametrize("loss", ["nce", "hinge"])
@pytest.mark.parametrize("duplicates", ["mask", "positive", "keep"])
def test_with_one_token_it_is_the_loss_on_vectors(loss: str, duplicates: str) -> None:
    batch = encoded(6, labels=torch.tensor([7, -1, 7, -1, 3, -1]))
    tensors = leaves(batch)
    for e in batch.views.values():
        e.tokens = e.vector[:, None]
    found = TokenMatching(BestMatch(), loss, 0.1, margin=0.4, duplicates=duplicates)(batch, batch)["loss"]
    same = InfoNCE(0.1, symmetric=True, duplicates=duplicates) if loss == "nce" else Triplet(0.4, duplicates=duplicates)
    expected = same(batch, batch)["loss"]
    close(outcome(found, tensors), outcome(expected, tensors), 1e-6)  # the temperature is fp32


def test_extreme_temperature() -> None:
    batch = encoded(6, 1, (4, 3))
    found = TokenMatching(build("mean"), "nce", 1e-3, max_scale=None)(batch, batch)["loss"]
    assert all(torch.isfinite(value).all() for value in outcome(found, leaves(batch)))


def test_what_is_missing_is_named() -> None:
    batch = encoded(4, 1, (3, 0))
    with pytest.raises(RecipeError, match="tokens: true"):
        TokenMatching(BestMatch())(batch, batch)
    batch.views["query"].mask[2] = 0
    with pytest.raises(RecipeError, match="row 2 of the view 'query'"):
        TokenMatching(RegionSentence())(batch, batch)
