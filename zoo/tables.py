"""Tables as plain text, for commands that must answer at once."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned lines, cut at the edge of a terminal. (rich takes longer to import than all of `zoo list`.)"""
    everything = [header, *rows]
    widths = [max(len(row[i]) for row in everything) for i in range(len(header))]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    lines = ["  ".join(c.ljust(width) for c, width in zip(row, widths, strict=True)).rstrip() for row in everything]
    if room is not None:
        lines = [line if len(line) <= room else f"{line[: room - 1]}…" for line in lines]
        lines[0] = f"\033[1m{lines[0]}\033[0m"
    return lines
