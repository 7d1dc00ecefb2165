"""Which image encoder and which text encoder arrange the same pairs most alike: `zoo pair-select --images ... --texts ...`.

Two frozen encoders are the easier to align the more alike they are; linear CKA measures that without training anything
(arXiv:2409.19425, which chose among encoders by it on COCO's captions). Embed the pictures of some thousand pairs with each
image encoder and their captions with each text encoder:

    zoo embed ENCODER pairs.parquet --image-column image --out images/ENCODER.parquet
    zoo embed ENCODER pairs.parquet --text-column text --out texts/ENCODER.parquet
    zoo pair-select --images images/ --texts texts/

Rows are paired by the ids that `zoo embed` writes, or by position where there are none.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zoo.files import user_path
from zoo.tables import table

if TYPE_CHECKING:
    from zoo.vectors.paired import Side


class Agreement(NamedTuple):
    """CKA of two encoders over so many pairs."""

    image: str
    text: str
    cka: float
    pairs: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `zoo pair-select` takes."""
    places = "files of `zoo embed` (.parquet, .npy), other .npy files of vectors (N, D), or folders of them"
    parser.add_argument(
        "--images", nargs="+", type=user_path, required=True, metavar="PLACE", help=f"of pictures: {places}"
    )
    parser.add_argument("--texts", nargs="+", type=user_path, required=True, metavar="PLACE", help="of texts: the same")
    parser.add_argument(
        "--unbiased", action="store_true", help="the unbiased estimator, for fewer pairs than some ten times the widths"
    )
    parser.add_argument(
        "--out", type=user_path, default=Path("pair-select.html"), metavar="FILE", help="default: pair-select.html"
    )


def run(args: argparse.Namespace) -> int:
    """Measure every image encoder with every text encoder."""
    from zoo.files import replacing
    from zoo.vectors.paired import open_sides

    images, texts = open_sides(args.images), open_sides(args.texts)
    found = _measured(images, texts, args.unbiased)
    ordered = sorted(found, key=lambda one: -one.cka)
    rows = [(one.image, one.text, f"{one.cka:.4f}", f"{one.pairs:,}") for one in ordered]
    print("\n".join(table(("image encoder", "text encoder", "CKA", "pairs"), rows)))
    notes = _notes(found, [*images, *texts], args.unbiased)
    for note in notes:
        print(f"note: {note}")
    with replacing(args.out) as partial:
        partial.write_bytes(_page(found, notes, args.unbiased).encode("utf-8", "backslashreplace"))  # names of files
    print(f"heat map: {args.out}")
    return 0


def _measured(images: Sequence[Side], texts: Sequence[Side], unbiased: bool) -> list[Agreement]:
    import sys

    import torch

    from zoo.errors import ZooError
    from zoo.metrics.cka import LinearCka
    from zoo.progress import counting
    from zoo.vectors.paired import blocks

    found = []
    with counting(len(images) * len(texts), "CKA", show=sys.stderr.isatty()) as advance:
        for image in images:
            for text in texts:
                cka = LinearCka(unbiased)
                try:
                    for left, right in blocks(image, text):
                        cka.update(torch.from_numpy(left), torch.from_numpy(right))
                    found.append(Agreement(image.name, text.name, cka.compute(), cka.count))
                except ZooError as error:
                    raise ZooError(f"{image.path} with {text.path}: {error}") from error
                advance(1)
    return found


def _notes(found: Sequence[Agreement], sides: Sequence[Side], unbiased: bool) -> list[str]:
    """What a reader of the values should know."""
    told = []
    fewest, widest = min(one.pairs for one in found), max(side.rows.shape[1] for side in sides)
    if not unbiased and fewest < 10 * widest:  # noise of width D scores D / (N + D): below 0.1 from there on
        told.append(
            f"{fewest:,} pairs are few for vectors of {widest:,} values: plain CKA is too high then, and the more so for "
            "wider encoders; use --unbiased"
        )
    if len({one.pairs for one in found}) > 1:
        told.append("the values are over different numbers of pairs: some files lack rows that others have")
    return told


def _page(found: Sequence[Agreement], notes: Sequence[str], unbiased: bool) -> str:
    import html
    from datetime import datetime

    from zoo.callbacks.report_heat_map import heat_map
    from zoo.callbacks.report_page import document, facts

    values = {(one.image, one.text): one.cka for one in found}
    images, texts = (list(dict.fromkeys(getattr(one, side) for one in found)) for side in ("image", "text"))
    best = max(found, key=lambda one: one.cka)
    about = {
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "most alike": f"{best.image} and {best.text}, CKA {best.cka:.4f} over {best.pairs:,} pairs",
        "estimator": "unbiased HSIC" if unbiased else "plain HSIC",
    }
    drawn = heat_map("linear CKA", images, texts, [[values[i, t] for t in texts] for i in images])
    said = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return document("Encoder pairs by linear CKA", "", facts(about), f"<h2>CKA</h2>{drawn}{said}")
