#!/usr/bin/env python3
"""Embeds texts and pictures with a folder that `zoo export` wrote, without torch and without the zoo.

python embed.py FOLDER --text "a red fish" --image fish.png --instruction "what is this?"
python embed.py FOLDER --jsonl items.jsonl --side document --out vectors.npy      # and vectors.npy.ids.jsonl
python embed.py FOLDER --text "a fish" --log-var      # of a probabilistic model: how sure it is, too
python embed.py FOLDER --check

from embed import Embedder
model = Embedder("FOLDER")
scores = model.encode_query(["a red fish"]) @ model.encode_document([Path("fish.png"), Path("cat.png")]).T
means, log_var = model.encode_gaussian(["a red fish"])  # of a probabilistic model
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

try:
    import numpy as np
    import onnxruntime  # noqa: F401  # of embed_model
    import PIL  # noqa: F401  # of the code in the folder
    import tokenizers  # noqa: F401  # of embed_folder
except ImportError as error:
    raise ImportError(f"embed.py needs {error.name}: pip install onnxruntime numpy pillow tokenizers") from error


def _beside(name: str) -> ModuleType:
    """A file that lies beside this one, by its path: the runtime of another export may be imported, too."""
    here = Path(__file__).resolve().parent
    package = f"embed_{hashlib.sha256(str(here).encode()).hexdigest()[:12]}"
    sys.modules.setdefault(package, ModuleType(package))  # within which they import each other
    spec = importlib.util.spec_from_file_location(f"{package}.{name}", here / f"{name}.py")
    assert spec is not None and spec.loader is not None  # a .py file always has both
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_items, _folder, _model = (_beside(name) for name in ("embed_items", "embed_folder", "embed_model"))
EmbedError, Item, Embedder = _items.EmbedError, _items.Item, _model.Embedder

Array = np.ndarray[Any, Any]
EXIT_SOME_BAD = 3  # as of `zoo embed`


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser("embed.py", description="Embed texts and pictures with an exported folder.")
    parser.add_argument("folder", type=_user_path, help="what `zoo export` wrote")
    parser.add_argument("--text", help="the text of the item")
    parser.add_argument(
        "--image", type=os.path.expanduser, action="append", default=[], help="an image of the item; may be repeated"
    )
    parser.add_argument("--instruction", help="what to look for in the item")
    parser.add_argument(
        "--jsonl",
        type=_user_path,
        help="many items: a file of lines with id, text, image(s), place and instruction; which can't be used is said",
    )
    parser.add_argument(
        "--side", choices=list(_model.VIEWS), default="document", help="whose prompt to use (default document)"
    )
    parser.add_argument("--out", type=_user_path, help="write the vectors here as .npy instead of printing them")
    parser.add_argument(
        "--log-var", action="store_true", help="the log-variances, too: printed, or beside OUT as NAME.log_var.npy"
    )
    parser.add_argument("--threads", type=int, help="processor threads; default all")
    parser.add_argument("--check", action="store_true", help="verify all files and the golden items")
    args = parser.parse_args(arguments)
    try:
        model = Embedder(args.folder, threads=args.threads)
        if args.check:
            return _check(model)
        if args.log_var:
            model.check_probabilistic()
        if args.jsonl is not None:
            return _embed_lines(model, args)
        request = {"text": args.text, "images": args.image}
        found = model._encoded([request], args.side, args.instruction, 1)
        _give(args, found, None)
    except (EmbedError, OSError) as error:
        print(f"error: {_items.printable(str(error))}", file=sys.stderr)
        return 2
    return 0


def _user_path(text: str) -> Path:
    """A path as somebody typed it, `~` for their home."""
    return Path(os.path.expanduser(text))


def _embed_lines(model: Any, args: argparse.Namespace) -> int:
    """The items of a file. Lines that can't be used are named and counted, and the others embedded."""
    if args.text is not None or args.image:
        raise EmbedError("give either --jsonl, or --text and --image")
    lines = list(_items.read_lines(args.jsonl))
    if not lines:
        raise EmbedError(f"{args.jsonl} has no lines")
    left_out = {line.where: line.error for line in lines if line.fields is None}
    things = {line.where: line.fields for line in lines if line.fields is not None}
    found, unusable = model.encode_usable(things, side=args.side, instruction=args.instruction)
    left_out |= unusable
    if len(left_out) == len(lines):
        raise EmbedError(f"none of the {len(lines)} lines could be used; the first: {left_out[lines[0].where]}")
    _give(args, found, [line.id for line in lines if line.where not in left_out])
    for line in lines:
        if line.where in left_out:
            print(_items.printable(left_out[line.where]), file=sys.stderr)
    if left_out:
        print(f"{len(left_out)} of {len(lines)} items could not be used", file=sys.stderr)
    return EXIT_SOME_BAD if left_out else 0


def _give(args: argparse.Namespace, found: Array, ids: Sequence[str] | None) -> None:
    """Print or write vectors, and log-variances if they are wanted."""
    means, log_var = found[0], found[1] if args.log_var else None
    if args.out is None:
        _print(means, log_var)
    else:
        _write(args.out, means, log_var, ids)


def _print(means: Array, log_var: Array | None) -> None:
    """One line of JSON per item: its vector, or an object with both."""
    for row, mean in enumerate(means):
        vector = _rounded(mean)
        print(json.dumps(vector if log_var is None else {"vector": vector, "log_var": _rounded(log_var[row])}))


def _rounded(values: Array) -> list[float]:
    return [round(float(value), 7) for value in values]


def _write(out: Path, means: Array, log_var: Array | None, ids: Sequence[str] | None) -> None:
    """The vectors as `out` (X.npy), the log-variances (X.log_var.npy) and ids (X.npy.ids.jsonl) beside it."""
    beside = out.with_name(f"{out.stem}.log_var{out.suffix}")
    for path, values in ((beside, log_var), (out, means)):
        if values is not None:
            with path.open("wb") as file:  # np.save would append .npy to another name
                np.save(file, values)
    more = "" if log_var is None else f"; their log-variances: {beside}"
    if ids is not None:
        named = out.with_name(f"{out.name}.ids.jsonl")
        named.write_text("".join(json.dumps({"id": one}, ensure_ascii=False) + "\n" for one in ids), "utf-8")
        more += f"; whose they are: {named}"
    print(_items.printable(f"{out}: {len(means)} vectors of {means.shape[1]} values{more}"))


def _check(model: Any) -> int:
    model.verify_files()
    differences = model.check()
    allowed: float = model.manifest["tolerance"]
    for name, difference in differences.items():
        print(_items.printable(f"{difference:.1e}  {name}"))
    worst = max(differences.values())
    print(_items.printable(f"{model.name}: largest difference to torch {worst:.1e}, allowed {allowed:.0e}"))
    return 0 if worst <= allowed else 1


if __name__ == "__main__":
    sys.exit(main())
