"""What this machine has."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def usable_cores() -> int:
    """Cores that this process may use: a container or `taskset` may leave it fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model(file: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, or its architecture where the system does not tell."""
    try:
        lines = file.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), "") or platform.processor() or platform.machine()


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still use: what the system has left, or less where a container is limited. None =
    unknown (not Linux).
    """
    found = [_available(root / "proc/meminfo")]
    for limit, used, cache in _LIMITS:
        group = root / "sys/fs/cgroup"
        most, now = _number(group / limit), _number(group / used)
        if most is not None and now is not None:
            held = _fields(group / Path(limit).with_name("memory.stat")).get(cache, 0)  # files it can drop at any time
            found.append(max(0, most - now + held))
    return min((value for value in found if value is not None), default=None)


_LIMITS = (
    ("memory.max", "memory.current", "inactive_file"),  # control groups, version 2
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),  # version 1
)


def _available(file: Path) -> int | None:
    kilobytes = _fields(file).get("MemAvailable:")
    return None if kilobytes is None else 1024 * kilobytes


def _fields(file: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    try:
        lines = [line.split() for line in file.read_text("utf-8").splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdecimal()}


def _number(file: Path) -> int | None:
    """None where there is no such file, and for "max" (no limit)."""
    try:
        text = file.read_text("utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
