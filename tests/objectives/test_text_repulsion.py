"""Ratios of distances against a loop over pairs; several ranks and tiles against one."""

from __future__ import annotations

import pytest
import torch
from encoded_rows import WIDTH, check_ranks, check_tiles, close, encoded, leaves, outcome, unit
from torch import Tensor

from zoo.errors import RecipeError
from zoo.objectives.text_repulsion import TextRepulsion
from zoo.types import Encoded

LABELS = torch.tensor([7, -1, 7, -1, 3, -1])


def slow(batch: Encoded, exponent: float, wrong: str, duplicates: str) -> list[Tensor]:
    """Both terms, weighted by the samples."""
    pictures, texts = batch.views["query"].vector, batch.views["target"].vector
    labels, count = batch.labels.tolist(), len(batch.sample)
    terms = [torch.zeros((), dtype=torch.float64) for _ in range(2)]
    for i in range(count):
        alike = [duplicates == "mask" and labels[i] == labels[j] and labels[i] >= 0 for j in range(count)]
        others = [j for j in range(count) if j != i and not alike[j]]
        own = (pictures[i] - texts[i]).square().sum().sqrt()
        for place, side in enumerate((pictures[i], texts[i])):
            ratios = [(own / (side - texts[j]).square().sum().sqrt()) ** exponent for j in others]
            chosen = torch.stack(ratios).max() if wrong == "hardest" else sum(ratios) / len(ratios)
            terms[place] = terms[place] + batch.weights[i] * chosen / count
    return terms


@pytest.mark.parametrize("exponent", [2.0, 4.0, 3.0])
@pytest.mark.parametrize("wrong", ["mean", "hardest"])
@pytest.mark.parametrize("duplicates", ["mask", "keep"])
def test_equals_the_loop(exponent: float, wrong: str, duplicates: str) -> None:
    batch = encoded(6, labels=LABELS)
    batch.weights = torch.linspace(1, 2, 6)
    found = TextRepulsion(0.7, 1.3, exponent, wrong, duplicates)(batch, batch)  # type: ignore[arg-type]
    first, second = slow(batch, exponent, wrong, duplicates)
    close(outcome(found["loss"], leaves(batch)), outcome(0.7 * first + 1.3 * second, leaves(batch)))


def test_without_the_second_term_texts_are_not_driven_apart() -> None:
    """Two texts that coincide: only the text term notices, and more so the nearer they are."""
    batch = encoded(4)
    losses = []
    for step in (0.0, 0.5, 0.9):
        texts = unit(4, WIDTH, seed=9)
        texts[1] = torch.nn.functional.normalize(texts[1] + step * (texts[0] - texts[1]), dim=0)
        batch.views["target"].vector = texts
        losses.append([float(v) for v in (TextRepulsion()(batch, batch)[k] for k in ("image_text", "text_text"))])
    assert losses[0][1] < losses[1][1] < losses[2][1] and losses[2][1] > 20 * losses[0][1]
    assert losses[2][0] < 5 * losses[0][0]


@pytest.mark.parametrize("wrong", ["mean", "hardest"])
@pytest.mark.parametrize("cuts", [(4,), (1, 4)])
def test_ranks_and_tiles(wrong: str, cuts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    batch = encoded(6, labels=LABELS)
    batch.weights = torch.linspace(1, 2, 6)
    check_ranks(lambda: TextRepulsion(wrong=wrong), batch, cuts)  # type: ignore[arg-type]
    check_tiles(lambda: TextRepulsion(wrong=wrong), batch, monkeypatch)  # type: ignore[arg-type]


def test_gradient_is_that_of_finite_differences() -> None:
    batch = encoded(4)

    def run(query: Tensor, target: Tensor) -> Tensor:
        batch.views["query"].vector, batch.views["target"].vector = query, target
        return TextRepulsion()(batch, batch)["loss"]

    assert torch.autograd.gradcheck(run, tuple(leaves(batch)))


def test_a_perfect_pair_costs_nothing_and_its_gradient_is_finite() -> None:
    batch = encoded(5)
    batch.views["target"].vector = batch.views["query"].vector.detach().clone().requires_grad_()
    loss = TextRepulsion()(batch, batch)["loss"]
    close(outcome(loss, leaves(batch)), [torch.zeros(()), torch.zeros(5, WIDTH), torch.zeros(5, WIDTH)])


def test_no_wrong_text_costs_nothing() -> None:
    assert TextRepulsion()(encoded(1), encoded(1))["loss"].item() == 0.0


def test_what_does_not_fit_is_refused() -> None:
    batch = encoded(3, 2)
    with pytest.raises(RecipeError, match="one text per picture; the view 'target' has 6 rows for 3 samples"):
        TextRepulsion()(batch, batch)
    with pytest.raises(RecipeError, match="at least 2"):
        TextRepulsion(exponent=1.0)
