"""Vectors -> where the relevant candidates of every query stand, ties included.

Shapes: Q queries, C candidates, E width, R most relevant candidates of one query, P longest pool.

Precision. Scores are dot products in true fp32: vectors of less are widened, autocast and TF32 are off. Two candidates
tie when their scores are equal. Candidates whose vectors are equal bit for bit always do, because each distinct vector
is scored once and its score shared (a matrix product may round the same row differently in different places). Scores of
vectors that differ are compared as they come: closer than about 1e-7 their order is that of rounding. Where products of
bf16 are much faster, they decide what they can for sure (`zoo.metrics.rounded`), and fp32 the rest: the result is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.errors import NonFiniteError, SampleError
from zoo.metrics.counting import counted
from zoo.metrics.rounded_ranks import RoundedRanks

Indexes = Sequence[Sequence[int]]

_BLOCK_SCORES = 3 << 21  # scores held at a time: 24 MiB in fp32, the fastest of those tried (ours, 2 CPU cores)
_SLICE = 1 << 14  # rows fingerprinted at a time
_TELLING = 32  # columns that are looked at first
_LARGEST = 1e18  # of a norm: the product of two is still far from the end of fp32


@dataclass(frozen=True, slots=True)
class Ranks:
    """Where the relevant candidates stand. All (Q, R) int64, one column per relevant candidate; see `mask`.

    above: candidates that score strictly higher.
    tied: candidates with the very same score, itself included.
    tied_relevant: how many of `tied` are relevant.
    mask: (Q, R) bool, False where a query has fewer than R relevant candidates.
    """

    above: Tensor
    tied: Tensor
    tied_relevant: Tensor
    mask: Tensor


def rank(
    queries: Tensor,
    candidates: Tensor,
    relevant: Indexes,
    pools: Indexes | None = None,
    *,
    name: str = "task",
    block_scores: int = _BLOCK_SCORES,
) -> Ranks:
    """Rank the relevant candidates of every query, in blocks of queries: the whole Q x C matrix is never held.

    Args:
        queries: (Q, E), any float type; scores are dot products.
        candidates: (C, E), on the same device.
        relevant: per query the indexes of its relevant candidates, at least one.
        pools: per query the indexes of the candidates it is ranked against, its relevant ones among them; an index that
            stands twice counts once. None = all candidates.
        name: what error messages call the data.
        block_scores: scores to hold at a time; at least those of one query are.

    Returns:
        Ranks, on the CPU.

    Raises:
        NonFiniteError: a vector is NaN or infinite; names the query or candidate.
        SampleError: `relevant` or `pools` do not fit the vectors; names the query.
    """
    queries, candidates = checked_vectors(queries, "query", name), checked_vectors(candidates, "candidate", name)
    relevant, pools = checked_indexes(len(queries), len(candidates), relevant, pools, name)
    distinct, first_of = distinct_rows(candidates)
    columns, mask = _padded(relevant, candidates.device)
    quick = None
    if pools is None:
        quick = RoundedRanks.of(candidates, distinct, first_of, len(queries), columns.shape[1])
    blocks = []
    for rows in _blocks(len(queries), len(candidates), pools, block_scores):
        with full_precision(queries.device):
            places = quick and quick.places(queries[rows], columns[rows], mask[rows])
            if places is None:
                quick = None  # too close together to be told apart by rounded scores, as the next ones will be
                scores, own = _block(queries[rows], distinct, first_of, columns[rows], pools and pools[rows])
                places = _places(scores, own, mask[rows])
        blocks.append(places)
    return Ranks(*(torch.cat(parts).cpu() for parts in zip(*blocks, strict=True)))


def rank_scores(
    scores: Callable[[slice], Tensor],
    size: tuple[int, int],
    relevant: Indexes,
    pools: Indexes | None = None,
    *,
    name: str = "task",
    block_scores: int = _BLOCK_SCORES,
) -> Ranks:
    """`rank` by scores that are no dot products of vectors.

    Args:
        scores: (some queries) -> their scores (b, C), larger = better, -inf the worst; called once for each block.
        size: Q and C.
        relevant: as in `rank`, like all that follow.
        pools: as in `rank`.
        name: as in `rank`.
        block_scores: as in `rank`.

    Raises:
        NonFiniteError: a score is NaN; names the query. SampleError: as `rank`.
    """
    relevant, pools = checked_indexes(*size, relevant, pools, name)
    blocks = []
    for rows in _blocks(*size, None, block_scores):
        found = scores(rows).detach().float()
        if (bad := found.isnan().any(1)).any():
            raise NonFiniteError(f"{name}: a score of query {rows.start + int(bad.int().argmax())} is not a number")
        columns, inside = _padded(relevant[rows], found.device)
        own = found.gather(1, columns)
        if pools is not None:
            members, there = _padded(pools[rows], found.device)
            found = found.gather(1, members).masked_fill(~there, torch.nan)
        blocks.append(_places(found, own, inside))
    longest = max(inside.shape[1] for *_, inside in blocks)
    wide = [tuple(_widened(part, longest) for part in block) for block in blocks]
    return Ranks(*(torch.cat(parts).cpu() for parts in zip(*wide, strict=True)))


def _places(scores: Tensor, own: Tensor, inside: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fields of `Ranks` for the relevant ones' scores `own` (b, R) among `scores` (b, C)."""
    # padding: NaN equals nothing, so it neither counts nor is counted
    own = own.masked_fill(~inside, torch.nan)
    above, tied = counted(scores, own)
    return above, tied, counted(own, own)[1], inside


