"""Find pictures and texts: `zoo search vlm2vec-emoji "a person swimming" --in emoji`.

--in takes a folder of pictures (embedded once, then kept in the cache until something changes), a .parquet file that
`zoo embed` wrote, or `emoji`, the packaged drawings. A query may hold text, pictures, or both, under an instruction.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import ZooError
from zoo.types import Item

if TYPE_CHECKING:
    from zoo.embedder import Embedder
    from zoo.vectors.files import VectorFile
    from zoo.vectors.search import Hit

_THUMBNAIL = 192  # pixels, longer side


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `zoo search` takes."""
    parser.add_argument("name", help="a model as `zoo list` prints it, or path:FOLDER of a bundle or run")
    parser.add_argument("text", nargs="?", help="what to look for")
    parser.add_argument(
        "--in", dest="place", required=True, metavar="PLACE", help="a folder, a .parquet of zoo embed, or emoji"
    )
    parser.add_argument("--image", type=Path, action="append", default=[], metavar="FILE", help="a picture to look for")
    parser.add_argument("--instruction", metavar="TEXT", help="what about the query matters")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="how many results; default 10")
    parser.add_argument("--html", type=Path, metavar="FILE", help="where to write the page; default: into the cache")
    parser.add_argument("--open", action="store_true", help="show the page in the browser")
    parser.add_argument("--weights", type=Path, metavar="PATH", help="a local copy of the weights")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")


def run(args: argparse.Namespace) -> int:
    """Search, print the results, write the page."""
    import zoo
    from zoo.items import to_items
    from zoo.vectors.search import nearest

    if args.text is None and not args.image:
        raise ZooError("nothing to look for: give a text, --image FILE, or both")
    if args.top < 1:
        raise ZooError(f"--top {args.top}: at least 1")
    (query,) = to_items([Item(args.text, tuple(args.image), args.instruction)])
    embedder = zoo.load(args.name, weights=args.weights or True, device=args.device)
    vector = embedder.encode_query(query)  # before the index: a picture that can't be read shows at once
    index, pictures, remarks = _index(args.place, embedder)
    hits = nearest(vector, index.vectors, args.top)
    _print(hits, index)
    page = _page(query, hits, index, pictures, embedder.name, args.place)
    _write(page, args.html, args.open, remarks)
    for remark in remarks:
        print(f"note: {remark}")
    return 0


def _index(place: str, embedder: Embedder) -> tuple[VectorFile, Mapping[str, Any], list[str]]:
    """Vectors of the place, its pictures that are no files by id, and remarks."""
    from zoo.vectors.emoji_rows import EmojiRows
    from zoo.vectors.rows import open_rows
    from zoo.vectors.search import cached_index, read_index

    path = Path(place).expanduser()
    if place == "emoji" and not path.exists():
        rows = EmojiRows()
        index, remarks = cached_index(rows, "emoji", embedder)
        return index, rows.pictures, remarks
    if path.is_dir():
        index, remarks = cached_index(open_rows(path), str(path.absolute()), embedder)
        return index, {}, remarks
    if path.suffix == ".parquet" and path.is_file():
        return read_index(path, embedder), {}, []
    raise ZooError(f"--in {place}: give a folder of pictures, a .parquet that zoo embed wrote, or emoji")


# ---- what people see -------------------------------------------------------------------------------------------------


def _print(hits: Sequence[Hit], index: VectorFile) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("rank", "score", "id", "text")
    for rank, hit in enumerate(hits, 1):
        text = index.texts[hit.row] or ""
        table.add_row(
            str(rank), f"{hit.score:.4f}", Text(index.ids[hit.row], overflow="fold"), Text(text, overflow="fold")
        )
    Console().print(table)


def _page(
    query: Item, hits: Sequence[Hit], index: VectorFile, pictures: Mapping[str, Any], model: str, place: str
) -> str:
    from html import escape
    from string import Template

    parts = {"instruction": query.instruction, "text": query.text}
    asked = [f"<dt>{kind}</dt><dd>{escape(value)}</dd>" for kind, value in parts.items() if value]
    asked += [f"<dt>picture</dt><dd>{_figure(image, 'query')}</dd>" for image in query.images]
    items = []
    for rank, hit in enumerate(hits, 1):
        name, path, text = index.ids[hit.row], index.paths[hit.row], index.texts[hit.row]
        source = pictures.get(name) or (Path(path) if path else None)
        figure = _figure(source, name) if source is not None else ""
        shown = f"<div>{escape(text)}</div>" if text else ""
        score = f'<span class="score">{rank}. &nbsp; {hit.score:.4f}</span>'
        items.append(f'<li>{figure}{score}{shown}<div class="id">{escape(name)}</div></li>')
    return Template(Path(__file__).with_name("search.html").read_text("utf-8")).substitute(
        title=escape(query.text or "a picture"),
        about=escape(f"{len(index.ids):,} rows of {place}, compared by {model}"),
        query="".join(asked),
        hits="\n".join(items),
    )


def _figure(source: Any, name: str) -> str:
    """The picture as a small `data:` image, or a word where it is gone or unreadable by now."""
    from html import escape

    from zoo.data.images import data_address
    from zoo.errors import SampleError

    try:
        return f'<img alt="{escape(name)}" src="{data_address(source, name, _THUMBNAIL, quality=85)}">'
    except SampleError:
        return "<div>(picture not readable)</div>"


def _write(page: str, wanted: Path | None, show: bool, remarks: list[str]) -> None:
    """Write the page where it is wanted, else into the cache; a cache that can't be written is only worth a remark."""
    from zoo.files import cache_folder, replacing

    path = (wanted or cache_folder() / "search.html").absolute()
    try:
        with replacing(path) as partial:
            partial.write_text(page, "utf-8")
    except ZooError as error:
        if wanted is not None:
            raise
        remarks.append(f"no page was written: {error} (--html FILE names one)")
        return
    print(f"page: {path}")
    if show:
        import webbrowser

        webbrowser.open(path.as_uri())
