"""The items of a collection that a probabilistic entry is least sure of: `zoo ambiguous NAME --in PLACE`.

--in takes a folder of pictures (embedded once, then kept in the cache until something changes), a .parquet file that
`zoo embed` wrote, of pictures or of texts, or `emoji`, the packaged drawings. The uncertainty of an item is the trace of its
covariance; what it is worth is told by the results of a test (docs/probabilistic.md). The exit code is 3 if images of the
folder could not be used.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoo.errors import ZooError
from zoo.files import user_path
from zoo.tables import printable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from zoo.vectors.place import Place


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `zoo ambiguous` takes."""
    parser.add_argument("name", help="a probabilistic model as `zoo list` prints it, or path:FOLDER of a bundle or run")
    parser.add_argument(
        "--in", dest="place", required=True, metavar="PLACE", help="a folder, a .parquet of zoo embed, or emoji"
    )
    parser.add_argument("--certain", action="store_true", help="those that it is most sure of instead")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="how many items; default 20")
    parser.add_argument(
        "--html", type=user_path, metavar="FILE", help="where to write the page; default: into the cache"
    )
    parser.add_argument("--open", action="store_true", help="show the page in the browser")
    parser.add_argument("--weights", type=user_path, metavar="PATH", help="a local copy of the weights")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")


def run(args: argparse.Namespace) -> int:
    """Sort by uncertainty, print the items, write the page."""
    import numpy as np

    import zoo
    from zoo.vectors.gallery import gallery, write_page
    from zoo.vectors.place import open_place
    from zoo.vectors.search import EXIT_SOME_BAD

    if args.top < 1:
        raise ZooError(f"--top {args.top}: at least 1")
    embedder = zoo.load(args.name, weights=args.weights or True, device=args.device)
    if not embedder.probabilistic:
        raise ZooError(
            f"{args.name} gives vectors without variances, so it can't tell what is ambiguous; `zoo list` names the "
            "probabilistic entries"
        )
    place = open_place(args.place, embedder)
    if place.index.log_var is None:
        raise ZooError(f"{args.place} holds vectors without variances; embed again with zoo embed {embedder.name} ...")
    uncertainty = np.exp(place.index.log_var.astype(np.float64)).sum(1)
    order = np.argsort(uncertainty if args.certain else -uncertainty, kind="stable")[: args.top].tolist()
    _print(order, uncertainty, place)
    which = "most certain" if args.certain else "least certain"
    page = gallery(
        f"The {which} of {args.place}",
        f"{len(place.index.ids):,} rows by the total variance that {embedder.name} gives them",
        place,
        [(row, f"{rank}. \u00a0 {uncertainty[row]:.4g}") for rank, row in enumerate(order, 1)],
    )
    for remark in [*place.remarks, *write_page(page, args.html, "ambiguous.html", args.open)]:
        print(f"note: {remark}")
    return EXIT_SOME_BAD if place.bad else 0


def _print(order: Sequence[int], uncertainty: npt.NDArray[np.float64], place: Place) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    below = uncertainty.argsort(kind="stable").argsort(kind="stable") / max(1, len(uncertainty) - 1)
    table = Table("rank", "variance", "above % of the items", "id", "text")
    for rank, row in enumerate(order, 1):
        name, text = map(printable, (place.index.ids[row], place.index.texts[row] or ""))
        share = f"{100 * below[row]:.1f}"
        shown = (Text(part, overflow="fold") for part in (name, text))
        table.add_row(str(rank), f"{uncertainty[row]:.4g}", share, *shown)
    Console().print(table)