def _widened(part: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(part, (0, width - part.shape[1]))


def best(
    query: Tensor, candidates: Tensor, pool: Sequence[int] | None = None, most: int = 5
) -> list[tuple[int, float]]:
    """The `most` best candidates of one query (E,) as (index, score): to look at, not to count."""
    members = None if pool is None else torch.tensor(sorted(set(pool)), device=candidates.device)
    with full_precision(candidates.device):
        scores = (candidates if members is None else candidates[members]).float() @ query.to(candidates.device).float()
    top = scores.sort(descending=True, stable=True)
    order = top.indices[:most] if members is None else members[top.indices[:most]]
    return list(zip(order.tolist(), top.values[:most].tolist(), strict=True))


def distinct_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows (U, E) of `rows` (C, E) fp32, and for each row which of them it is: (C,) int64.

    Sorting 64-bit fingerprints is many times faster than sorting rows; rows that share one are then compared. Where the
    first few columns tell all rows apart, as they mostly do, nothing else is read.
    """
    everyone = torch.arange(len(rows), device=rows.device)
    if len(_fingerprints(rows[:, :_TELLING]).unique()) == len(rows):
        return rows, everyone
    marks = torch.cat([_fingerprints(part) for part in torch.split(rows, _SLICE)])
    _, first_of = torch.unique(marks, return_inverse=True)
    count = int(first_of.max()) + 1 if len(rows) else 0
    if count == len(rows):
        return rows, everyone
    chosen = everyone.new_full((count,), len(rows)).scatter_reduce(0, first_of, everyone, "amin")
    distinct = rows[chosen]
    parts = zip(torch.split(first_of, _SLICE), torch.split(rows, _SLICE), strict=True)
    if all(torch.equal(distinct[which], part) for which, part in parts):
        return distinct, first_of
    distinct, first_of = torch.unique(rows, dim=0, return_inverse=True)  # two rows share a fingerprint: the slow way
    return distinct, first_of


def _fingerprints(rows: Tensor) -> Tensor:
    """(C,) int64, equal for equal rows (C, E) fp32: the sum of their 64-bit words, each times an odd number of its own."""
    if rows.shape[1] % 2:
        rows = torch.nn.functional.pad(rows, (0, 1))
    words = (rows + 0.0).contiguous().view(torch.int64)  # -0.0 and 0.0 are one value
    generator = torch.Generator().manual_seed(0)
    odd = torch.randint(-(2**62), 2**62, (words.shape[1],), generator=generator) * 2 + 1
    return (words * odd.to(rows.device)).sum(1)  # wraps around: exactly what a multiply-shift hash wants


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """True fp32 products: no autocast, no TF32, no bf16 passes, whatever the run is set to."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False), torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def checked_indexes(
    queries: int, candidates: int, relevant: Indexes, pools: Indexes | None, name: str
) -> tuple[list[list[int]], list[list[int]] | None]:
    """Sorted indexes without repeats. Raises SampleError, naming the query, if they do not fit."""
    if len(relevant) != queries or (pools is not None and len(pools) != queries):
        lengths = f"{len(relevant)} relevant lists" + ("" if pools is None else f" and {len(pools)} pools")
        raise SampleError(f"{name}: {queries} queries, but {lengths}")
    if queries == 0:
        raise SampleError(f"{name}: there are no queries")
    right = [_indexes(entry, candidates, f"{name}: query {i}: relevant") for i, entry in enumerate(relevant)]
    if pools is None:
        return right, None
    # pools that queries share (folds) are checked and kept once; the entry is kept too, or its id could come again
    known: dict[int, tuple[Sequence[int], list[int], set[int]]] = {}
    lists = []
    for i, (wanted, entry) in enumerate(zip(right, pools, strict=True)):
        if id(entry) not in known:
            found = _indexes(entry, candidates, f"{name}: query {i}: pool")
            known[id(entry)] = entry, found, set(found)
        _, pool, members = known[id(entry)]
        if missing := [index for index in wanted if index not in members]:
            raise SampleError(f"{name}: query {i}: its relevant candidate {missing[0]} is not in its pool")
        lists.append(pool)
    return right, lists


