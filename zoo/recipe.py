"""A recipe file: YAML with `card`, `model`, `data` and `trainer`. Reading it loads no torch.

Only the card is checked here. The rest is checked against the signatures of the classes that it names, where they are
built (zoo.loading, zoo.commands.fit).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from zoo.errors import RecipeError, ZooError, suggest
from zoo.hub import HubPlace

FAMILIES = ("dual-encoder", "projector", "vlm-encoder", "probabilistic", "binding", "fusion")
_SHA256 = re.compile(r"(sha256:)?[0-9a-fA-F]{64}")
_PAPER = re.compile(r"arXiv:\d{4}\.\d{4,5}(v\d+)?|doi:\S+|https?://\S+")


@dataclass(frozen=True, slots=True)
class Weights:
    """Where released weights come from. See `zoo.weights` for the kinds of source.

    source: one place, or several that a converter joins.
    sha256: of the weight file; or file name -> digest where there are several; or one of these per source.
    convert: `FILE.FUNCTION` in zoo/convert/, or `package.module:function`; empty = the keys are ours.
    base: the model they are an addition to (a LoRA checkpoint), as a source.
    license: if it differs from the card's.
    """

    source: str | list[str]
    sha256: str | dict[str, str] | list[Any] | None = None
    convert: str = ""
    base: str = ""
    license: str = ""
    notes: str = ""

    @property
    def sources(self) -> list[str]:
        """All places, as a list."""
        return [self.source] if isinstance(self.source, str) else list(self.source)


@dataclass(frozen=True, slots=True)
class Card:
    """What an entry is, for people and for tests.

    title: one line. paper: `arXiv:2410.05160`, `doi:...` or an address. family: one of `FAMILIES`, or a plug-in's own.
    license: of the weights, or of the recipe where there are none. languages: codes such as `en`.
    parameters: of the whole model; None = not stated. tiny: small enough for the contract tests to train it.
    weights: tag -> source; the first is the default. convert: of weights that are given by hand (`weights=FILE`) where none
    are listed. results: measured figures, with date, data and machine.
    """

    title: str
    family: str
    license: str
    paper: str = ""
    tiny: bool = False
    modalities: list[str] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)
    parameters: int | None = None
    weights: dict[str, Weights] = field(default_factory=dict)
    convert: str = ""
    results: dict[str, Any] = field(default_factory=dict)
    notes: str = ""

    @staticmethod
    def of(raw: Any, where: str) -> Card:
        """Check a recipe's `card:` mapping. RecipeError names `where`, the key, and the nearest right one."""
        values = _known_keys(raw, Card, f"{where}: card")
        for key in ("title", "family", "license", "paper", "convert", "notes"):
            _expect(values, key, str, f"{where}: card")
        _expect(values, "tiny", bool, f"{where}: card")
        _expect(values, "parameters", int, f"{where}: card")
        _expect(values, "results", dict, f"{where}: card")
        for key in ("modalities", "languages"):
            _expect_texts(values, key, f"{where}: card")
        if values.get("paper") and not _PAPER.fullmatch(values["paper"]):
            raise RecipeError(f"{where}: card.paper '{values['paper']}' is not arXiv:NUMBER, doi:... or an address")
        _check_family(values["family"], where)
        weights = values.pop("weights", None) or {}
        if not isinstance(weights, dict):
            raise RecipeError(f"{where}: card.weights is not a mapping of tag -> source")
        return Card(
            **values,
            weights={str(tag): _weights(entry, f"{where}: card.weights.{tag}") for tag, entry in weights.items()},
        )


@dataclass(frozen=True, slots=True)
class Recipe:
    """One entry of the zoo. `raw` is the whole file as read; `origin` says who brought it.

    path: its file; None where the recipe was written on the spot (`open_clip:CONFIG.TAG`).
    """

    name: str
    path: Path | None
    card: Card
    raw: dict[str, Any]
    origin: str = "zoo"

    def facts(self) -> dict[str, Any]:
        """Everything about the entry, as plain data that JSON takes."""
        return {
            "name": self.name,
            "file": str(self.path or ""),
            "origin": self.origin,
            "card": asdict(self.card),
            "recipe": self.text,
        }

    @property
    def text(self) -> str:
        """The recipe as YAML."""
        if self.path is not None:
            return self.path.read_text("utf-8")
        return yaml.safe_dump(self.raw, sort_keys=False, allow_unicode=True)


def read_recipe(path: Path, origin: str = "zoo") -> Recipe:
    """Read and check one file; its stem is the name.

    Raises:
        RecipeError: it can't be read, is no YAML, has no `model`, or its card does not fit; names file and key.
    """
    raw = read_mapping(path)
    for key in ("card", "model"):
        if not isinstance(raw.get(key), dict):
            near = suggest(key, [k for k in raw if isinstance(k, str)], most=1)
            hint = f"; is '{near[0]}' a slip of the pen?" if near and near[0] != key else ""
            raise RecipeError(f"{path} is no recipe: it has no `{key}:` mapping{hint}")
    return Recipe(path.stem, path, Card.of(raw["card"], path.name), raw, origin)


def read_mapping(path: Path) -> dict[str, Any]:
    """The content of a recipe file, whose card is not checked.

    Raises:
        RecipeError: it can't be read, is no YAML or no mapping, a key stands twice in it, or it is made to stop whoever
            reads it; names the file.
    """
    try:
        text = path.read_text("utf-8")
        _check_extent(text)
        raw = yaml.load(text, Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} can't be read: {error}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{path} is no recipe: it must be a mapping with card, model, data and trainer")
    return raw


