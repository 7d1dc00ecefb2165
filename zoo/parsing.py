"""How recipes are parsed, and what is wrong with one in a sentence: jsonargparse buries it below every union's branches."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from traceback import walk_tb

from jsonargparse import set_loader, set_parsing_settings

from zoo.errors import RecipeError, ZooError, suggest
from zoo.kinds import classes, kinds_of_argument, kinds_of_subtypes, wrong_kind

# Without this a mapping {class_path, init_args} makes an object of ANY class where a parameter is typed Any, as in the
# config fields of a backbone: a stranger's recipe could run what it likes. Holds for every parser of this process.
set_parsing_settings(instantiate_subclass_spec_in_any=False)

AS_TEXT = "text"
"""Mode of a parser that takes text as it stands, instead of reading YAML inside of it."""


def _as_it_stands(text: str) -> str:
    return text


set_loader(AS_TEXT, _as_it_stands)

_FACTORY = re.compile(r'Type .* expects a function or a callable class: Parser key "(?P<key>[^"]+)"')
_NOISE = re.compile(
    r"Expected a path but |Does not validate against any|Subtypes: |Errors:|Given value|"
    r"Expected a <class 'NoneType'>|Traceback|$"
)
_KEY = re.compile(r'Parser key "(?P<key>[^"]+)"')
_CLASS = re.compile(r"Problem with given class_path '(?P<path>[^']+)'")
_UNKNOWN_OPTION = re.compile(r"Option '(?P<name>[^']+)' is not accepted|Key '(?P<key>[^']+)' is not expected")
_UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (?P<name>\S+)")
_GIVEN = re.compile(r"Given value: (?P<name>[\w.]+)$", re.MULTILINE)
_WRONG_KIND = re.compile(
    r"Import path(?P<path> \S+)? does not (?:implement protocol|correspond to a subclass of)|"
    r".*Expected '(?P<factory>[^']+)' to be a (?:subclass of|function that returns|class that instantiates)"
)
_NO_CLASS_PATH = re.compile(
    r"Expected an instantiatable class, but \S+ is (?:a protocol|abstract)|Not a valid subclass of"
)
_WRONG_TYPE = re.compile(r"Expected a <class '(?P<type>[\w.]+)'>\. Got value: (?P<value>.*)")
_TYPES = {
    "collections.abc.Sequence": "a list; put it in [brackets]",
    "list": "a list; put it in [brackets]",
    "str": "text; put it in quotes",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "dict": "a mapping",
}
_OTHER_BRANCH = re.compile(
    r"(?:Expected a dot import path string:|Import path) (?P<name>[\w.]+)(?: does not implement|$)"
)
_UNRECOGNIZED = re.compile(r"[Uu]nrecognized arguments: (?P<name>--?[^\s=]+)")
_NO_RECIPE = re.compile(r"required.*\b(?:model|data)\b")
_MARK = re.compile(r"line \d+, column \d+")
_NOT_IN_MODULE = re.compile(r"module '(?P<module>[^']+)' has no attribute '(?P<name>[^']+)'")


def explain(error: Exception, recipe: str, options: Iterable[str] = ()) -> RecipeError:
    """The first cause of a parser's error, where it is, and the nearest right name; `options` are those of the command."""
    keys: list[str] = []
    owner = ""
    kinds: list[str] = []
    causes: list[str] = []
    known = {match["path"].rpartition(".")[2] for match in _CLASS.finditer(str(error))}
    for line in str(error).splitlines():
        text = line.strip().removeprefix("- ")
        if match := _KEY.match(text) or _FACTORY.match(text):
            keys.append(match["key"])
            kinds = []
        elif text.startswith("Subtypes: "):
            kinds = kinds_of_subtypes(text)
        elif match := _CLASS.match(text):
            owner = match["path"]
        elif (match := _OTHER_BRANCH.match(text)) and match["name"].rpartition(".")[2] in known:
            continue  # another branch of the union takes this class, and tells what is wrong inside
        elif not _NOISE.match(text):
            causes.append(text)
            break
    kinds = kinds or (kinds_of_argument(owner, keys[-1]) if keys else [])
    cause = causes[0] if causes else str(error).splitlines()[0]
    if cause.startswith("Import path does not ") and (given := _GIVEN.search(str(error))):
        cause = cause.replace(
            "Import path", f"Import path {given['name']}", 1
        )  # the parser forgets a name given as text
    cause = _worded(cause, owner, kinds, options)
    if mark := _MARK.search(str(error)):
        cause += f" ({mark[0]})"
    where = ".".join(keys) + (f" ({owner.rpartition('.')[2]})" if owner else "")
    return RecipeError(f"recipe '{recipe}': {where}: {cause}" if where else f"recipe '{recipe}': {cause}")


