"""The packaged emoji as something to search in: `zoo search NAME "a slice of pizza" --in emoji`."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from zoo.data.sources.emoji import PACKAGED, STYLES, drawing, read_emoji
from zoo.vectors.rows import Row
from zoo.weights import sha256


class EmojiRows:
    """Every emoji in every drawing style; the English name is shown, not embedded."""

    def __init__(self) -> None:
        self.columns: list[str] = []
        self.fingerprint = sha256(PACKAGED)
        self.named_files = ""
        self._rows = [
            Row(number, f"{emoji.id}/{style}", None, emoji.names["en"], drawing(emoji, style))
            for number, (emoji, style) in enumerate((e, s) for e in read_emoji() for s in STYLES)
        ]
        self.pictures = {row.id: row.item.images[0] for row in self._rows}

    def __len__(self) -> int:
        return len(self._rows)

    def shards(self, size: int, wanted: Collection[int]) -> Iterator[tuple[int, list[Row]]]:
        """See `zoo.vectors.rows.Rows`."""
        for k in sorted(wanted):
            yield k, self._rows[k * size : (k + 1) * size]
