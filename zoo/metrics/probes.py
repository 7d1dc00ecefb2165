"""What a simple classifier reads from embeddings: k nearest neighbours, and a linear probe.

Shapes: N training rows, T test rows, E width, K classes.

Precision as in `zoo.metrics.ranking`: fp32 products, equal vectors have equal scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from zoo.errors import SampleError, UnknownNameError
from zoo.metrics.ranking import checked_vectors, distinct_rows, full_precision
from zoo.metrics.retrieval import Ties

TEMPERATURE = 0.07  # of DINO's k-NN (arXiv:2104.14294, section 4.1), after Wu et al. (arXiv:1805.01978, eq. 8)
GRID = (1e-3, 1e-4, 1e-5, 1e-6)  # L2 weights to choose from (ours; CLIP's linear probe sweeps a like range)
_HELD_OUT = 5  # one training row in so many chooses the L2 weight
_ITERATIONS = 100  # of L-BFGS at most (ours)
_BLOCK_SCORES = 1 << 24  # scores held at a time: 64 MiB in fp32 (ours)


def knn_votes(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    classes: int,
    k: int = 20,
    temperature: float = TEMPERATURE,
    *,
    block_scores: int = _BLOCK_SCORES,
) -> Tensor:
    """Votes (T, K) float64 of the k nearest training rows, each with weight exp(score / temperature).

    Where the k-th place is tied, the rows that share it share what is left of the k votes: their order does not matter.

    Args:
        train: (N, E) unit vectors.
        labels: (N,) int64 in 0 .. K - 1.
        test: (T, E) unit vectors, on the same device.
        classes: K.
        k: neighbours; all rows where there are fewer.
        temperature: of the weights.
        block_scores: scores to hold at a time; at least those of one row are.

    Raises:
        NonFiniteError, SampleError: vectors or labels that can't be used, or no neighbour asked for.
    """
    if k < 1:
        raise SampleError(f"k-NN needs at least one neighbour, not k = {k}")
    train, test = checked_vectors(train, "training row", "k-NN"), checked_vectors(test, "row", "k-NN")
    _check_labels(labels, len(train), classes)
    k = min(k, len(train))
    distinct, first_of = distinct_rows(train)
    votes = torch.zeros(len(test), classes, dtype=torch.float64, device=test.device)
    size = max(1, block_scores // len(train))
    for start in range(0, len(test), size):
        with full_precision(test.device):
            scores = (test[start : start + size] @ distinct.T)[:, first_of]
        rows = slice(start, start + len(scores))
        nearest = scores.topk(k, 1, sorted=True)
        weights = ((nearest.values - nearest.values[:, :1]).double() / temperature).exp()
        last = nearest.values[:, -1:]
        certain = nearest.values > last
        votes[rows].scatter_add_(1, labels[nearest.indices], weights * certain)
        votes[rows] += _tied_votes(scores == last, labels, classes, k - certain.sum(1)) * weights[:, -1:]
    return votes


def _tied_votes(tied: Tensor, labels: Tensor, classes: int, left: Tensor) -> Tensor:
    """(b, K): `left` (b,) votes, shared evenly by the tied rows of (b, N)."""
    row, column = tied.nonzero(as_tuple=True)
    counts = torch.zeros(len(tied), classes, dtype=torch.float64, device=tied.device)
    counts.view(-1).index_add_(0, row * classes + labels[column], counts.new_ones(len(row)))
    return counts * (left / counts.sum(1))[:, None]


@dataclass(frozen=True, slots=True)
class Logistic:
    """A fitted linear classifier: rows (R, E) -> logits (R, K). `l2` is what it was fitted with."""

    weight: Tensor
    bias: Tensor
    l2: float

    def __call__(self, rows: Tensor) -> Tensor:
        with full_precision(rows.device):
            return rows.float() @ self.weight + self.bias


def fit_logistic(
    rows: Tensor, labels: Tensor, classes: int, l2: float, weights: Tensor | None = None, start: Logistic | None = None
) -> Logistic:
    """Minimise the mean cross entropy + l2 / 2 |W|^2 (the bias is free) by full-batch L-BFGS.

    Args:
        rows: (N, E).
        labels: (N,) int64 in 0 .. K - 1.
        classes: K.
        l2: weight of the penalty; scikit-learn's C is 1 / (N l2).
        weights: (N,) share of each row in the mean; None = all the same.
        start: where to begin; None = at zero.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(rows.device.type, enabled=False):
        rows, labels = rows.detach().float().clone(), labels.clone()  # clones: those of inference mode have no gradient
        share = torch.full((len(rows),), 1 / len(rows), device=rows.device) if weights is None else weights.clone()
        weight = rows.new_zeros(rows.shape[1], classes) if start is None else start.weight.clone()
        bias = rows.new_zeros(classes) if start is None else start.bias.clone()
        parameters = [weight.requires_grad_(), bias.requires_grad_()]
        optimizer = torch.optim.LBFGS(
            parameters, max_iter=_ITERATIONS, tolerance_grad=1e-6, history_size=10, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            losses = cross_entropy(rows @ weight + bias, labels, reduction="none")
            value = (losses * share).sum() + l2 / 2 * weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
    return Logistic(weight.detach(), bias.detach(), l2)


def linear_probe(train: Tensor, labels: Tensor, classes: int, grid: Sequence[float] = GRID) -> Logistic:
    """The logistic classifier of the training rows (N, E).

    Its L2 weight is the one of `grid` that is right most often on a fifth of the rows when fitted on the others (the
    largest of equally good ones); then it is fitted on all rows.

    Raises:
        NonFiniteError, SampleError: vectors or labels that can't be used, or an empty grid.
    """
    train = checked_vectors(train, "training row", "linear probe")
    _check_labels(labels, len(train), classes)
    if not grid:
        raise SampleError("linear probe: the grid of L2 weights is empty")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).to(train.device)
    held, kept = order[::_HELD_OUT], order[torch.arange(len(order)) % _HELD_OUT > 0]
    best, best_share, fit = grid[0], -1.0, None
    if len(grid) > 1 and len(kept):
        for l2 in sorted(grid, reverse=True):
            fit = fit_logistic(train[kept], labels[kept], classes, l2, start=fit)
            share = float(hits(fit(train[held]), labels[held]).mean())
            if share > best_share:
                best, best_share = l2, share
    return fit_logistic(train, labels, classes, best)


def hits(scores: Tensor, labels: Tensor, ties: Ties = "expected") -> Tensor:
    """(T,) float64: whether the label of each row has the largest of its scores (T, K); a label of -1 is always wrong.

    Ties count as the expectation over orders, as wrong, or as right.
    """
    if ties not in ("expected", "wrong", "right"):
        raise UnknownNameError("way to count ties", ties, ("expected", "wrong", "right"))
    top = scores == scores.amax(1, keepdim=True)
    right = top.gather(1, labels.clamp(min=0)[:, None]).squeeze(1) & (labels >= 0)
    count = top.sum(1)
    if ties == "wrong":
        return (right & (count == 1)).double()
    return right.double() if ties == "right" else right / count.double()


def _check_labels(labels: Tensor, rows: int, classes: int) -> None:
    if not rows or len(labels) != rows:
        raise SampleError(f"a probe needs one label per training row: there are {len(labels)} for {rows} rows")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise SampleError(
            f"labels of a probe are 0 to {classes - 1}; these are {int(labels.min())} to {int(labels.max())}"
        )