def explain_built(error: Exception, recipe: str) -> ZooError:
    """What a constructor says of its arguments, without the parser's list of all that it tried around it."""
    cause: BaseException = error
    while not isinstance(cause, ZooError) and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, ZooError):
        return cause
    told = (str(cause).splitlines() or [""])[0]
    if told and _NOISE.match(told):  # of a parser within: its cause is deeper down in the text
        return explain(Exception(str(cause)), recipe)
    kind = "" if told and isinstance(cause, ValueError | RuntimeError | AssertionError) else f"{type(cause).__name__}: "
    return RecipeError(f"recipe '{recipe}': {_constructed(cause)} can't be built: {kind}{told}")


def _constructed(error: BaseException) -> str:
    """The innermost class of the zoo whose constructor the error came through; else the outermost of others."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__) if frame.f_code.co_name == "__init__"]
    classes = [type(frame.f_locals["self"]) for frame in frames if "self" in frame.f_locals]
    ours = [found for found in classes if found.__module__.startswith("zoo.")]
    return (ours[-1] if ours else classes[0]).__name__ if classes else "the model"


def _worded(cause: str, owner: str, kinds: list[str], options: Iterable[str]) -> str:
    if match := _UNRECOGNIZED.search(cause):
        return f"unknown option {match['name']}{_hint(match['name'], options)}"
    if _NO_RECIPE.search(cause):
        return f"{cause}; name a recipe that has them: --config NAME or FILE (`zoo list` names them)"
    if match := _UNKNOWN_OPTION.match(cause):
        name = (match["name"] or match["key"]).rpartition(".")[2]
        return f"unknown option '{name}'{_hint(name, _options(owner))}"
    if match := _NOT_IN_MODULE.match(cause):
        return f"{match['module']} has no '{match['name']}'{_hint(match['name'], vars(sys.modules[match['module']]))}"
    if match := _UNKNOWN_CLASS.match(cause):
        name = match["name"].rpartition(".")[2]
        if kinds and name in classes():
            return wrong_kind(name, kinds)
        return f"there is no class '{match['name']}'{_hint(name, (kinds and classes(kinds)) or classes())}"
    if match := _WRONG_KIND.match(cause):
        path = match["path"] or match["factory"] or ""
        return wrong_kind(path.strip().rpartition(".")[2], kinds) if path and kinds else cause
    if _NO_CLASS_PATH.match(cause) and kinds:
        listed = ", ".join(sorted(classes(kinds))[:3])
        return f"`class_path` is missing or misspelled: name the {' or '.join(kinds)}, such as {listed or 'its class'}"
    if (match := _WRONG_TYPE.match(cause)) and match["type"] in _TYPES:
        return f"{match['value']} is not {_TYPES[match['type']]}"
    return cause


def _hint(name: str, known: Iterable[str]) -> str:
    nearest = suggest(name, known)
    return f"; did you mean {' or '.join(repr(n) for n in nearest)}?" if nearest else ""


def _options(class_path: str) -> set[str]:
    """Init arguments of a class, those of its bases included: **kwargs are passed up."""
    module, _, name = class_path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    options: set[str] = set()
    for base in inspect.getmro(found) if inspect.isclass(found) else ():
        if "__init__" in vars(base):
            options |= set(inspect.signature(vars(base)["__init__"]).parameters) - {"self", "args", "kwargs"}
    return options
