"""Train recipes on the same data with several seeds each, and put them into one table: `zoo compare A.yaml B.yaml`.

Every run is a fit in a process of its own, in OUT/RECIPE/seed-K. One that fails is a line in the table; the same command
again trains what is missing: finished runs are kept, interrupted ones go on. The table is written as compare.csv,
compare.json and compare.html (with a dot per run) into OUT. The exit code is 3 if some run failed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import ZooError
from zoo.files import user_path

if TYPE_CHECKING:
    from zoo.comparison.summary import Comparison

EXIT_SOME_BAD = 3  # as of `zoo embed`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `zoo compare` takes."""
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="a recipe: its file, or its name")
    parser.add_argument(
        "--data", default="", metavar="RECIPE", help="whose data all train on; default: the first one's"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1 (default 3)")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="optimizer steps of every run; default: what each recipe says"
    )
    parser.add_argument(
        "--out", type=user_path, default=Path("runs/compare"), metavar="FOLDER", help="default: runs/compare"
    )


def run(args: argparse.Namespace) -> int:
    """Train what is missing, then print and write the table."""
    from zoo.comparison.plan import plan
    from zoo.comparison.runner import train
    from zoo.comparison.summary import compared

    planned = plan(args.recipes, args.out, data=args.data, seeds=args.seeds, steps=args.steps)
    planned.write()
    origin = "that --data names" if args.data else "the first recipe"
    print(f"all recipes train on the data section of '{planned.data}' ({origin})")
    outcomes = train(list(planned.runs()), lambda line: print(line, flush=True))
    comparison = compared(planned, outcomes)
    _write(comparison, args.out)
    _show(comparison)
    print(f"\ntable: {args.out / 'compare.csv'}, {args.out / 'compare.json'}\nreport: {args.out / 'compare.html'}")
    if not comparison.measures:
        raise ZooError(f"no run of {', '.join(planned.files)} has finished; the reasons are above and in {args.out}")
    return EXIT_SOME_BAD if any(entry.failed for entry in comparison.entries) else 0


def _write(comparison: Comparison, out: Path) -> None:
    from zoo.comparison.page import page
    from zoo.comparison.tables import as_csv, as_json
    from zoo.files import replacing

    for ending, content in (("csv", as_csv(comparison)), ("json", as_json(comparison)), ("html", page(comparison))):
        with replacing(out / f"compare.{ending}") as partial:
            partial.write_text(content, "utf-8")


def _show(comparison: Comparison) -> None:
    import sys

    from rich.console import Console

    from zoo.comparison.tables import terminal

    # a file or pipe gets whole lines; a table cut at 80 letters could not be read
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(terminal(comparison), markup=False)
