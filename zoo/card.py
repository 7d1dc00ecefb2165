"""The card of what a run trained, and the README.md of a bundle."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

_RELEASED = ("results", "weights", "convert", "parameters")
_OF_THE_MODEL = ("family", "paper", "modalities")
_PLACES = ("path", "table", "shards", "folder", "file")


def card_of_run(recipe: Mapping[str, Any], stale: Collection[str] = ()) -> dict[str, Any]:
    """The card of a trained recipe. Figures and weights are those of a release, so they are left out.

    stale: keys that were written for other data or another start; what they said of these is written from the recipe.
    """
    given = dict(recipe.get("card") or {})
    kept = {
        key: value
        for key, value in given.items()
        if key not in _RELEASED and (key not in stale or key in _OF_THE_MODEL)
    }
    start = recipe.get("start")
    begun = f", starting from {start}" if start else ""
    if not kept.get("title"):
        kept["title"] = f"{_class_name(recipe.get('model'))} trained on {_data(recipe.get('data'))}{begun}"
    if not kept.get("license"):
        kept["license"] = f"not stated{begun} ({given['license']})" if begun and given.get("license") else "not stated"
    return {key: kept.pop(key) for key in ("title", "family", "license")} | kept


def example_of_use(bundle: Path, recipe: Mapping[str, Any], text: str) -> str:
    """A command or a line that uses a bundle on what it was trained on."""
    train = ((recipe.get("data") or {}).get("init_args") or {}).get("train") or [{}]
    source = train[0] if isinstance(train, list) else train
    place = _place(source)
    if _class_name(source).startswith("Emoji"):
        return f'zoo search path:{bundle} "a slice of pizza" --in emoji'
    if place and Path(place).expanduser().is_dir():
        return shlex.join(["zoo", "search", f"path:{bundle}", text, "--in", place])
    if place and place.endswith(".parquet") and Path(place).expanduser().is_file():
        return shlex.join(["zoo", "embed", f"path:{bundle}", place, "--out", "vectors.parquet"])
    return f'zoo.load("path:{bundle}")'


def card_text(name: str, recipe: Mapping[str, Any], parameters: int, metrics: Mapping[str, float] | None = None) -> str:
    """README.md of a bundle, from facts only: what the recipe's card states and what was measured."""
    card = dict(recipe.get("card") or {})
    licence = str(card.get("license", "not stated"))
    known = "other" if " " in licence else licence.lower()  # what is no name of a licence
    header = {"library_name": "embedding-zoo", "license": known, "tags": ["embeddings", "retrieval"]}
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
        "started from": recipe.get("start"),
        "modalities": ", ".join(card.get("modalities") or []),
        "licence": licence,
    }
    lines += [f"- {key}: {value}" for key, value in facts.items() if value]
    lines += _table("Measured", metrics or {}) + _table("Results of the recipe", card.get("results") or {})
    if card.get("notes"):
        lines += ["", str(card["notes"]).strip()]
    lines += ["", "## Use", "", "```python", "import zoo", "", 'model = zoo.load("path:FOLDER")  # this folder']
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
    """The sources that a recipe's `data:` trains on, by class and the last part of where they lie."""
    arguments = part.get("init_args") or {} if isinstance(part, Mapping) else {}
    train = arguments.get("train") or []
    names = []
    for source in train if isinstance(train, list) else [train]:
        place = Path(_place(source)).name
        names.append(f"{_class_name(source)} ({place})" if place else _class_name(source))
    return ", ".join(filter(None, names)) or _class_name(part)


def _place(source: Any) -> str:
    """The folder or file, or the first, that a source's settings name; "" if none."""
    arguments = source.get("init_args") or {} if isinstance(source, Mapping) else {}
    found = next((arguments[key] for key in _PLACES if arguments.get(key)), "")
    return str(found[0] if isinstance(found, list) else found)
