"""Correlations equal SciPy's, ties included."""

from __future__ import annotations

import pytest
import torch

from zoo.errors import NonFiniteError, SampleError
from zoo.metrics.correlation import pearson, spearman


@pytest.mark.parametrize("digits", [0, 1, 8])
@pytest.mark.parametrize("count", [2, 3, 200])
def test_equal_to_scipy(count: int, digits: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    x[:, 1] += x[:, 0]
    x, y = torch.round(x, decimals=digits).unbind(1)
    if len(set(x.tolist())) > 1 and len(set(y.tolist())) > 1:
        assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


def test_a_constant_tells_nothing() -> None:
    x, y = torch.full((7,), 0.1), torch.arange(7.0)
    assert pearson(x, y) == spearman(x, y) == pearson(y, x) == spearman(y, x) == 0
    assert spearman(y, y.exp()) == pytest.approx(1) and pearson(y, y.exp()) < 0.9


def test_what_can_not_be_correlated() -> None:
    for x, y in ((torch.ones(2), torch.ones(3)), (torch.ones(0), torch.ones(0)), (torch.ones(2, 2), torch.ones(2, 2))):
        with pytest.raises(SampleError, match="two lists of one length"):
            pearson(x, y)
    with pytest.raises(NonFiniteError):
        spearman(torch.tensor([1.0, torch.nan]), torch.ones(2))
