"""Tables as plain text, for commands that must answer at once; and texts from anywhere, as a terminal may show them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """A text with its control characters escaped: those of a file name or caption could steer the terminal."""
    return text.translate(_CONTROLS)


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