def _indexes(entry: Sequence[int], count: int, where: str) -> list[int]:
    found = sorted({int(i) for i in entry})
    if not found:
        raise SampleError(f"{where} is empty")
    if found[0] < 0 or found[-1] >= count:
        raise SampleError(f"{where} holds {found[0] if found[0] < 0 else found[-1]}; there are {count} candidates")
    return found


def checked_vectors(vectors: Tensor, kind: str, name: str) -> Tensor:
    """(R, E) in fp32, without gradients. Raises NonFiniteError, naming the first `kind` of vector that is not finite."""
    vectors = vectors.detach().float()
    norms = torch.linalg.vector_norm(vectors, dim=1)
    if bad := (~(norms < _LARGEST)).nonzero().flatten().tolist():
        more = f" (and of {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise NonFiniteError(
            f"{name}: the vector of {kind} {bad[0]}{more} is not finite; the model or the weights are broken"
        )
    return vectors


def _block(
    queries: Tensor, distinct: Tensor, first_of: Tensor, columns: Tensor, pools: list[list[int]] | None
) -> tuple[Tensor, Tensor]:
    """Scores of the candidates in play (b, C or P; -inf = padding) and those of the relevant ones (b, R)."""
    if pools is None:
        scores = queries @ distinct.T
        own = scores.gather(1, first_of[columns])
        return (scores if len(distinct) == len(first_of) else scores[:, first_of]), own
    members, inside = _padded(pools, queries.device)
    needed, position = torch.unique(first_of[members], return_inverse=True)
    scores = queries @ distinct[needed].T
    own = scores.gather(1, torch.searchsorted(needed, first_of[columns]))
    return scores.gather(1, position).masked_fill(~inside, -torch.inf), own


def _blocks(queries: int, candidates: int, pools: Indexes | None, block_scores: int) -> Iterator[slice]:
    size = max(1, block_scores // candidates)
    if pools is not None:  # b queries with pools of P can touch b * P candidates: b * b * P scores
        size = max(size, math.isqrt(block_scores // max(map(len, pools))))
    for start in range(0, queries, size):
        yield slice(start, start + size)


def _padded(lists: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(Q, longest) indexes, padded with each row's first one, and which entries are real."""
    longest = max(map(len, lists))
    lengths = torch.tensor([len(entry) for entry in lists])
    table = torch.tensor([[*entry, *[entry[0]] * (longest - len(entry))] for entry in lists])
    return table.to(device), (torch.arange(longest) < lengths[:, None]).to(device)
