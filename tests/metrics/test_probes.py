"""k-NN equals a slow loop whatever the ties and blocks; the linear probe equals scikit-learn's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from zoo.errors import NonFiniteError, SampleError, UnknownNameError
from zoo.metrics.probes import fit_logistic, hits, knn_votes, linear_probe


def data(rows: int, test: int, width: int = 5, classes: int = 4, kind: str = "random") -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows + test, width, generator=generator)
    if kind == "ties":  # copies of a few vectors, so that most scores are shared
        x[:rows] = x[torch.randint(0, max(2, rows // 8), (rows,), generator=generator)]
    if kind == "constant":
        x = torch.ones_like(x)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    return normalize(x[:rows], dim=1), labels, normalize(x[rows:], dim=1)


def slow_votes(
    train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, classes: int, k: int
) -> list[list[float]]:
    """Votes relative to the nearest; scores closer than 1e-6 are one score."""
    result = []
    for row in test.double().tolist():
        scores = [sum(a * b for a, b in zip(row, other, strict=True)) for other in train.double().tolist()]
        ordered = sorted(scores, reverse=True)
        last = ordered[min(k, len(ordered)) - 1]
        above = [s > last + 1e-6 for s in scores]
        tied = [abs(s - last) <= 1e-6 for s in scores]
        share = (min(k, len(ordered)) - sum(above)) / sum(tied)
        votes = [0.0] * classes
        for score, label, whole, part in zip(scores, labels.tolist(), above, tied, strict=True):
            votes[label] += (whole + part * share) * math.exp((score - ordered[0]) / 0.07)
        result.append(votes)
    return result


@pytest.mark.parametrize("kind", ["random", "ties", "constant"])
@pytest.mark.parametrize("k", [1, 3, 20, 1000])
@pytest.mark.parametrize(("rows", "test"), [(50, 17), (7, 3)])
def test_votes_equal_a_slow_loop(rows: int, test: int, k: int, kind: str) -> None:
    train, labels, queries = data(rows, test, kind=kind)
    wanted = torch.tensor(slow_votes(train, labels, queries, 4, k), dtype=torch.float64)
    for block_scores in (1, 3 * rows, 1 << 24):
        votes = knn_votes(train, labels, queries, 4, k, block_scores=block_scores)
        assert torch.allclose(votes, wanted, rtol=1e-4, atol=1e-6)


def test_order_of_training_rows_does_not_matter() -> None:
    train, labels, test = data(60, 20, kind="ties")
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(knn_votes(train, labels, test, 4, 7), knn_votes(train[order], labels[order], test, 4, 7))


def test_constant_embeddings_score_the_share_of_the_commonest_class() -> None:
    train, _, test = data(100, 40, kind="constant")
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    wanted = torch.tensor([0] * 16 + [1] * 24)
    for k in (1, 20, 1000):
        assert hits(knn_votes(train, labels, test, 3, k), wanted).mean() == 0.4
    assert hits(linear_probe(train, labels, 3)(test), wanted).mean() == 0.4


@pytest.mark.parametrize("l2", [1e-1, 1e-2, 1e-3])
def test_logistic_regression_equals_scikit_learn(l2: float) -> None:
    sklearn = pytest.importorskip("sklearn.linear_model")
    train, labels, test = data(120, 30)
    labels = (labels + (train[:, 0] > 0)).clamp(max=3)  # something to learn
    theirs = sklearn.LogisticRegression(C=1 / (len(train) * l2), tol=1e-10, max_iter=5000)
    theirs.fit(train.double().numpy(), labels.numpy())
    ours = fit_logistic(train, labels, 4, l2)(test).softmax(1).numpy()
    assert np.allclose(ours, theirs.predict_proba(test.double().numpy()), atol=2e-3)


def test_weights_count_rows() -> None:
    train, labels, _ = data(40, 1)
    twice = torch.cat([train, train[:10]]), torch.cat([labels, labels[:10]])
    weights = torch.ones(40)
    weights[:10] = 2
    one = fit_logistic(train, labels, 4, 1e-2, weights / 50)
    assert torch.allclose(one.weight, fit_logistic(*twice, 4, 1e-2).weight, atol=2e-3)


def test_the_penalty_is_chosen_on_held_out_rows() -> None:
    """Labels of noise: the strongest penalty; labels of fine detail: a weak one."""
    generator = torch.Generator().manual_seed(0)
    x = normalize(torch.randn(300, 40, generator=generator), dim=1)
    clear = (x[:, 0] + 0.02 * x[:, 1] > 0).long()
    fit = linear_probe(x, clear, 2, (1.0, 1e-5))
    assert fit.l2 == 1e-5 and hits(fit(x), clear).mean() > 0.97
    rare = torch.zeros(300, dtype=torch.long)
    rare[torch.randperm(300, generator=generator)[:60]] = 1
    assert linear_probe(x, rare, 2, (1e-5, 1.0)).l2 == 1.0
    assert linear_probe(x, rare, 2, (1e-3,)).l2 == 1e-3


def test_a_probe_is_fitted_inside_inference_mode() -> None:
    with torch.inference_mode():
        train, labels, test = data(30, 5)
        assert linear_probe(train * 1.0, labels * 1, 4)(test).shape == (5, 4)


def test_hits_and_their_ties() -> None:
    scores = torch.tensor([[1.0, 1.0, 0.0], [2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [5.0, 5.0, 5.0]])
    labels = torch.tensor([0, 0, 1, -1])
    assert hits(scores, labels).tolist() == [0.5, 1, 0, 0]
    assert hits(scores, labels, "wrong").tolist() == [0, 1, 0, 0]
    assert hits(scores, labels, "right").tolist() == [1, 1, 0, 0]
    with pytest.raises(UnknownNameError, match="way to count ties 'rihgt'"):
        hits(scores, labels, "rihgt")  # type: ignore[arg-type]


def test_what_can_not_be_probed() -> None:
    train, labels, test = data(10, 3)
    with pytest.raises(SampleError, match="there are 9 for 10 rows"):
        knn_votes(train, labels[:9], test, 4)
    with pytest.raises(SampleError, match=r"labels of a probe are 0 to 1; these are 0 to 3"):
        linear_probe(train, torch.tensor([0, 3] * 5), 2)
    with pytest.raises(SampleError, match="grid of L2 weights is empty"):
        linear_probe(train, labels, 4, ())
    train[3, 0] = torch.inf
    with pytest.raises(NonFiniteError, match="k-NN: the vector of training row 3"):
        knn_votes(train, labels, test, 4)


@pytest.mark.parametrize("k", [0, -3])
def test_no_neighbour_is_refused(k: int) -> None:
    train = torch.eye(3)
    with pytest.raises(SampleError, match=f"at least one neighbour, not k = {k}"):
        knn_votes(train, torch.arange(3), train, 3, k)
