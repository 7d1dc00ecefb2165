"""A part of an evaluation task, for a quick look: fewer queries, and candidates that hold what is right for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from math import gcd

from zoo.types import RetrievalTask


def smaller(task: RetrievalTask, items: int) -> RetrievalTask:
    """The task with about `items` queries and candidates together, or as it is if it has no more than that.

    Queries are spread evenly over the task. Every one of them keeps a right candidate, even if there are more than `items`
    then; the rest are others that it could be taken for: from the queries' own pools, if there are any, else spread evenly.
    Classes of several prompts stay whole. Tasks in `also` are made smaller in the same way.
    """
    count = len(task.queries) + len(task.candidates)
    if items >= count:
        return task
    chosen = _spread(len(task.queries), max(1, items * len(task.queries) // count))
    needed = {c for part in (task, *task.also) for q in chosen for c in _candidates(part, part.relevant[q][:1])}
    for entry in _others(task, chosen):
        if len(needed) >= items - len(chosen):
            break
        needed.update(_candidates(task, [entry]))
    kept = sorted(needed)
    queries, candidates = (
        [every[i] for i in some] for every, some in ((task.queries, chosen), (task.candidates, kept))
    )
    main, *also = (
        replace(_part(part, chosen, kept), queries=queries, candidates=candidates) for part in (task, *task.also)
    )
    return replace(main, also=tuple(also))


def _spread(total: int, count: int) -> list[int]:
    return [i * total // count for i in range(count)]


def _candidates(part: RetrievalTask, entries: Iterable[int]) -> list[int]:
    """The candidates behind what is ranked: they themselves, or all prompts of a class."""
    if part.groups is None:
        return list(entries)
    classes = set(entries)
    return [number for number, group in enumerate(part.groups) if group in classes]


def _others(task: RetrievalTask, chosen: Sequence[int]) -> Iterator[int]:
    """What else is ranked, in the order in which it is taken in."""
    if task.pools is not None:
        rounds = zip_longest(*(task.pools[q] for q in chosen))
        return (entry for entry in chain.from_iterable(rounds) if entry is not None)
    total = len(task.candidates) if task.groups is None else max(task.groups) + 1
    # steps of about the golden section: evenly spread wherever one stops
    step = next(n for n in range(max(1, round(total * 0.618)), total + 1) if gcd(n, total) == 1)
    return (i * step % total for i in range(total))


def _part(part: RetrievalTask, chosen: Sequence[int], kept: Sequence[int]) -> RetrievalTask:
    """The relations of these queries to these candidates, renumbered."""
    entries = kept if part.groups is None else sorted({part.groups[c] for c in kept})
    number = {entry: i for i, entry in enumerate(entries)}

    def renumbered(lists: Sequence[Sequence[int]]) -> list[list[int]]:
        return [[number[entry] for entry in lists[q] if entry in number] for q in chosen]

    return replace(
        part,
        relevant=renumbered(part.relevant),
        pools=None if part.pools is None else renumbered(part.pools),
        groups=None if part.groups is None else [number[part.groups[c]] for c in kept],
    )
