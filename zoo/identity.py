"""What decides the vectors of a model, as settings and as one digest: equal digests give comparable vectors."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.registry import plugin_packages
from zoo.weights import plain

# of an architecture, without meaning for the vectors that it gives once it is trained
_TRAINING_OPTIONS = (
    "objective", "optimizer", "scheduler", "chunk_size", "gather_group", "freeze", "momentum", "mixing", "masking",
    "rates",
)  # fmt: skip
# tensors of the objective, of the copy that `momentum` keeps, and what `mixing` learns
_TRAINING_STATE = ("objective.", "slow.", "mixing.")
# a text of a recipe that names a file of the working folder; any other could be an option for which a file is called
_FILE = re.compile(
    r"(?!\w{2,}:).*\.(jsonl?|txt|model|vocab|merges|bpe|spm|csv|tsv|jinja|ya?ml|safetensors|bin|pth?|ckpt|np[yz]|gz)",
    re.IGNORECASE,
)
_LONGEST_PATH = 4096
_SHORT = ("zoo.", "torch.", "timm.")


def fingerprint(recipe: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """sha256 over all that decides a vector: weights, architecture, prompt, preprocessing."""
    return _digest(vector_settings(recipe), state)


def former_fingerprint(recipe: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """As the first version made them, for vectors that were kept since: it took any text for a file where one of that name
    lay in the working folder, and told classes apart by their short names alone.
    """
    return _digest(vector_settings(recipe, former=True), state)


def _digest(settings: Any, state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for key, tensor in sorted((plain(key), tensor) for key, tensor in state.items()):
        if not key.startswith(_TRAINING_STATE):
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def vector_settings(recipe: Mapping[str, Any], *, former: bool = False) -> Any:
    """The part of a recipe that decides vectors, files in it replaced by their digests; `former`: see above."""
    model = dict(recipe.get("model") or {})
    model["init_args"] = {k: v for k, v in (model.get("init_args") or {}).items() if k not in _TRAINING_OPTIONS}
    return _with_digests(model, former)


def _with_digests(value: Any, former: bool) -> Any:
    from zoo.files import locate
    from zoo.weights import sha256

    if isinstance(value, Mapping):
        return {
            k: _class_name(str(v), former) if k == "class_path" else _with_digests(v, former) for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [_with_digests(v, former) for v in value]
    if isinstance(value, str) and value.startswith(("packaged:", "hf:")):
        try:
            return sha256(locate(value))
        except ZooError:  # a repository as a whole, or a file that nothing needed so far
            return value
    if isinstance(value, str) and _is_file(value, former):
        return sha256(Path(value))
    return value


def _is_file(text: str, former: bool) -> bool:
    if len(text) >= _LONGEST_PATH or "\n" in text or "\0" in text:
        return False
    return (former or bool(_FILE.fullmatch(text)) or Path(text).is_absolute()) and Path(text).is_file()


def _class_name(path: str, former: bool) -> str:
    """One name per class, whichever way a recipe writes it: the short one for those of the zoo and of torch, for others
    with the module that defines it.
    """
    short = path.rpartition(".")[2]
    found = None if former else _class_at(path)
    if found is None or found.__module__.startswith(_SHORT):
        return short
    return f"{found.__module__}.{found.__qualname__}"


def _class_at(path: str) -> type | None:
    """The class that a recipe names, among those that are imported already."""
    module, _, name = path.rpartition(".")
    if module:
        places = [module]
    else:
        packages = tuple(plugin_packages())
        places = [place for place in list(sys.modules) if place.partition(".")[0] in packages]
    for place in places:
        found = getattr(sys.modules.get(place), name, None)
        if inspect.isclass(found):
            return found
    return None
