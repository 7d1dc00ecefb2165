"""FLAIR's loss against a loop over its equations, its texts, its memory, and two processes against one."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from encoded_rows import share_of
from torch import Tensor, nn

from zoo.callbacks.collected import rows_of
from zoo.errors import RecipeError
from zoo.module import EmbeddingModule
from zoo.nn.conditioned_pooling import ConditionedPooling, conditioned_scores
from zoo.objectives import contrastive
from zoo.objectives.flair import Flair, choose_texts, texts_per_sample
from zoo.types import Batch, Embedding, Encoded, Inputs

E, L = 8, 5


def encoded(samples: int = 4, each: int = 3, masked: bool = False, labels: Tensor | None = None) -> Encoded:
    draw = torch.Generator().manual_seed(0)

    def rows(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    owner = torch.arange(samples)
    mask = torch.ones(samples, L)
    if masked:
        mask[1, 2:] = 0
    return Encoded(
        views={
            "query": Embedding(F.normalize(rows(samples, E), dim=-1), tokens=rows(samples, L, E), mask=mask),
            "target": Embedding(F.normalize(rows(samples * each, E), dim=-1)),
        },
        owners={"query": owner, "target": owner.repeat_interleave(each)},
        keys={"query": owner, "target": torch.arange(100, 100 + samples * each)},
        labels=torch.full((samples,), -1) if labels is None else labels,
        weights=torch.ones(samples),
        sample=owner,
    )


def objective(**options: object) -> Flair:
    torch.manual_seed(0)
    loss = Flair(ConditionedPooling(E, 2).double(), temperature=0.2, bias=-2.0, **options)  # type: ignore[arg-type]
    loss.drawn = lambda pictures, samples, each, device: torch.arange(pictures * samples).view(pictures, -1) % each
    return loss


def slow(
    loss: Flair, batch: Encoded, right: set[tuple[int, int]], left_out: set[tuple[int, int]] = frozenset()
) -> float:
    """Both sums of the formula, cell by cell. `right` and `left_out`: pairs of samples besides the own ones."""
    picture, text = batch.views["query"], batch.views["target"]
    samples = len(batch.sample)
    each = len(text.vector) // samples
    drawn = loss.drawn(samples, samples, each, None)

    def cell(seen: Tensor, i: int, j: int) -> float:
        owner = j // each
        if (i, owner) in left_out:
            return 0.0
        sign = 1 if owner == i or (i, owner) in right else -1
        logit = float(seen.detach() @ text.vector[j]) / 0.2 - 2.0
        return math.log1p(math.exp(-sign * logit))

    def as_seen(i: int, j: int) -> Tensor:
        kept = picture.mask[i] > 0
        tokens = picture.tokens[i][kept]
        length = math.sqrt(E) if loss.queries == "unit" else text.norm[j]
        seen = loss.pooling((text.vector[j] * length)[None, None], tokens[None])[0, 0]
        return F.normalize(seen, dim=0)

    mps = sum(cell(picture.vector[i], i, j) for i in range(samples) for j in range(samples * each))
    tcs = 0.0
    for i in range(samples):
        for owner in range(samples):
            shown = range(each) if owner == i else [int(drawn[i, owner])]
            tcs += sum(cell(as_seen(i, owner * each + k), i, owner * each + k) for k in shown)
    return (mps / (samples * each) + tcs / (samples + each - 1)) / 2


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("each", [1, 3])
def test_equals_the_loop(each: int, masked: bool) -> None:
    loss, batch = objective(), encoded(each=each, masked=masked)
    found = loss(batch, batch)
    assert found["loss"].item() == pytest.approx(slow(loss, batch, set()), rel=1e-6)
    assert found["loss"].item() == pytest.approx((found["conditioned"] + found["whole"]).item() / 2)


def short_texts() -> Encoded:
    """Texts so short before they were made unit vectors that the eps of an LN weighs on them."""
    batch = encoded()
    text = batch.views["target"]
    text.norm = torch.linspace(0.003, 0.03, len(text.vector), dtype=torch.float64)
    return batch


def test_official_queries_are_texts_as_they_were() -> None:
    """`visual_proj(text_features, ...)` stands before F.normalize in FlairLoss."""
    loss, batch = objective(queries="official"), short_texts()
    found = loss(batch, batch)["loss"].item()
    assert found == pytest.approx(slow(loss, batch, set()), rel=1e-6)
    assert abs(found - objective()(batch, batch)["loss"].item()) > 1e-3


def test_official_queries_pass_the_gradient_on() -> None:
    """To texts that were made unit vectors here, from the loss of the official code written out for K = 1."""
    draw = torch.Generator().manual_seed(3)
    raw = (torch.randn(4, E, generator=draw, dtype=torch.float64) * 0.01).requires_grad_()
    loss, batch = objective(queries="official"), encoded(each=1)
    batch.views["target"] = Embedding(F.normalize(raw, dim=-1), norm=raw.norm(dim=-1))
    tokens, picture = batch.views["query"].tokens, batch.views["query"].vector
    sign = 2 * torch.eye(4, dtype=torch.float64) - 1
    pooled = loss.pooling(raw.expand(4, -1, -1), tokens)
    logits = torch.einsum("bij,ij->bi", F.normalize(pooled, dim=-1), F.normalize(raw, dim=-1)) / 0.2 - 2.0
    whole = picture @ F.normalize(raw, dim=-1).T / 0.2 - 2.0
    expected = -(F.logsigmoid(sign * logits).sum() / 4 + F.logsigmoid(sign * whole).sum() / 4) / 2
    found = loss(batch, batch)["loss"]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    (wanted,), (given,) = torch.autograd.grad(expected, raw), torch.autograd.grad(found, raw)
    torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-8)


def test_official_scores_of_pairs() -> None:
    loss, batch = objective(queries="official"), short_texts()
    picture, text = batch.views["query"], batch.views["target"]
    raw = text.vector * text.norm[:, None]
    pooled = loss.pooling(raw.expand(4, -1, -1), picture.tokens)
    expected = F.cosine_similarity(pooled, text.vector.expand(4, -1, -1), dim=-1)
    torch.testing.assert_close(loss.pair_scores(picture, text), expected)
    kept = rows_of(text, slice(2, 5))
    torch.testing.assert_close(loss.pair_scores(picture, kept), expected[:, 2:5])
    scores = conditioned_scores(loss.pooling, picture.tokens, text.vector, norms=text.norm)
    torch.testing.assert_close(scores, expected.float(), check_dtype=False)


def test_official_queries_need_the_length() -> None:
    with pytest.raises(RecipeError, match=r"`queries: official` needs the length of texts .* tokens: true"):
        objective(queries="official")(encoded(), encoded())


def test_what_ranks_log_adds_up() -> None:
    """Each rank logs the mean of its own samples, so that the mean over ranks is that of all samples."""
    loss, whole = objective(), encoded(samples=6)
    loss.drawn = lambda pictures, samples, each, device: torch.zeros(pictures, samples, dtype=torch.long)
    one = loss(whole, whole)
    for cuts in ((3,), (1, 3)):
        edges = [0, *cuts, 6]
        reports = [(stop - start, loss(share_of(whole, start, stop), whole)) for start, stop in pairwise(edges)]
        for name in ("conditioned", "whole"):
            mean = sum(count * float(report[name]) for count, report in reports) / 6
            assert mean == pytest.approx(one[name].item(), rel=1e-6)


@pytest.mark.parametrize("duplicates", ["keep", "positive", "mask"])
def test_texts_of_the_same_label(duplicates: str) -> None:
    loss, batch = objective(duplicates=duplicates), encoded(labels=torch.tensor([7, -1, 7, 3]))
    same = {(0, 2), (2, 0)}
    right, left_out = (same if duplicates == "positive" else set()), (same if duplicates == "mask" else set())
    assert loss(batch, batch)["loss"].item() == pytest.approx(slow(loss, batch, right, left_out), rel=1e-6)


def test_blocks_give_the_same_loss_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for cells in (contrastive.DENSE_CELLS, 1):
        monkeypatch.setattr(contrastive, "DENSE_CELLS", cells)
        monkeypatch.setattr(contrastive, "TILE_CELLS", cells)
        loss, batch = objective(), encoded(masked=True)
        for view in batch.views.values():
            view.vector.requires_grad_()
        batch.views["query"].tokens.requires_grad_()
        value = loss(batch, batch)["loss"]
        value.backward()
        tensors = [batch.views["query"].vector, batch.views["query"].tokens, batch.views["target"].vector]
        results.append([value.detach(), *(t.grad for t in [*tensors, *loss.parameters()])])
    assert len(results[0]) > 6
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_texts_of_a_picture_are_its_own_and_one_of_every_other() -> None:
    samples, texts = torch.tensor([3, 5, 9]), torch.tensor([9, 3, 5, 3, 9, 5])
    drawn = torch.tensor([[0, 1, 0], [1, 0, 1]])
    found = choose_texts(torch.tensor([5, 3]), samples, texts, drawn)
    assert [sorted(row) for row in found.tolist()] == [[0, 1, 2, 5], [1, 2, 3, 4]]


def test_drawn_texts_are_random_and_of_all_kinds() -> None:
    loss = Flair(nn.Identity())
    drawn = loss.drawn(50, 60, 3, torch.device("cpu"))
    assert drawn.shape == (50, 60) and set(drawn.unique().tolist()) == {0, 1, 2}


def test_what_is_missing_is_named() -> None:
    batch = encoded()
    batch.views["query"] = Embedding(batch.views["query"].vector)
    with pytest.raises(RecipeError, match="tokens: true"):
        objective()(batch, batch)
    uneven = encoded()
    uneven.owners["target"][0] = 1
    with pytest.raises(RecipeError, match="2 to 4"):
        objective()(uneven, uneven)
    assert texts_per_sample(encoded(each=2), "target") == 2


class Towers(EmbeddingModule):
    """One layer for pictures of several tokens and for texts."""

    def __init__(self) -> None:
        super().__init__(processor=None, objective=objective())  # type: ignore[arg-type]
        self.objective.drawn = lambda pictures, samples, each, device: torch.zeros(pictures, samples, dtype=torch.long)
        self.layer = nn.Linear(4, E, dtype=torch.float64)

    def encode(self, inputs: Inputs) -> Embedding:
        tokens = self.layer(inputs["x"])
        vector = F.normalize(tokens.mean(1), dim=-1)
        return Embedding(vector, tokens=tokens, mask=torch.ones(tokens.shape[:2], dtype=torch.int64))


def batch(start: int, stop: int, each: int = 3) -> Batch:
    draw = torch.Generator().manual_seed(1)
    pictures, texts = (torch.randn(10 * n, L, 4, generator=draw, dtype=torch.float64) for n in (1, each))
    count = stop - start
    return Batch(
        views={"query": {"x": pictures[start:stop]}, "target": {"x": texts[each * start : each * stop]}},
        owners={"query": torch.arange(count), "target": torch.arange(count).repeat_interleave(each)},
        keys={"query": torch.arange(start, stop), "target": torch.arange(each * start, each * stop) + 100},
        labels=torch.full((count,), -1),
        weights=torch.linspace(1, 2, 10)[start:stop],
        ids=[str(i) for i in range(start, stop)],
        sources=[""] * count,
    )


def gradients(shares: list[tuple[int, int]], rank: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    module = Towers()
    local = module._encoded(batch(*shares[rank]))
    loss = module.objective(local, module._gathered(local))["loss"]
    (loss * module._group_size).backward()
    return loss.detach(), torch.cat([p.grad.flatten().double() for p in module.parameters()])


def worker(rank: int, shares: list[tuple[int, int]], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(gradients(shares, rank), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    shares = [(0, 4), (4, 10)]
    mp.spawn(worker, (shares, tmp_path), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    loss, gradient = gradients([(0, 10)], 0)
    torch.testing.assert_close(results[0][0] + results[1][0], loss)
    torch.testing.assert_close((results[0][1] + results[1][1]) / 2, gradient)
