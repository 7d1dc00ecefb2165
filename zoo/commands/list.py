"""Print the entries of the zoo: name, family, parameters, weights, licence, what it is."""

from __future__ import annotations

import argparse
import fnmatch
import json
from dataclasses import asdict

from zoo import catalog
from zoo.errors import UnknownNameError, ZooError, some, suggest
from zoo.recipe import Recipe
from zoo.tables import table

_COLUMNS = ("name", "family", "parameters", "weights", "licence", "what")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `zoo list` takes."""
    parser.add_argument("pattern", nargs="?", default="*", help="part of a name, or with * and ? a whole one")
    parser.add_argument("--family", help="only this family, e.g. vlm-encoder")
    parser.add_argument("--pretrained", action="store_true", help="only entries with released weights")
    parser.add_argument("--json", action="store_true", help="print the cards as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the entries that match."""
    everything = catalog.recipes()
    chosen = [recipe for recipe in everything if _matches(recipe, args)]
    if args.family and not any(recipe.card.family == args.family for recipe in everything):
        raise UnknownNameError("family", args.family, {recipe.card.family for recipe in everything})
    if not chosen:
        raise ZooError(_nothing(args, everything))
    if args.json:
        print(json.dumps([_plain(recipe) for recipe in chosen], indent=2, ensure_ascii=False))
    else:
        print("\n".join(table(_COLUMNS, [_row(recipe) for recipe in chosen])))
    return 0


def _nothing(args: argparse.Namespace, everything: list[Recipe]) -> str:
    """That no entry fits, and what there is."""
    kind = f"entry of the family {args.family}" if args.family else "entry"
    kind += " with released weights" if args.pretrained else ""
    if args.pattern == "*":
        return f"there is no {kind} (`zoo list` prints all)"
    everyone = argparse.Namespace(**{**vars(args), "pattern": "*"})
    names = [recipe.name for recipe in everything if _matches(recipe, everyone)]
    near = suggest(args.pattern.strip("*?"), names)
    there = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {some(names) or 'none'}"
    return f"no {kind} is called like '{args.pattern}'; {there} (`zoo list` prints all)"


def _matches(recipe: Recipe, args: argparse.Namespace) -> bool:
    pattern = args.pattern if set(args.pattern) & set("*?[") else f"*{args.pattern}*"
    return (
        fnmatch.fnmatch(recipe.name, pattern)
        and args.family in (None, recipe.card.family)
        and (bool(recipe.card.weights) or not args.pretrained)
    )


def _plain(recipe: Recipe) -> dict[str, object]:
    return {"name": recipe.name, "origin": recipe.origin, "file": str(recipe.path), **asdict(recipe.card)}


def _row(recipe: Recipe) -> tuple[str, ...]:
    card = recipe.card
    return (
        recipe.name,
        card.family,
        short_count(card.parameters),
        ", ".join(card.weights) or "-",
        card.license,
        card.title,
    )


def short_count(count: int | None) -> str:
    """2208985600 -> "2.2B"; None -> "-"."""
    if count is None:
        return "-"
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)
