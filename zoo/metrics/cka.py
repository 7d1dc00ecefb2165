"""Linear CKA: how alike two encoders arrange the same items, whatever their widths; without a matrix of all pairs of items.

Shapes: N items, D and E widths of the two sides.

Sources: Kornblith et al. (arXiv:1905.00414), section 3, for HSIC and CKA; Song et al. (JMLR 13, 2012), equation 5, for the
unbiased estimator of HSIC. Choosing encoders by it: Maniparambil et al. (arXiv:2409.19425).
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.errors import NonFiniteError, SampleError

_LEAST = {False: 2, True: 4}  # items for the plain and for the unbiased estimator


class LinearCka:
    """CKA of two sides that come in blocks of rows; memory is D x E + D x D + E x E fp64 values, whatever N is.

    Formula:
        K = X X^T, L = Y Y^T, CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))
        plain:    HSIC(K, L) ~ tr(K H L H) = |Xc^T Yc|_F^2, H = I - 1/N, Xc and Yc with their means taken off
        unbiased: HSIC(K, L) ~ tr(K' L') + (1'K'1)(1'L'1) / ((N - 1)(N - 2)) - 2 / (N - 2) 1'K'L'1, K' and L' being K and L
                  with zeros on the diagonal

    The plain value is 1 for any two sides once N <= min(D, E); the unbiased one is 0 on average for sides that have nothing
    in common, and may be negative.

    Args:
        unbiased: which estimator.
    """

    def __init__(self, unbiased: bool = False) -> None:
        self.unbiased = unbiased
        self.count = 0
        self._shifts: tuple[Tensor, Tensor] | None = None
        self._moments: list[_Moments] = []

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add items: x (n, D) and y (n, E), row i of both being the same item; computed in fp64.

        Raises:
            SampleError: rows that do not pair off, or another width than before. NonFiniteError: names the item.
        """
        x, y = self._checked(x), self._checked(y)
        if len(x) != len(y):
            raise SampleError(f"CKA compares the same items: one side has {len(x):,} rows, the other {len(y):,}")
        if not len(x):
            return
        if self._shifts is None:
            # CKA does not depend on the means; taking them off roughly keeps the sums small, so that nothing cancels
            self._shifts = x.mean(0), y.mean(0)
            widths = (x.shape[1], y.shape[1])
            self._moments = [_Moments(*widths), _Moments(widths[0], widths[0]), _Moments(widths[1], widths[1])]
        for side, shift in zip((x, y), self._shifts, strict=True):
            if side.shape[1:] != shift.shape:
                raise SampleError(f"a block has the width {side.shape[1]}, those before it had {len(shift)}")
        x, y = x - self._shifts[0], y - self._shifts[1]
        for moments, (left, right) in zip(self._moments, ((x, y), (x, x), (y, y)), strict=True):
            moments.add(left, right, self.unbiased)
        self.count += len(x)

    def compute(self) -> float:
        """The value; 0 where one side is constant.

        Raises:
            SampleError: too few items.
        """
        if self.count < _LEAST[self.unbiased]:
            raise SampleError(f"CKA needs at least {_LEAST[self.unbiased]} items, there are {self.count}")
        both, left, right = (moments.hsic(self.count, self.unbiased) for moments in self._moments)
        scale = max(left, 0.0) ** 0.5 * max(right, 0.0) ** 0.5
        return both / scale if scale > 0 else 0.0

    def _checked(self, rows: Tensor) -> Tensor:
        if rows.ndim != 2:
            raise SampleError(f"CKA takes rows of vectors (N, D), not a tensor of shape {tuple(rows.shape)}")
        finite = torch.isfinite(rows).all(1)
        if not finite.all():
            raise NonFiniteError(f"item {self.count + int(finite.int().argmin())} has a value that is not finite")
        return rows.double()


def linear_cka(x: Tensor, y: Tensor, *, unbiased: bool = False, block_rows: int = 4096) -> float:
    """CKA of x (N, D) and y (N, E), in blocks of rows. See `LinearCka` for the formula and for what it raises."""
    if len(x) != len(y):
        raise SampleError(f"CKA compares the same items: one side has {len(x):,} rows, the other {len(y):,}")
    cka = LinearCka(unbiased)
    for start in range(0, len(x), block_rows):
        cka.update(x[start : start + block_rows], y[start : start + block_rows])
    return cka.compute()


class _Moments:
    """Sums over items from which HSIC of two sides follows. A row's square is a = |x|^2, b = |y|^2."""

    def __init__(self, left: int, right: int) -> None:
        self.cross = torch.zeros(left, right, dtype=torch.float64)  # sum of x y^T
        self.left, self.right = (torch.zeros(n, dtype=torch.float64) for n in (left, right))  # sums of x, y
        self.left_weighted, self.right_weighted = torch.zeros_like(self.left), torch.zeros_like(self.right)  # x b, y a
        self.squares = torch.zeros(3, dtype=torch.float64)  # sums of a, b, a b

    def add(self, x: Tensor, y: Tensor, weighted: bool) -> None:
        """Rows of both sides; `weighted`: also what the unbiased estimator needs."""
        self.cross += x.T @ y
        self.left += x.sum(0)
        self.right += y.sum(0)
        if weighted:
            a, b = x.square().sum(1), y.square().sum(1)
            self.left_weighted += b @ x
            self.right_weighted += a @ y
            self.squares += torch.stack([a.sum(), b.sum(), a @ b])

    def hsic(self, count: int, unbiased: bool) -> float:
        """Up to a factor that cancels in CKA."""
        if not unbiased:
            return float((self.cross - torch.outer(self.left, self.right) / count).square().sum())
        a, b, ab = self.squares
        # each of these is of kernels whose diagonal is 0
        trace = self.cross.square().sum() - ab
        totals = (self.left @ self.left - a) * (self.right @ self.right - b)
        rows = self.left @ self.cross @ self.right - self.left @ self.left_weighted
        rows = rows - self.right @ self.right_weighted + ab
        return float(trace + totals / ((count - 1) * (count - 2)) - 2 / (count - 2) * rows)
