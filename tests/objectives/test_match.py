"""What is as right as the own cell, against a loop over sets of contents; one to one by owners; positives that stay."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from encoded_rows import WIDTH, check_ranks, check_tiles, close, encoded, leaves, outcome, share_of, unit
from torch import Tensor
from torch.nn.functional import logsigmoid

from zoo.objectives import adjust, contrastive
from zoo.objectives.adjust import Adjustment, FalseNegativeFilter, HardestNegatives, Hardness, Margin
from zoo.objectives.infonce import InfoNCE
from zoo.objectives.match import Match
from zoo.objectives.momentum_queue import MomentumQueue
from zoo.objectives.siglip import SigLIP
from zoo.objectives.soft_targets import MomentumDistillation
from zoo.objectives.triplet import Triplet
from zoo.types import Embedding, Encoded

EVERYTHING = slice(0, None)


def random_rows(seed: int, contents: int, samples: int = 7) -> Encoded:
    """Samples with 0 to 3 rows in either view, of few different contents, and a few labels."""
    rng = random.Random(seed)
    owners, keys, views = {}, {}, {}
    for place, name in enumerate(("query", "target")):
        found = [i for i in range(samples) for _ in range(rng.randrange(4))]
        owners[name] = torch.tensor(found, dtype=torch.int64)
        keys[name] = torch.tensor([rng.randrange(contents) + 1000 * place for _ in found], dtype=torch.int64)
        views[name] = Embedding(unit(max(1, len(found)), WIDTH, seed=seed + place)[: len(found)].requires_grad_())
    labels = torch.tensor([rng.choice([-1, -1, contents, rng.randrange(contents)]) for _ in range(samples)])
    return Encoded(views, owners, keys, labels, torch.ones(samples), torch.arange(samples))


def contents_of(batch: Encoded, view: str, sample: int) -> set[int]:
    pairs = zip(batch.owners[view].tolist(), batch.keys[view].tolist(), strict=True)
    return {key for owner, key in pairs if owner == sample}


def as_right(batch: Encoded, rows: str, i: int, columns: str, j: int) -> bool:
    """Whether row i of a view and row j of the other are as right as a pair of one sample."""
    a, b = int(batch.owners[rows][i]), int(batch.owners[columns][j])
    labelled = int(batch.labels[a]) >= 0 and int(batch.labels[a]) == int(batch.labels[b])
    target = int(batch.keys[columns][j]) in contents_of(batch, columns, a)
    return a == b or labelled or target or int(batch.keys[rows][i]) in contents_of(batch, rows, b)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("contents", [3, 40, 4000])
def test_same_cells_are_those_of_the_loop(seed: int, contents: int) -> None:
    batch = random_rows(seed, contents)
    for rows, columns in (("query", "target"), ("target", "query")):
        match = Match(batch, batch, rows, columns)
        shape = len(batch.owners[rows]), len(batch.owners[columns])
        expected = [[as_right(batch, rows, i, columns, j) for j in range(shape[1])] for i in range(shape[0])]
        found = match.same(EVERYTHING)
        assert found.tolist() == expected
        if match.distinct:
            assert torch.equal(found, match.own(EVERYTHING))
        part = share_of(batch, 2, 5)
        kept = (batch.owners[rows] >= 2) & (batch.owners[rows] < 5)
        assert torch.equal(Match(part, batch, rows, columns).same(EVERYTHING), found[kept])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("contents", [3, 40])
def test_further_negatives_that_are_right_are_those_of_the_loop(seed: int, contents: int) -> None:
    """A mined negative with the content of any right column, not of the own one alone, is none."""
    batch = random_rows(seed, contents)
    keys = torch.tensor([random.Random(seed).randrange(contents) + 1000 for _ in range(6)] + [7])
    found = Match(batch, batch, "query", "target").equals_target(EVERYTHING, keys)
    targets = batch.keys["target"].tolist()
    for i in range(len(batch.owners["query"])):
        right = {key for j, key in enumerate(targets) if as_right(batch, "query", i, "target", j)}
        assert found[i].tolist() == [key in right for key in keys.tolist()]


def test_a_mined_negative_that_answers_an_equal_query_is_masked() -> None:
    """Samples 0 and 1 ask the same; the negative of sample 1 is the target of sample 0."""
    batch = encoded(3)
    batch.keys["query"] = torch.tensor([5, 5, 6])
    batch.views["negatives"] = Embedding(unit(2, WIDTH, seed=9))
    batch.owners["negatives"], batch.keys["negatives"] = torch.tensor([1, 2]), torch.tensor([100, 900])
    columns = torch.cat([batch.views[name].vector for name in ("target", "negatives")])
    logits = 8 * batch.views["query"].vector @ columns.T
    kept = ([0, 2, 4], [1, 2, 4], [0, 1, 2, 3, 4])
    losses = [logits[i, some].logsumexp(0) - logits[i, i] for i, some in enumerate(kept)]
    found = InfoNCE(0.125).double()(batch, batch)["loss"]
    close(outcome(found, leaves(batch)), outcome(sum(losses) / 3, leaves(batch)))


def test_distinct_is_found_where_several_rows_have_nothing_in_common() -> None:
    batch = encoded(4, 3, labels=torch.tensor([1, -1, 2, -1]))
    assert Match(batch, batch, "query", "target").distinct and Match(batch, batch, "target", "query").distinct
    batch.keys["target"][4] = batch.keys["target"][11]  # second caption of sample 1, last one of sample 3
    assert not Match(batch, batch, "query", "target").distinct and not Match(batch, batch, "target", "query").distinct


@pytest.mark.parametrize("make", [InfoNCE, SigLIP, Triplet])
def test_a_second_caption_that_another_picture_has_first_is_no_negative(make: type) -> None:
    """Only the cells (1, 4) and (2, 3) are doubtful: by the content of the column, and of the row's own column."""
    batch = encoded(3, 2)
    batch.keys["target"][3] = batch.keys["target"][4]  # second caption of sample 1 = first caption of sample 2
    logits = 8 * batch.views["query"].vector @ batch.views["target"].vector.T
    total = torch.zeros((), dtype=torch.float64)
    for i, hidden in enumerate((None, 4, 3)):
        own, others = [2 * i, 2 * i + 1], [j for j in range(6) if j // 2 != i and j != hidden]
        if make is InfoNCE:
            total = total + logits[i, own + others].logsumexp(0) - logits[i, own].mean()
        elif make is SigLIP:
            total = total - logsigmoid(logits[i, own]).sum() - logsigmoid(-logits[i, others]).sum()
        else:
            total = total + (0.2 - logits[i, own].min() / 8 + logits[i, others] / 8).clamp(min=0).sum()
    objective = {
        InfoNCE: lambda: InfoNCE(0.125, duplicates="mask"),
        SigLIP: lambda: SigLIP(0.125, 0.0, "linear", duplicates="mask"),
        Triplet: lambda: Triplet(symmetric=False, duplicates="mask"),
    }[make]().double()
    close(outcome(objective(batch, batch)["loss"], leaves(batch)), outcome(total / 3, leaves(batch)))


# ---- one to one -----------------------------------------------------------------------------------------------------


def uneven() -> Encoded:
    """As many rows as columns, but not one to one: sample 0 has two queries and sample 1 none."""
    batch = encoded(3)
    batch.owners["query"] = torch.tensor([0, 0, 2])
    return batch


def test_as_many_rows_as_columns_is_not_one_to_one() -> None:
    match = Match(uneven(), uneven(), "query", "target")
    assert match.column is not None and not match.square
    assert Match(encoded(3), encoded(3), "query", "target").square


@pytest.mark.parametrize("tiles", [False, True])
def test_symmetric_infonce_of_such_rows_equals_the_loop(tiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = uneven()
    if tiles:
        monkeypatch.setattr(contrastive, "DENSE_CELLS", 0)
        monkeypatch.setattr(contrastive, "TILE_CELLS", 3)
    found = InfoNCE(0.125, symmetric=True).double()(batch, batch)["loss"]
    query, target = batch.views["query"].vector, batch.views["target"].vector
    logits = 8 * query @ target[[0, 2]].T  # the target of sample 1 has no query
    forth = logits.logsumexp(1) - logits[[0, 1, 2], [0, 0, 1]]
    back = logits.logsumexp(0) - torch.stack([(logits[0, 0] + logits[1, 0]) / 2, logits[2, 1]])
    expected = ((forth[0] + forth[1]) / 2 + forth[2] + back.sum()) / 6
    close(outcome(found, leaves(batch)), outcome(expected, leaves(batch)))


# ---- positives in every `adjust` ------------------------------------------------------------------------------------

ADJUSTMENTS: dict[str, Adjustment] = {
    "hardness": Hardness(9.0),
    "margin": Margin(0.3),
    "filter": FalseNegativeFilter(-0.5),
    "hardest": HardestNegatives(1),
}


def test_every_adjustment_is_tried() -> None:
    kinds = {part for part in vars(adjust).values() if isinstance(part, type) and Adjustment in part.__mro__}
    assert {type(one) for one in ADJUSTMENTS.values()} == kinds - {Adjustment}


def adjusted_loop(batch: Encoded, name: str) -> Tensor:
    """Each adjustment by its formula, cell by cell; all cells of one label are right, of equal weight."""
    scale, total = 8.0, torch.zeros((), dtype=torch.float64)
    query, target = batch.views["query"].vector, batch.views["target"].vector
    for i in range(len(query)):
        row = [query[i] @ y for y in target]
        right = [j for j in range(len(row)) if as_right(batch, "query", i, "target", j)]
        others = [j for j in range(len(row)) if j not in right]
        value = [float(c.detach()) for c in row]
        best = max(value[j] for j in right)
        if name == "filter":
            others = [j for j in others if value[j] <= best - 0.5]
        if name == "hardest":
            others = [j for j in others if value[j] == max(value[k] for k in others)]
        extra = {j: 9 * value[j] for j in others} if name == "hardness" else {}
        less = scale * 0.3 if name == "margin" else 0.0
        logits = [scale * row[j] - less for j in right] + [scale * row[j] + extra.get(j, 0.0) for j in others]
        own = sum(scale * row[j] - less for j in right) / len(right)
        total = total + sum(z.exp() for z in logits).log() - own
    return total / len(query)


@pytest.mark.parametrize("name", ADJUSTMENTS)
def test_positives_stay_in_every_adjustment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = encoded(7, labels=torch.tensor([4, -1, 4, 4, -1, 2, 2]))

    def make() -> InfoNCE:
        return InfoNCE(0.125, duplicates="positive", adjust=[ADJUSTMENTS[name]])

    found = make().double()(batch, batch)["loss"]
    close(outcome(found, leaves(batch)), outcome(adjusted_loop(batch, name), leaves(batch)))
    check_tiles(make, batch, monkeypatch)
    check_ranks(make, batch, (2, 5))


@pytest.mark.parametrize("name", ADJUSTMENTS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_training_does_not_change_where_a_batch_crosses_the_border_of_tiles(
    name: str, symmetric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """513 x 513 cells are more than 2^18: in tiles; the same in one piece is the same."""
    samples = 513
    assert samples**2 > contrastive.DENSE_CELLS == 1 << 18 >= (samples - 1) ** 2
    batch = encoded(samples, labels=torch.arange(samples) % 100)
    results = []
    for dense in (contrastive.DENSE_CELLS, 1 << 30):
        monkeypatch.setattr(contrastive, "DENSE_CELLS", dense)
        options = {"symmetric": symmetric, "duplicates": "positive", "adjust": [ADJUSTMENTS[name]]}
        objective = InfoNCE(0.125, "linear", **options).double()  # type: ignore[arg-type]
        tensors = [*leaves(batch), objective.temperature.parameter]
        results.append(outcome(objective(batch, batch)["loss"], tensors))
    close(*results)


# ---- the queue ------------------------------------------------------------------------------------------------------


def step(pictures: list[int], captions: list[int], labels: list[int] | None = None, seed: int = 0) -> Encoded:
    """Samples of a picture and a caption each, named by their contents."""
    batch = encoded(len(pictures), seed=seed)
    batch.keys = {"query": torch.tensor(pictures), "target": torch.tensor(captions) + 1000}
    return replace(batch, labels=torch.tensor(labels or [-1] * len(pictures)))


@pytest.mark.parametrize("twin", ["picture", "caption", "label"])
def test_what_the_queue_holds_of_an_equal_sample_is_no_negative(twin: str) -> None:
    """The same picture came with another caption a step before (or the other way round, or of the same class)."""
    objective = MomentumDistillation(WIDTH, 6, 0.125, alpha=0.0).double().train()
    objective(*[step([1, 2, 3], [1, 2, 3], [7, -1, -1])] * 2)
    now = {
        "picture": step([4, 1], [4, 5], seed=9),
        "caption": step([4, 5], [4, 1], seed=9),
        "label": step([4, 5], [4, 5], [-1, 7], seed=9),
    }[twin]
    found = objective.eval()(now, now)["loss"]
    total = torch.zeros((), dtype=torch.float64)
    for rows, columns in (("query", "target"), ("target", "query")):
        every = torch.cat([now.views[columns].vector.detach(), objective.queues[columns].held()[0].double()])
        for i in range(2):
            kept = [0, 1, 3, 4] if i == 1 else [0, 1, 2, 3, 4]  # without place 2: what came first a step before
            logits = 8 * now.views[rows].vector[i] @ every.T
            total = total + (logits[kept].logsumexp(0) - logits[i]) / 4
    close(outcome(found, leaves(now)), outcome(total, leaves(now)))


def test_all_captions_of_a_past_picture_are_known() -> None:
    """Past pictures with three captions: the second one of the first picture is the caption of the present sample 1."""
    then = encoded(2, 3)
    then.keys = {"query": torch.tensor([1, 2]), "target": torch.arange(1000, 1006)}
    objective = MomentumDistillation(WIDTH, 10, 0.125, alpha=0.0).double().train()
    objective(then, then)
    now = step([8, 9], [50, 1], seed=9)
    found = objective.eval()(now, now)["loss"]
    total = torch.zeros((), dtype=torch.float64)
    for rows, columns, hidden in (("query", "target", 3), ("target", "query", 2)):
        every = torch.cat([now.views[columns].vector.detach(), objective.queues[columns].held()[0].double()])
        for i in range(2):
            kept = [j for j in range(len(every)) if i == 0 or j != hidden]
            logits = 8 * now.views[rows].vector[i] @ every.T
            total = total + (logits[kept].logsumexp(0) - logits[i]) / 4
    close(outcome(found, leaves(now)), outcome(total, leaves(now)))


def test_a_queue_of_old_is_read() -> None:
    """Weights that were saved before queues knew samples: the contents of their rows are all that is known."""
    objective = MomentumDistillation(WIDTH, 6).train()
    objective(*[step([1, 2, 3], [1, 2, 3], [7, -1, -1])] * 2)
    saved = {key: value for key, value in objective.state_dict().items() if not key.endswith(("labels", "samples"))}
    again = MomentumDistillation(WIDTH, 6)
    again.load_state_dict(saved)
    assert torch.equal(again.queues["query"].held()[0], objective.queues["query"].held()[0])
    now = step([4, 1], [4, 3], [7, -1], seed=9)
    for _ in range(3):
        assert bool(torch.isfinite(again.train()(now, now)["loss"]))
    assert sorted(again.queues["query"].samples.tolist()) == list(range(6))
    assert MomentumQueue(0, WIDTH).held()[0].shape == (0, WIDTH)
