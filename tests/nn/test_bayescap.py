"""ProbVLM's adapter: its formula, its limits, and the frozen vector that it leaves alone."""

from __future__ import annotations

import math

import pytest
import torch

from zoo.errors import RecipeError
from zoo.nn.bayescap import BayesCap
from zoo.nn.gaussian import Gaussian
from zoo.nn.parts import outputs, part_of, summed
from zoo.nn.towers import States

DIM = 6


def states(rows: int = 5, seed: int = 0) -> States:
    torch.manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn(rows, DIM), dim=-1)
    return States(vectors, vectors[:, None])


def adapter(**arguments: float) -> BayesCap:
    torch.manual_seed(1)
    return BayesCap(DIM, hidden=7, **arguments).eval()  # type: ignore[arg-type]


def test_follows_the_formula_and_hands_the_frozen_vector_on() -> None:
    module, seen = adapter(), states()
    found = module(seen)
    first, _, middle, _, _, last = module.trunk
    for row in range(len(seen.pooled)):
        z = seen.pooled[row]
        hidden = (middle.weight @ (first.weight @ z + first.bias).clamp(min=0) + middle.bias).clamp(min=0)
        read = z + last.weight @ hidden + last.bias
        for branch, values in (
            (module.mean, found.mean),
            (module.log_var, found.log_var),
            (module.log_shape, found.log_shape),
        ):
            up, _, down = branch
            expected = down.weight @ (up.weight @ read + up.bias).clamp(min=0) + down.bias
            torch.testing.assert_close(values[row], expected)
    assert found.given is seen.pooled
    assert outputs(module) == ("embeddings", "log_var")
    assert not module.needs_tokens


def test_starts_near_a_gaussian_of_the_variance_it_is_told() -> None:
    found = adapter(start=-4.0)(states())
    assert (found.log_var + 4).abs().max() < 0.5
    assert (found.log_shape - math.log(2)).abs().max() < 0.5


def test_stays_within_its_limits() -> None:
    module = adapter()
    with torch.no_grad():
        module.log_var[-1].bias.fill_(100.0)
        module.log_shape[-1].bias.fill_(-100.0)
    found = module(states())
    assert found.log_var.unique().tolist() == [5.0]
    assert found.log_shape.unique().tolist() == pytest.approx([math.log(0.25)])


# ---- rows of parts ---------------------------------------------------------------------------------------------------


def test_rows_of_one_part_keep_what_belongs_to_it() -> None:
    """Whatever the order in which the parts come."""
    seen, owner = states(), torch.tensor([3, 0, 4, 1, 2])
    out = adapter()(seen)
    found = summed([part_of(owner, out)], 5)
    alone = summed([part_of(owner, seen.pooled)], 5)
    assert torch.equal(found.given, alone.vector)
    assert torch.equal(found.log_shape[owner], out.log_shape)
    torch.testing.assert_close(found.log_var[owner], out.log_var)


@pytest.mark.parametrize("several", ["parts", "widths"])
def test_other_rows_are_refused_in_training_and_go_without_elsewhere(several: str) -> None:
    out, other = adapter()(states(2)), adapter()(states(2, seed=3))
    owners = [torch.tensor([0, 1]), torch.tensor([1, 2])]
    if several == "widths":
        owners, other = [owners[0], torch.tensor([2, 3])], other._replace(given=torch.randn(2, DIM + 1))
    parts = [part_of(owner, gaussian) for owner, gaussian in zip(owners, (out, other), strict=True)]
    with pytest.raises(RecipeError, match="rows of one part each"):
        summed(parts, 4)
    with torch.no_grad():
        found = summed(parts, 4)
    assert found.given is None and found.log_shape is None and found.log_var is not None


def test_variances_of_several_parts_add_up() -> None:
    mean, log_var = torch.eye(2), torch.log(torch.tensor([[0.1, 0.2], [0.3, 0.4]]))
    with torch.no_grad():
        found = summed([part_of(torch.tensor([0, 0]), Gaussian(mean, log_var, mean, log_var))], 1)
    torch.testing.assert_close(found.log_var.exp(), torch.tensor([[0.4, 0.6]]) / 2)
