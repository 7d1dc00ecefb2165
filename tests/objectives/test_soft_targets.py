"""Softened targets against dense losses written from the formulas; the queue; steps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from encoded_rows import WIDTH, check_ranks, check_tiles, close, encoded, leaves, outcome, unit
from torch import Tensor

from zoo.errors import RecipeError
from zoo.objectives.infonce import InfoNCE
from zoo.objectives.momentum_queue import MomentumQueue
from zoo.objectives.soft_targets import MomentumDistillation, SoftenedInfoNCE
from zoo.types import Embedding, Encoded


def with_momentum(batch: Encoded) -> Encoded:
    for place, name in enumerate(("query", "target")):
        batch.views[f"{name}_momentum"] = Embedding(unit(len(batch.views[name].vector), WIDTH, seed=20 + place))
        batch.owners[f"{name}_momentum"], batch.keys[f"{name}_momentum"] = batch.owners[name], batch.keys[name]
    return batch


def distilled(
    batch: Encoded, queues: dict[str, Tensor], alpha: float, scale: float, hidden: dict[str, Tensor]
) -> Tensor:
    """Equations 1, 2 and 6 of ALBEF on matrices, hidden cells taken out of both softmaxes."""
    total = 0.0
    for rows, columns in (("query", "target"), ("target", "query")):
        every = torch.cat([batch.views[f"{columns}_momentum"].vector, queues[columns]])
        away = torch.zeros_like(hidden[rows], dtype=torch.float64).masked_fill(hidden[rows], -torch.inf)
        own = (batch.owners[rows][:, None] == batch.owners[columns]).double()
        own = F.pad(own / own.sum(1, keepdim=True), (0, len(queues[columns])))
        believed = (scale * batch.views[f"{rows}_momentum"].vector @ every.T + away).softmax(1)
        target = alpha * believed + (1 - alpha) * own
        logs = (scale * batch.views[rows].vector @ every.T + away).log_softmax(1)
        weights = batch.weights[batch.owners[rows]] * len(batch.sample) / len(batch.owners[rows])
        total = total - (weights * (target * logs.masked_fill(hidden[rows], 0.0)).sum(1)).sum() / len(batch.sample)
    return total / 2


@pytest.mark.parametrize("alpha", [0.0, 0.4])
@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("duplicates", ["mask", "keep"])
def test_momentum_distillation_equals_the_matrices(alpha: float, each: int, duplicates: str) -> None:
    batch = with_momentum(encoded(5, each, labels=torch.tensor([7, -1, 7, -1, 3])))
    batch.weights = torch.linspace(1, 2, 5).double()
    objective = MomentumDistillation(WIDTH, 4, 0.125, alpha=alpha, duplicates=duplicates).double()
    queues = {"query": unit(4, WIDTH, seed=30), "target": unit(4, WIDTH, seed=31)}
    # an older copy of the target of sample 1 stands at place 2 of the queue of targets
    keys = {"query": torch.arange(500, 504), "target": torch.tensor([600, 601, int(batch.keys["target"][each]), 603])}
    for name, queue in objective.queues.items():
        queue.put(queues[name], keys[name])
    hidden = {name: torch.zeros(len(batch.views[name].vector), 0, dtype=torch.bool) for name in queues}
    for rows, columns in (("query", "target"), ("target", "query")):
        left, right = batch.owners[rows][:, None], batch.owners[columns]
        twins = ((left == 0) & (right == 2)) | ((left == 2) & (right == 0))
        old = torch.zeros(len(left), 4, dtype=torch.bool)
        if rows == "query":
            old[1, 2] = True
        hidden[rows] = torch.cat([twins, old], 1) & (duplicates == "mask")
    expected = distilled(batch, queues, alpha, 8.0, hidden)
    found = objective.eval()(batch, batch)
    assert float(found["alpha"]) == pytest.approx(alpha)
    close(outcome(found["loss"], leaves(batch)), outcome(expected, leaves(batch)))


def test_ranks_and_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = with_momentum(encoded(6, 2))
    batch.weights = torch.linspace(1, 2, 6)

    def make() -> MomentumDistillation:
        objective = MomentumDistillation(WIDTH, 8, 0.2)
        for place, queue in enumerate(objective.queues.values()):
            queue.put(unit(5, WIDTH, seed=40 + place), torch.arange(5))
        return objective

    check_ranks(make, batch, (1, 4))
    check_tiles(make, batch, monkeypatch)
    check_ranks(lambda: SoftenedInfoNCE(0.2), batch, (1, 4))
    check_tiles(lambda: SoftenedInfoNCE(0.2), batch, monkeypatch)


def test_without_momentum_and_queue_the_rows_get_the_gradient_of_infonce() -> None:
    batch = encoded(6)
    fixed = [value.detach() for value in leaves(batch)]
    objective = MomentumDistillation(WIDTH, 4, 0.125, learn="no", alpha=0.0).double()
    logits = 8 * batch.views["query"].vector @ fixed[1].T, 8 * batch.views["target"].vector @ fixed[0].T
    expected = sum(F.cross_entropy(z, torch.arange(6)) for z in logits) / 2
    close(outcome(objective(batch, batch)["loss"], leaves(batch)), outcome(expected, leaves(batch)))
    torch.testing.assert_close(expected, InfoNCE(0.125, symmetric=True)(batch, batch)["loss"])


def test_queues_move_in_training_only_and_alpha_grows() -> None:
    batch = with_momentum(encoded(4, 2))
    objective = MomentumDistillation(WIDTH, 10, alpha=0.4, ramp_steps=4)
    objective.eval()(batch, batch)
    assert int(objective.queues["query"].filled) == 0 and int(objective.steps) == 0
    objective.train()
    alphas = []
    for step in (0, 1, 1, 2, 3, 4):  # two batches make the second step of the optimizer
        objective.anneal(step)
        alphas.append(float(objective(batch, batch)["alpha"]))
    assert alphas == pytest.approx([0, 0.1, 0.1, 0.2, 0.3, 0.4])
    vectors, keys = objective.queues["target"].held()
    assert len(vectors) == 10 and set(keys.tolist()) <= set(batch.keys["target"].tolist())
    again = MomentumDistillation(WIDTH, 10)
    again.load_state_dict(objective.state_dict())
    torch.testing.assert_close(again.queues["target"].held()[0], vectors)
    torch.testing.assert_close(vectors[-2:], batch.views["target_momentum"].vector[6:8].float())


def test_the_loss_of_a_step_does_not_see_its_own_rows_in_the_queue() -> None:
    batch = with_momentum(encoded(4))
    objective = MomentumDistillation(WIDTH, 10, duplicates="keep")
    first = objective(batch, batch)["loss"]
    first.backward()  # the queue has moved on since: what autograd kept must not have
    assert all(torch.isfinite(value.grad).all() for value in leaves(batch))
    assert float(objective(batch, batch)["loss"]) > float(first) + 0.1
    torch.testing.assert_close(MomentumDistillation(WIDTH, 10, duplicates="keep").eval()(batch, batch)["loss"], first)


def test_queue_replaces_the_oldest_and_wraps() -> None:
    queue = MomentumQueue(5, 1)
    for start, count in ((0, 3), (3, 3), (6, 1), (7, 12)):
        rows = torch.arange(start, start + count)
        queue.put(rows[:, None].float(), rows)
        held = queue.held()[1].tolist()
        assert sorted(held) == list(range(max(0, start + count - 5), start + count))
        assert queue.held()[0][:, 0].tolist() == held


def test_momentum_rows_must_be_the_same_rows() -> None:
    batch = with_momentum(encoded(4))
    batch.views["target_momentum"].vector = unit(3, WIDTH)
    with pytest.raises(RecipeError, match="'target_momentum' has 3 rows, 'target' has 4"):
        MomentumDistillation(WIDTH, 4)(batch, batch)


@pytest.mark.parametrize("softness", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("each", [1, 2])
def test_softened_equals_the_matrices(softness: float, each: int) -> None:
    batch = encoded(5, each)
    batch.weights = torch.linspace(1, 2, 5).double()
    expected = 0.0
    for rows, columns in (("query", "target"), ("target", "query")):
        logits = 8 * batch.views[rows].vector @ batch.views[columns].vector.T
        own = (batch.owners[rows][:, None] == batch.owners[columns]).double()
        target = softness * logits.detach().softmax(1) + (1 - softness) * own / own.sum(1, keepdim=True)
        losses = -(target * logits.log_softmax(1)).sum(1)
        expected = expected + (losses * batch.weights[batch.owners[rows]]).sum() / 2 / len(losses)
    found = SoftenedInfoNCE(0.125, learn="linear", softness=softness).double()(batch, batch)
    close(outcome(found["loss"], leaves(batch)), outcome(expected, leaves(batch)))
    if softness == 0 and each == 1:
        plain = InfoNCE(0.125, symmetric=True, duplicates="keep")(batch, batch)["loss"]
        torch.testing.assert_close(found["loss"], plain)


def test_softness_grows() -> None:
    batch = encoded(4)
    objective = SoftenedInfoNCE(softness=0.2, ramp_steps=2)
    found = []
    for step in (0, 1, 1, 2, 3):
        objective.anneal(step)
        found.append(float(objective(batch, batch)["softness"]))
    assert found == pytest.approx([0, 0.1, 0.1, 0.2, 0.2])


@pytest.mark.parametrize("kind", [MomentumDistillation, SoftenedInfoNCE])
def test_extreme_temperature(kind: type) -> None:
    batch = encoded(6)
    options = {"dim": WIDTH, "queue_size": 4} if kind is MomentumDistillation else {}
    objective = kind(temperature=1e-3, learn="linear", max_scale=None, **options)
    for _ in range(2):
        found = objective(batch, batch)["loss"]
        assert all(torch.isfinite(value).all() for value in outcome(found, leaves(batch)))
