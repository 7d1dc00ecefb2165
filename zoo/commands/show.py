"""Print one entry: its card, where its weights are and whether they are here, measured results, its recipe."""

from __future__ import annotations

import argparse
import json
from typing import Any

import yaml

from zoo import catalog
from zoo.availability import local_copy, missing_sources
from zoo.recipe import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `zoo show` takes."""
    parser.add_argument("name", help="NAME or NAME.TAG, as `zoo list` prints them")
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the entry."""
    recipe, tag = catalog.find(args.name)
    tags = [tag] if tag else list(recipe.card.weights)
    missing = {tag: missing_sources(recipe, tag) for tag in tags}
    if args.json:
        here = {tag: {"here": not sources, "missing": sources} for tag, sources in missing.items()}
        print(json.dumps({**recipe.facts(), "weights": here}, indent=2, ensure_ascii=False))
        return 0
    print("\n".join([*_card(recipe), "", *_weights(recipe, missing), *_results(recipe)]))
    print(f"\nrecipe  {recipe.path or '(written on the spot)'}\n\n{_indented(recipe.text)}")
    return 0


def _card(recipe: Recipe) -> list[str]:
    card = recipe.card
    facts: dict[str, Any] = {
        "family": card.family,
        "architecture": str(recipe.raw["model"].get("class_path", "")).rpartition(".")[2],
        "parameters": f"{card.parameters:,}" if card.parameters is not None else "",
        "paper": card.paper,
        "licence": card.license,
        "modalities": ", ".join(card.modalities),
        "languages": ", ".join(card.languages),
        "from": recipe.origin if recipe.origin != "zoo" else "",
    }
    lines = [f"{recipe.name}: {card.title}", ""]
    lines += [f"  {name:<14}{value}" for name, value in facts.items() if value]
    return [*lines, "", _indented(card.notes.strip())] if card.notes else lines


def _weights(recipe: Recipe, missing: dict[str, list[str]]) -> list[str]:
    if not missing:
        return ["weights  none released; train them:", f"  zoo fit --config {recipe.name}"]
    lines = ["weights"]
    for tag, absent in missing.items():
        weights = recipe.card.weights[tag]
        lines.append(f'  zoo.load("{recipe.name}.{tag}")  {"not all here" if absent else "here"}')
        needed = [*weights.sources, *([weights.base] if weights.base else []), *absent]
        for source in dict.fromkeys(needed):
            lines.append(f"    {source}  {_place(source)}")
        facts = {"sha256": weights.sha256, "converter": weights.convert, "licence": weights.license, "": weights.notes}
        lines += [f"    {f'{name} {value}'.strip()}" for name, value in facts.items() if value]
    return lines


def _place(source: str) -> str:
    return str(local_copy(source) or ("to be fetched" if source.startswith("hf:") else "missing"))


def _results(recipe: Recipe) -> list[str]:
    if not recipe.card.results:
        return []
    text = yaml.safe_dump(recipe.card.results, sort_keys=False, allow_unicode=True, width=110)
    return ["", "results, as measured", _indented(text.rstrip())]


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())
