"""Preparing what comes next while the caller works."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Thing = TypeVar("Thing")
_END = object()


def ahead(things: Iterable[Thing], device: str, depth: int = 2) -> Iterator[Thing]:
    """The same things in the same order, made in another thread: up to `depth` of them before they are asked for.

    Args:
        things: what the caller will use.
        device: the type of the one on which the caller computes, as torch names it.
        depth: how many are made before they are asked for, at most.

    Not where the caller computes on the CPU: products share their work evenly among all cores, so whatever one core does
    beside them the others wait for, and it would be paid twice.
    """
    if device == "cpu":
        yield from things
        return
    source = iter(things)
    with ThreadPoolExecutor(1, "zoo-ahead") as pool:
        waiting: deque[Future[object]] = deque(pool.submit(next, source, _END) for _ in range(depth))
        try:
            while (thing := waiting.popleft().result()) is not _END:
                waiting.append(pool.submit(next, source, _END))
                yield thing  # type: ignore[misc]  # what is not the end is one of the things
        finally:
            for future in waiting:
                future.cancel()
