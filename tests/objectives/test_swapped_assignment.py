"""Swapped assignment against Sinkhorn's loop in fp64, the official form, and the marginals of the transport problem."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from encoded_rows import WIDTH, check_ranks, check_tiles, close, encoded, leaves, outcome, unit
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.objectives.swapped_assignment import SwappedAssignment, word_potentials
from zoo.types import Encoded

WORDS = 9


class SomeWords(nn.Module):
    """Random words with a prior that is not even; one of them is long, which must not matter."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        vectors = unit(WORDS, width, seed=50)
        vectors[3] *= 4
        self.register_buffer("vectors", vectors)
        self.register_buffer("prior", torch.linspace(1, 3, WORDS, dtype=torch.float64).softmax(0))

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.vectors, self.prior


def objective(assignment: str = "exact", **arguments: object) -> SwappedAssignment:
    settings = {"temperature": 0.1, "epsilon": 0.2, "iterations": 3} | arguments
    return SwappedAssignment(SomeWords().double(), assignment, **settings).double()  # type: ignore[arg-type]


def cosines(rows: Tensor) -> list[list[float]]:
    words = F.normalize(SomeWords().vectors, dim=-1).tolist()
    return [[sum(p * q for p, q in zip(row, word, strict=True)) for word in words] for row in rows.tolist()]


def slow_assignment(rows: Tensor, assignment: str, epsilon: float, iterations: int) -> list[list[float]]:
    """In the domain of probabilities, cell by cell."""
    prior = SomeWords().prior.tolist()
    table = [[math.exp(score / epsilon) for score in row] for row in cosines(rows)]
    for _ in range(iterations):
        for k in range(WORDS):
            mass = sum(row[k] for row in table) if assignment == "exact" else 1.0
            for row in table:
                row[k] *= prior[k] / mass
        table = [[cell / sum(row) for cell in row] for row in table]
    return table


def slow(batch: Encoded, assignment: str, temperature: float, epsilon: float, iterations: int) -> Tensor:
    """The loss, with gradient to the vectors of both views."""
    words = F.normalize(SomeWords().vectors, dim=-1)
    vectors = {name: e.vector for name, e in batch.views.items()}
    assigned = {n: slow_assignment(v.detach(), assignment, epsilon, iterations) for n, v in vectors.items()}
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(batch.sample)):
        for mine, other in (("query", "target"), ("target", "query")):
            logits = [vectors[mine][i] @ words[k] / temperature for k in range(WORDS)]
            log_z = sum(z.exp() for z in logits).log()  # type: ignore[union-attr]
            for k in range(WORDS):
                total = total - float(batch.weights[i]) * assigned[other][i][k] * (logits[k] - log_z) / 2
    return total / len(batch.sample)


@pytest.mark.parametrize("assignment", ["exact", "official"])
@pytest.mark.parametrize("iterations", [1, 3])
def test_equals_the_loop(assignment: str, iterations: int) -> None:
    batch = encoded(6)
    batch.weights = torch.linspace(1, 2, 6)
    found = objective(assignment, iterations=iterations)(batch, batch)["loss"]
    expected = slow(batch, assignment, 0.1, 0.2, iterations)
    close(outcome(found, leaves(batch)), outcome(expected, leaves(batch)))


def test_official_is_a_softmax_with_the_prior_thrice() -> None:
    """The released code multiplies by the prior and normalises each sample, three times over."""
    batch = encoded(5)
    words, prior = SomeWords()()
    rows = batch.views["query"].vector.detach()
    table = (rows @ F.normalize(words, dim=-1).T / 0.2).exp()
    for _ in range(3):
        table = table * prior
        table = table / table.sum(1, keepdim=True)
    bias = objective("official")._bias(rows, F.normalize(words, dim=-1), prior.log())
    torch.testing.assert_close((rows @ F.normalize(words, dim=-1).T / 0.2 + bias).softmax(1), table)


def test_exact_gives_words_and_samples_their_mass() -> None:
    rows, (words, prior) = unit(40, WIDTH, seed=1), SomeWords()()
    words = F.normalize(words, dim=-1)
    bias = word_potentials(rows, words, prior.log(), 0.1, 500)
    assigned = (rows @ words.T / 0.1 + bias).softmax(1)
    torch.testing.assert_close(assigned.sum(1), torch.ones(40, dtype=torch.float64))
    torch.testing.assert_close(assigned.mean(0), prior, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("assignment", ["exact", "official"])
@pytest.mark.parametrize("cuts", [(4,), (1, 4)])
def test_ranks_and_tiles(assignment: str, cuts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    batch = encoded(6)
    batch.weights = torch.linspace(1, 2, 6)
    check_ranks(lambda: objective(assignment), batch, cuts)
    check_tiles(lambda: objective(assignment), batch, monkeypatch)


@pytest.mark.parametrize("cells", [1, 20, 1 << 20])
def test_potentials_in_blocks(cells: int) -> None:
    rows, (words, prior) = unit(17, WIDTH), SomeWords()()
    whole = word_potentials(rows, words, prior.log(), 0.2, 4)
    torch.testing.assert_close(word_potentials(rows, words, prior.log(), 0.2, 4, cells), whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("assignment", ["exact", "official"])
def test_official_settings_do_not_overflow(assignment: str) -> None:
    """fp32, epsilon 0.01 and cosines of 1: exp(100) is more than fp32 holds."""
    words, _ = SomeWords()()
    batch = encoded(4)
    for e in batch.views.values():
        e.vector = F.normalize(words[:4], dim=-1).float().requires_grad_()
    found = SwappedAssignment(SomeWords(), assignment)(batch, batch)  # type: ignore[arg-type]
    found["loss"].backward()
    assert torch.isfinite(found["loss"]) and float(found["same_word"]) == 1.0
    assert all(torch.isfinite(e.vector.grad).all() for e in batch.views.values())


def test_sides_that_agree_cost_less() -> None:
    batch = encoded(6)
    apart = objective()(batch, batch)
    batch.views["target"].vector = batch.views["query"].vector
    together = objective()(batch, batch)
    assert together["loss"] < apart["loss"] and float(together["same_word"]) == 1.0


def test_what_does_not_fit_is_refused() -> None:
    batch = encoded(4)
    with pytest.raises(RecipeError, match=f"{WIDTH} values, the word embeddings 5"):
        SwappedAssignment(SomeWords(5))(batch, batch)
    with pytest.raises(RecipeError, match="one row per sample in the view 'target'"):
        objective()(encoded(4, 2), encoded(4, 2))
    with pytest.raises(RecipeError, match=r"'caption'.*query.*target"):
        objective(views=("caption", "target"))(batch, batch)
    with pytest.raises(RecipeError, match="iterations is 0"):
        objective(iterations=0)
