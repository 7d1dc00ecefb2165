"""A page of pictures and texts with a figure each: what `zoo search` and `zoo ambiguous` show."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from zoo.data.images import data_address
from zoo.errors import SampleError, ZooError
from zoo.files import cache_folder, replacing
from zoo.vectors.place import Place

_THUMBNAIL = 192  # pixels, longer side


def gallery(title: str, about: str, place: Place, entries: Sequence[tuple[int, str]], query: str = "") -> str:
    """The page.

    Args:
        title: above it.
        about: a line below the title.
        place: what the rows are of.
        entries: row and its figure, in the order to show them.
        query: HTML that stands above the entries.
    """
    shown = []
    for row, figure in entries:
        name, text, picture = place.index.ids[row], place.index.texts[row], place.picture(row)
        image = thumbnail(picture, name) if picture is not None else ""
        caption = f"<div>{escape(text)}</div>" if text else ""
        score = f'<span class="score">{escape(figure)}</span>'
        shown.append(f'<li>{image}{score}{caption}<div class="id">{escape(name)}</div></li>')
    return Template(Path(__file__).with_name("gallery.html").read_text("utf-8")).substitute(
        title=escape(title), about=escape(about), query=query, entries="\n".join(shown)
    )


def thumbnail(source: Any, name: str) -> str:
    """The picture as a small `data:` image, or a word where it is gone or unreadable by now."""
    try:
        return f'<img alt="{escape(name)}" src="{data_address(source, name, _THUMBNAIL, quality=85)}">'
    except SampleError:
        return "<div>(picture not readable)</div>"


def write_page(page: str, wanted: Path | None, name: str, show: bool) -> list[str]:
    """Write the page where it is wanted, else as `name` into the cache, and open it if asked to.

    Returns:
        remarks: a cache that can't be written is only worth one.
    """
    path = (wanted or cache_folder() / name).absolute()
    try:
        with replacing(path) as partial:
            partial.write_bytes(
                page.encode("utf-8", "backslashreplace")
            )  # a place may have another name than UTF-8 holds
    except ZooError as error:
        if wanted is not None:
            raise
        return [f"no page was written: {error} (--html FILE names one)"]
    print(f"page: {path}")
    if show:
        import webbrowser

        webbrowser.open(path.as_uri())
    return []
