"""Find pictures and texts: `zoo search vlm2vec-emoji "a slice of pizza" --in emoji`.

--in takes a folder of pictures (embedded once, then kept in the cache until something changes), a .parquet file that
`zoo embed` wrote, or `emoji`, the packaged drawings. A query may hold text, pictures, or both, under an instruction. The
exit code is 3 if images of the folder could not be used.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoo.errors import ZooError
from zoo.files import user_path
from zoo.tables import printable
from zoo.types import Item

if TYPE_CHECKING:
    from zoo.vectors.place import Place
    from zoo.vectors.search import Hit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `zoo search` takes."""
    parser.add_argument("name", help="a model as `zoo list` prints it, or path:FOLDER of a bundle or run")
    parser.add_argument("text", nargs="?", help="what to look for")
    parser.add_argument(
        "--in", dest="place", required=True, metavar="PLACE", help="a folder, a .parquet of zoo embed, or emoji"
    )
    parser.add_argument(
        "--image", type=user_path, action="append", default=[], metavar="FILE", help="a picture to look for"
    )
    parser.add_argument("--instruction", metavar="TEXT", help="what about the query matters")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="how many results; default 10")
    parser.add_argument(
        "--html", type=user_path, metavar="FILE", help="where to write the page; default: into the cache"
    )
    parser.add_argument("--open", action="store_true", help="show the page in the browser")
    parser.add_argument("--weights", type=user_path, metavar="PATH", help="a local copy of the weights")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the weights")


def run(args: argparse.Namespace) -> int:
    """Search, print the results, write the page."""
    import zoo
    from zoo.items import to_items
    from zoo.vectors.gallery import gallery, write_page
    from zoo.vectors.place import open_place
    from zoo.vectors.search import EXIT_SOME_BAD, nearest

    if not (args.text or "").strip() and not args.image:
        raise ZooError("nothing to look for: give a text, --image FILE, or both")
    if args.top < 1:
        raise ZooError(f"--top {args.top}: at least 1")
    (query,) = to_items([Item(args.text, tuple(args.image), args.instruction)])
    embedder = zoo.load(args.name, weights=args.weights or True, device=args.device, dtype=args.dtype)
    vector = embedder.encode_query(query)  # before the index: a picture that can't be read shows at once
    place = open_place(args.place, embedder)
    hits = nearest(vector, place.index.vectors, args.top)
    _print(hits, place)
    page = gallery(
        query.text or "a picture",
        f"{len(place.index.ids):,} rows of {args.place}, compared by {embedder.name}",
        place,
        [(hit.row, f"{rank}. \u00a0 {hit.score:.4f}") for rank, hit in enumerate(hits, 1)],
        _asked(query),
    )
    for remark in [*place.remarks, *write_page(page, args.html, "search.html", args.open)]:
        print(f"note: {remark}")
    return EXIT_SOME_BAD if place.bad else 0


# ---- what people see -------------------------------------------------------------------------------------------------


def _print(hits: Sequence[Hit], place: Place) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("rank", "score", "id", "text")
    for rank, hit in enumerate(hits, 1):
        name, text = map(printable, (place.index.ids[hit.row], place.index.texts[hit.row] or ""))
        table.add_row(str(rank), f"{hit.score:.4f}", Text(name, overflow="fold"), Text(text, overflow="fold"))
    Console().print(table)


def _asked(query: Item) -> str:
    """The query as HTML."""
    from html import escape

    from zoo.vectors.gallery import thumbnail

    parts = {"instruction": query.instruction, "text": query.text}
    asked = [f"<dt>{kind}</dt><dd>{escape(value)}</dd>" for kind, value in parts.items() if value]
    asked += [f"<dt>picture</dt><dd>{thumbnail(image, 'query')}</dd>" for image in query.images]
    return f'<div class="query"><dl>{"".join(asked)}</dl></div>'