# ---- checks ----------------------------------------------------------------------------------------------------------


def _known_keys(raw: Any, kind: type[Card] | type[Weights], where: str) -> dict[str, Any]:
    """`raw` as a dict that has all required and no unknown keys; None counts as left out."""
    if not isinstance(raw, Mapping):
        raise RecipeError(f"{where} is not a mapping")
    names = {f.name: f for f in fields(kind)}
    for key in raw:
        if key not in names:
            near = suggest(str(key), names)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(names)}"
            raise RecipeError(f"{where} has an unknown key '{key}'; {hint}")
    values = {str(key): value for key, value in raw.items() if value is not None}
    required = ["title", "family", "license"] if kind is Card else ["source"]
    missing = [key for key in required if not values.get(key)]
    if missing:
        raise RecipeError(f"{where} lacks {', '.join(missing)}")
    return values


def _expect(values: Mapping[str, Any], key: str, kind: type, where: str) -> None:
    value = values.get(key)
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if value is not None and not fits:
        names = {str: "text", bool: "true or false", int: "a whole number", dict: "a mapping"}
        raise RecipeError(f"{where}.{key} is {value!r}, not {names[kind]}")


def _expect_texts(values: Mapping[str, Any], key: str, where: str) -> None:
    entries = values.get(key, [])
    if not isinstance(entries, list):
        raise RecipeError(f"{where}.{key} is {entries!r}, not a list")
    for entry in entries:
        if not isinstance(entry, str):  # YAML reads the language code `no` as false
            raise RecipeError(f"{where}.{key} has {entry!r}, which is not text; put it in quotes")


def _check_family(family: str, where: str) -> None:
    """Plug-ins may bring a family of their own, but a near miss is a slip of the pen."""
    near = suggest(family, FAMILIES, most=1)
    if family not in FAMILIES and near:
        raise RecipeError(f"{where}: card.family '{family}' is unknown; did you mean '{near[0]}'?")


def _weights(raw: Any, where: str) -> Weights:
    values = _known_keys(raw, Weights, where)
    if isinstance(values["source"], list):
        _expect_texts(values, "source", where)
    else:
        _expect(values, "source", str, where)
    for key in ("convert", "base", "license", "notes"):
        _expect(values, key, str, where)
    weights = Weights(**values)
    for source in [*weights.sources, *([weights.base] if weights.base else [])]:
        if source.startswith("hf:"):
            _named(where, HubPlace.parse, source)
    _check_digests(weights.sha256, where)
    return weights


def _named(where: str, check: Any, value: Any) -> None:
    try:
        check(value)
    except ZooError as error:
        raise RecipeError(f"{where}: {error}") from error


def _check_digests(digests: Any, where: str) -> None:
    if isinstance(digests, list | dict):
        for entry in digests.values() if isinstance(digests, dict) else digests:
            _check_digests(entry, where)
    elif digests is not None and not (isinstance(digests, str) and _SHA256.fullmatch(digests)):
        raise RecipeError(f"{where}.sha256 '{digests}' is not a sha256: 64 hexadecimal digits")


# ---- YAML ------------------------------------------------------------------------------------------------------------

_MOST_VALUES = 100_000  # ours: the largest recipe here has 400; aliases count as what they stand for
_DEEPEST = 100  # ours: the deepest recipe here has 17 levels
_LONGEST_NUMBER = 400  # ours: characters; Python reads integers of 4,300 digits, and the largest float has 309
_NUMBER = re.compile(r"[-+]?[\d_.:xob]*[a-fA-F\d_.:eE+-]+")


def _check_extent(text: str) -> None:
    """Raise YAMLError for text whose values are too many, too deep or too long, before anything is made of it.

    A few lines of aliases stand for billions of values, and one that holds itself for endlessly many.
    """
    anchors: dict[str, int | None] = {}  # name -> values that it stands for; None = it is not closed yet
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and values before it
    values = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            size = anchors.get(str(event.anchor), 0)  # unknown ones are an error of their own
            if size is None:
                raise _marked(f"'{event.anchor}' holds itself", event)
            values += size
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, values))
            values += 1
            if event.anchor:
                anchors[event.anchor] = None
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor:
                anchors[anchor] = values - before
        elif isinstance(event, yaml.ScalarEvent):
            values += 1
            if event.anchor:
                anchors[event.anchor] = 1
            if event.implicit[0] and len(event.value) > _LONGEST_NUMBER and _NUMBER.fullmatch(event.value):
                raise _marked(f"a number of {len(event.value):,} digits", event)
        if values > _MOST_VALUES:
            raise _marked(f"more than {_MOST_VALUES:,} values (aliases count as what they stand for)", event)
        if len(open_nodes) > _DEEPEST:
            raise _marked(f"more than {_DEEPEST} levels", event)


def _marked(problem: str, event: yaml.Event) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)  # type: ignore[arg-type]  # a C mark is one


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the C one where it was built
    """Safe YAML as jsonargparse reads it, so that both see the same values: `1e-3` is a number, a date stays text.

    A key that stands twice is an error; YAML itself would keep the second and drop the first in silence.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' stands twice", key.start_mark
                )
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_REPLACED = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_FLOAT = r"[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d[\d_]*([eE][-+]?\d+)?|\.(inf|nan))$"
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_FLOAT, re.IGNORECASE), list("-+0123456789."))
