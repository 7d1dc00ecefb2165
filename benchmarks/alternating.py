"""Two ways of doing one thing, measured by turns in one process, and the line that says where."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from datetime import date

import torch


def alternate(ours: Callable[[], object], theirs: Callable[[], object], repeats: int = 5) -> tuple[float, float]:
    """Median seconds of both, after one warm-up each."""
    ours(), theirs()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    found: tuple[list[float], list[float]] = [], []
    for _ in range(repeats):
        for run, seconds in zip((ours, theirs), found, strict=True):
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return statistics.median(found[0]), statistics.median(found[1])


def machine() -> str:
    """Date, processor, threads and versions, for the head of a table."""
    return (
        f"{date.today()}, {_processor()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def row(name: str, ours: float, theirs: float, note: str = "") -> str:
    """A line of the table: seconds of both, and how many times faster ours is."""
    return f"| {name} | {ours:.3f} | {theirs:.3f} | {theirs / ours:.2f}x | {note} |"


def start_of_peak() -> float:
    """MiB that this process holds now; from here on `peak` counts anew, so that what was freed before hides nothing."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _status("VmRSS")


def peak() -> float:
    """MiB that this process held at most since `start_of_peak`. Not ru_maxrss: a process inherits that of its parent."""
    return _status("VmHWM")


def _status(field: str) -> float:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 2**10 for line in file if line.startswith(field))


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
