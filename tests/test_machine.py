"""What this machine has, read from the files in which Linux says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoo.machine import free_memory

SYSTEM = "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable: 4000 kB\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/meminfo": SYSTEM}, 4000 * 1024),
        (
            {"proc/meminfo": SYSTEM, "sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "5\n"},
            4000 * 1024,
        ),
        (
            {
                "proc/meminfo": SYSTEM,
                "sys/fs/cgroup/memory.max": "3000000\n",
                "sys/fs/cgroup/memory.current": "2500000\n",
                "sys/fs/cgroup/memory.stat": "anon 7\ninactive_file 400000\n",
            },
            900_000,
        ),
        (
            {
                "proc/meminfo": SYSTEM,
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "3000000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "2500000\n",
                "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 0\n",
            },
            500_000,
        ),
        ({"proc/meminfo": SYSTEM, "sys/fs/cgroup/memory.max": "9\n", "sys/fs/cgroup/memory.current": "12\n"}, 0),
    ],
    ids=["unknown", "system", "no limit", "container", "container, version 1", "over its limit"],
)
def test_free_memory_is_the_least_of_what_is_left(files: dict[str, str], expected: int | None, tmp_path: Path) -> None:
    assert free_memory(write(tmp_path, files)) == expected
