"""Embed a folder of images, Parquet or JSONL files: `zoo embed vlm2vec-emoji photos/ --out photos.parquet`.

The run can be stopped at any time; the same command goes on where it was. Rows that can't be used are listed in
OUT.bad.jsonl, and the exit code is then 3 (`--on-bad raise` stops at the first instead).
"""

from __future__ import annotations

import argparse

from zoo.files import user_path

EXIT_SOME_BAD = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `zoo embed` takes."""
    parser.add_argument("name", help="a model as `zoo list` prints it, or path:FOLDER of a bundle or run")
    parser.add_argument(
        "input",
        type=user_path,
        nargs="+",
        help="a folder of images, or .parquet and .jsonl files: names, 'data/*.parquet', 'train-{00..12}.parquet'",
    )
    parser.add_argument(
        "--out",
        type=user_path,
        required=True,
        help="the result: .parquet, or .npy with .ids.jsonl (and .log_var.npy) beside it",
    )
    parser.add_argument("--text-column", metavar="NAME", help="default: text, if there is one")
    parser.add_argument("--image-column", metavar="NAME", help="default: image; paths or bytes")
    parser.add_argument(
        "--images",
        type=user_path,
        metavar="FOLDER",
        help="where the paths of a file's pictures lead; default: beside it",
    )
    parser.add_argument("--instruction", metavar="TEXT", help="what to look for, for every row")
    parser.add_argument(
        "--side", choices=("document", "query"), default="document", help="whose prompt; default document"
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="default 32")
    parser.add_argument("--on-bad", choices=("skip", "raise"), default="skip", help="for rows that can't be used")
    parser.add_argument("--restart", action="store_true", help="discard what another run left in OUT")
    parser.add_argument("--weights", type=user_path, metavar="PATH", help="a local copy of the weights")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")


def run(args: argparse.Namespace) -> int:
    """Embed; returns 0, or 3 if rows were left out."""
    import zoo
    from zoo.vectors.files import LOG_VAR_NPY
    from zoo.vectors.rows import open_rows
    from zoo.vectors.run import embed_rows

    rows = open_rows(args.input, args.text_column, args.image_column, args.instruction, args.images)
    embedder = zoo.load(args.name, weights=args.weights or True, device=args.device, dtype=args.dtype)
    settings = {"instruction": args.instruction, "columns": rows.columns, "dtype": args.dtype}
    if args.images:
        settings["images"] = str(args.images.absolute())
    result = embed_rows(
        embedder,
        rows,
        args.out,
        side=args.side,
        settings=settings,
        batch_size=args.batch_size,
        strict=args.on_bad == "raise",
        earlier="discard" if args.restart else "refuse",
    )
    if result.before == result.rows:
        print(f"{args.out} was complete already")
    elif result.before:
        print(f"{result.before:,} of {result.rows:,} rows had been done before")
    print(f"{result.rows - result.bad:,} vectors of {embedder.dim} values in {args.out}")
    if embedder.probabilistic and args.out.suffix == ".npy":
        print(f"their log-variances in {args.out}{LOG_VAR_NPY}")
    if embedder.shortened:
        print(f"{embedder.shortened:,} texts were longer than the model takes, and were cut")
    if result.bad:
        print(f"{result.bad:,} rows could not be used; {args.out}.bad.jsonl lists them")
    return EXIT_SOME_BAD if result.bad else 0
