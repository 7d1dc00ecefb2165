"""Values held between limits: those of a clamp, with the gradients that lead back inside."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo.nn.bayescap import BayesCap
from zoo.nn.gaussian import GaussianHead, LogVariance
from zoo.nn.heads import Projection
from zoo.nn.limits import held
from zoo.nn.towers import States


def test_values_are_those_of_a_clamp_and_gradients_lead_inside() -> None:
    """d/dx (held(x) - t)^2 = 2 (held(x) - t), but 0 where x is outside and a step would lead further out."""
    x = torch.tensor([-3.0, -3.0, -1.0, 0.5, 1.0, 2.0, 2.0], requires_grad=True)
    target = torch.tensor([0.0, -5.0, 0.0, 0.0, 5.0, 0.0, 5.0])
    found = held(x, -1.0, 1.0)
    assert torch.equal(found, x.clamp(-1.0, 1.0))
    (found - target).square().sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [-2.0, 0.0, -2.0, 1.0, -8.0, 2.0, 0.0]


def test_without_gradient_it_is_a_clamp() -> None:
    x = torch.tensor([-3.0, 2.0])
    assert torch.equal(held(x, -1.0, 1.0), torch.tensor([-1.0, 1.0]))
    exported = torch.export.export(Clamped(), (torch.zeros(2, requires_grad=True),))
    assert [str(node.target) for node in exported.graph.nodes if node.op == "call_function"] == ["aten.clamp.default"]


class Clamped(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return held(x, -1.0, 1.0)


def log_variance(head: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    return head(States(rows, rows[:, None])).log_var


@pytest.mark.parametrize("start", [8.0, -24.0])
@pytest.mark.parametrize(
    "make", [lambda s: GaussianHead(Projection(4, 3), LogVariance(4, 3, s)), lambda s: BayesCap(4, start=s)]
)
def test_variances_beyond_their_limits_come_back(make, start: float) -> None:
    """The loss of a standard normal, least at a log-variance of 0, from beyond either limit."""
    torch.manual_seed(0)
    head, rows = make(start).train(), torch.randn(16, 4)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(400):
        log_var = log_variance(head, rows)
        optimizer.zero_grad()
        (log_var.exp() - log_var).mean().backward()
        optimizer.step()
    found = log_variance(head.eval(), rows)
    assert ((found > -20) & (found < 5)).float().mean() > 0.5  # under a clamp all stay where they are
