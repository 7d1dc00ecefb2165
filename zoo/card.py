"""The README.md of a bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml


def card_text(name: str, recipe: Mapping[str, Any], parameters: int, metrics: Mapping[str, float] | None = None) -> str:
    """README.md of a bundle, from facts only: what the recipe's card states and what was measured."""
    card = dict(recipe.get("card") or {})
    licence = str(card.get("license", "not stated"))
    header = {"library_name": "embedding-zoo", "license": licence.lower(), "tags": ["embeddings", "retrieval"]}
    if card.get("languages"):
        header["language"] = list(card["languages"])
    lines = ["---", yaml.safe_dump(header, sort_keys=False).rstrip(), "---", "", f"# {name}", ""]
    if card.get("title"):
        lines += [f"{card['title']}.", ""]
    facts = {
        "architecture": _class_name(recipe.get("model")),
        "parameters": f"{parameters:,}",
        "paper": card.get("paper"),
        "training data": _data(recipe.get("data")),
        "modalities": ", ".join(card.get("modalities") or []),
        "licence": licence,
    }
    lines += [f"- {key}: {value}" for key, value in facts.items() if value]
    lines += _table("Measured", metrics or {}) + _table("Results of the recipe", card.get("results") or {})
    if card.get("notes"):
        lines += ["", str(card["notes"]).strip()]
    lines += ["", "## Use", "", "```python", "import zoo", "", f'model = zoo.load("path:{name}")  # this folder']
    lines += ['queries = model.encode_query(["a text"])', "```", ""]
    lines += ["`recipe.yaml` builds and trains the model; `bundle.json` holds the sha256 of every file.", ""]
    return "\n".join(lines)


def _table(title: str, values: Mapping[str, Any]) -> list[str]:
    rows = [f"| {key} | {f'{value:.4f}' if isinstance(value, float) else value} |" for key, value in _flat(values)]
    return ["", f"## {title}", "", "| | |", "|---|---|", *rows] if rows else []


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Nested figures with the names on the way to them: `emoji test, text_to_image, recall@1`."""
    for key, value in values.items():
        name = f"{before}, {key}" if before else str(key)
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        else:
            yield name, value


def _class_name(part: Any) -> str:
    path = part.get("class_path", "") if isinstance(part, Mapping) else str(part or "")
    return path.rpartition(".")[2]


def _data(part: Any) -> str:
    """The sources that a recipe's `data:` trains on, by class name."""
    arguments = part.get("init_args") or {} if isinstance(part, Mapping) else {}
    train = arguments.get("train") or []
    names = [_class_name(source) for source in (train if isinstance(train, list) else [train])]
    return ", ".join(filter(None, names)) or _class_name(part)
