"""Exact search: the best candidates of every query, in blocks of bounded memory.

Shapes: Q queries, C candidates, E width, k results; b queries and c candidates of a block, G groups of g columns each.

`torch.topk` over all scores takes as long as the matrix product that makes them. But once k candidates were seen, only
scores above the k-th best of them matter, and these are few: maxima over groups of columns (one fast pass) tell which
groups hold one, and nothing else is looked at. In the first block the k-th largest maximum does for the k-th best: k
groups reach it, so k scores do.

A score and its index are packed into one 64-bit key, larger = better, so that equal scores have one order (the smaller
index first) however they come.

Where products of bf16 are much faster than those of fp32, somewhat more than k are found by rounded scores and these are
scored exactly. If the k-th best of them beats whatever a candidate that was left out can score, nothing was missed; the
queries for which that is not certain are searched again in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.errors import SampleError
from zoo.metrics.ranking import checked_vectors, full_precision
from zoo.metrics.rounded import Rounded, at_most, pays

_BLOCK = (1024, 1 << 14)  # queries and candidates whose scores are held at a time: 64 MiB (ours, 2 CPU cores)
_GROUP = 16  # columns that share a maximum (ours, likewise)
_SURVIVORS = 1 << 22  # scores sorted out at a time: if all of them survive, they take some 40 bytes each
_MORE = 16  # found by rounded scores beside 7/4 k, the share that left few queries of random vectors unsure (ours)
_RESCORED = 1 << 20  # numbers gathered at a time: they stay in the cache (ours, likewise)
_NOTHING = torch.iinfo(torch.int64).min


@dataclass(frozen=True, slots=True)
class Found:
    """The best candidates of every query, best first: `scores` (Q, k) fp32 and `indexes` (Q, k) int64."""

    scores: Tensor
    indexes: Tensor


def search(queries: Tensor, candidates: Tensor, k: int, *, block: tuple[int, int] = _BLOCK) -> Found:
    """The k candidates with the largest dot products, for every query; equal scores go by the smaller index.

    Scores are fp32 products, autocast and TF32 off. A product may round equal candidates differently in different places;
    where ranks of duplicates matter, `zoo.metrics.ranking.rank` shares their score.

    Args:
        queries: (Q, E), any float type.
        candidates: (C, E), on the same device.
        k: results per query; all candidates where there are fewer.
        block: queries and candidates whose scores are held at a time.

    Returns:
        Found, on the device of the vectors.

    Raises:
        SampleError: widths that differ, no candidates, or k below 1.
        NonFiniteError: a vector is NaN or infinite; names it.
    """
    if queries.shape[1] != candidates.shape[1]:
        raise SampleError(f"queries are {queries.shape[1]} wide, candidates {candidates.shape[1]}")
    if k < 1 or not len(candidates):
        raise SampleError(f"search for the {k} best of {len(candidates)} candidates: both must be at least 1")
    queries, candidates = (checked_vectors(t, n, "search") for t, n in ((queries, "query"), (candidates, "candidate")))
    k = min(k, len(candidates))
    with full_precision(queries.device):
        more = 7 * k // 4 + _MORE
        if pays(len(queries), candidates) and len(candidates) > more:
            keys = _rounded_first(queries, candidates, k, more, block)
        else:
            keys = _best_keys(queries, candidates, k, block)
    keys = keys.sort(dim=1, descending=True).values
    return Found(_score(keys), _index(keys))


def _rounded_first(queries: Tensor, candidates: Tensor, k: int, more: int, block: tuple[int, int]) -> Tensor:
    """The same (Q, k) keys as `_best_keys` finds, up to the rounding of fp32."""
    asked, offered = Rounded.of(queries), Rounded.of(candidates)
    found = _best_keys(asked.values, offered.values, more, block)
    left_out = at_most(_score(found.amin(1)), asked.error(offered))
    indexes = _index(found)
    keys = _key(_products(queries, candidates, indexes), indexes).topk(k, sorted=False).values
    unsure = (_score(keys.amin(1)) <= left_out).nonzero().squeeze(1)
    if len(unsure):
        keys[unsure] = _best_keys(queries[unsure], candidates, k, block)
    return keys


def _products(queries: Tensor, candidates: Tensor, chosen: Tensor) -> Tensor:
    """(Q, n): of every query (Q, E) with its own `chosen` (Q, n) candidates."""
    n, width = chosen.shape[1], queries.shape[1]
    step = max(1, _RESCORED // (n * width))
    buffer = queries.new_empty(step * n, width)  # one for all: fresh memory takes longer than the products
    scores = queries.new_empty(len(queries), n)
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        rows = chosen[part].flatten()
        torch.index_select(candidates, 0, rows, out=buffer[: len(rows)])
        scores[part] = torch.bmm(buffer[: len(rows)].view(-1, n, width), queries[part, :, None]).squeeze(2)
    return scores


def _best_keys(queries: Tensor, candidates: Tensor, k: int, block: tuple[int, int]) -> Tensor:
    """(Q, k) keys, in any order."""
    rows, columns = max(1, min(block[0], len(queries))), min(block[1], len(candidates))
    buffer = queries.new_empty(rows * columns)
    keys = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
    for start in range(0, len(queries), rows):
        part = slice(start, start + rows)
        keys[part] = _best_of_block(queries[part], candidates, k, columns, buffer)
    return keys


def _best_of_block(queries: Tensor, candidates: Tensor, k: int, columns: int, buffer: Tensor) -> Tensor:
    """(b, k) keys, in any order."""
    best = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(candidates), columns):
        part = candidates[start : start + columns]
        scores = buffer[: len(queries) * len(part)].view(len(queries), len(part))
        torch.mm(queries, part.T, out=scores)
        slices = torch.split(scores, max(1, _SURVIVORS // columns)), torch.split(best, max(1, _SURVIVORS // columns))
        best = torch.cat([_updated(known, new, start, k) for new, known in zip(*slices, strict=True)])
    return best


def _updated(best: Tensor, scores: Tensor, start: int, k: int) -> Tensor:
    """The keys (b, up to k) of the best of those seen before and of a block whose first candidate is `start`."""
    groups = scores.shape[1] // _GROUP
    full = groups * _GROUP
    maxima = (
        scores[:, :full].unflatten(1, (_GROUP, groups)).amax(1).float()
    )  # strided: many times faster than of neighbours
    if best.shape[1] == k:
        floor = _score(best.amin(1))  # an equal score with a later index is worse
    elif groups >= k:
        floor = maxima.topk(k, sorted=False).values.amin(1).nextafter(maxima.new_tensor(-torch.inf))
    else:
        floor = maxima.new_full((len(scores),), -torch.inf)
    found = [_survivors(scores, maxima, floor, torch.arange(0, full, max(1, groups)), start)]
    if full < scores.shape[1]:  # each of the last columns is its own group
        found.append(_survivors(scores, scores[:, full:].float(), floor, torch.tensor([full]), start))
    keys = torch.cat([best, *found], 1)
    return keys.topk(k, sorted=False).values if keys.shape[1] > k else keys


def _survivors(scores: Tensor, maxima: Tensor, floor: Tensor, steps: Tensor, start: int) -> Tensor:
    """Keys (b, most of a row) of the scores above `floor` (b,), padded.

    Group j of a row of scores (b, c) holds the columns j + `steps` (g,); its maximum is column j of `maxima` (b, G).
    """
    rows, groups = (maxima > floor[:, None]).nonzero(as_tuple=True)
    columns = groups[:, None] + steps.to(groups.device)
    values = scores.flatten().index_select(0, (rows[:, None] * scores.shape[1] + columns).flatten()).float()
    kept = (values > floor[rows].repeat_interleave(len(steps))).nonzero().squeeze(1)
    rows = rows[kept // max(1, len(steps))]
    counts = rows.bincount(minlength=len(scores))
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    keys = rows.new_full((len(scores), int(counts.max())), _NOTHING)
    keys[rows, place] = _key(values[kept], columns.flatten()[kept] + start)
    return keys


def _key(scores: Tensor, indexes: Tensor) -> Tensor:
    """Score and index as one int64: ordered by score, then by smaller index."""
    bits = (scores + 0.0).view(torch.int32)  # -0.0 and 0.0 are one value
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # floats of negative sign count backwards
    return (ordered.long() << 32) | (0xFFFFFFFF - indexes)


def _score(keys: Tensor) -> Tensor:
    ordered = (keys >> 32).int()
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)


def _index(keys: Tensor) -> Tensor:
    return 0xFFFFFFFF - (keys & 0xFFFFFFFF)
