"""The use of shared codes, measured while training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.callbacks.code_usage import CodeUsage
from zoo.errors import RecipeError
from zoo.metrics.codes import active_codes, shared_codes
from zoo.nn.discrete_tokens import FiniteDiscreteTokens


def test_codes_of_a_row_and_of_a_pair() -> None:
    left = torch.tensor([[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    right = torch.tensor([[0.0, 0.2, 0.8, 0.0], [1.0, 0.0, 0.0, 0.0]])
    assert float(active_codes(left)) == 1.5
    assert float(shared_codes(left, right)) == pytest.approx((1 / 3 + 1) / 2)


class Model(nn.Module):
    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared, self.drop = FiniteDiscreteTokens(8, 4, temperature=1.0), nn.Dropout(0.5)
        self.logged: dict[str, float] = {}

    def encode(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.shared(self.drop(inputs["x"]), None)

    def log(self, name: str, value: Tensor, **options: Any) -> None:
        self.logged[name] = float(value)


def test_logs_at_its_steps_and_leaves_random_numbers_alone() -> None:
    model, callback = Model().eval(), CodeUsage(every=5)
    x = torch.randn(6, 3, 4)
    rows = torch.arange(6)
    batch = SimpleNamespace(views={"query": {"x": x}, "target": {"x": x}}, owners={"query": rows, "target": rows})
    callback.on_train_batch_end(SimpleNamespace(global_step=3), model, None, batch, 0)
    assert not model.logged
    model.train()
    before = torch.get_rng_state()
    callback.on_train_batch_end(SimpleNamespace(global_step=5), model, None, batch, 0)
    assert torch.equal(before, torch.get_rng_state())
    model.eval()
    callback.on_train_batch_end(SimpleNamespace(global_step=10), model, None, batch, 0)
    assert model.logged["train/codes/query"] == model.logged["train/codes/target"] >= 1
    assert model.logged["train/codes/shared"] == 1 > model.logged["train/codes/unrelated"]
    assert not model.shared.activation._forward_hooks
    model.logged.clear()
    callback.on_train_batch_end(SimpleNamespace(global_step=10), model, None, batch, 0)
    assert not model.logged  # another batch of the same step


@pytest.mark.parametrize("owners", [[0, 0, 2], []])
def test_rows_that_are_no_pairs_are_not_compared(owners: list[int]) -> None:
    """As many rows as the other view has, but of other samples; and no row at all."""
    model, x = Model().eval(), torch.randn(3, 3, 4)
    batch = SimpleNamespace(
        views={"query": {"x": x}, "target": {"x": x[: len(owners)]}},
        owners={"query": torch.arange(3), "target": torch.tensor(owners, dtype=torch.int64)},
    )
    CodeUsage(every=5).on_train_batch_end(SimpleNamespace(global_step=5), model, None, batch, 0)
    assert set(model.logged) == {"train/codes/query", *(["train/codes/target"] if owners else [])}


def test_models_without_codes_are_refused() -> None:
    with pytest.raises(RecipeError, match="shared codes"):
        CodeUsage().on_fit_start(None, nn.Linear(2, 2))
