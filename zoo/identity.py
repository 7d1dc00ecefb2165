"""What decides the vectors of a model, as settings and as one digest: equal digests give comparable vectors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.weights import plain

# of an architecture, without meaning for the vectors that it gives once it is trained
_TRAINING_OPTIONS = (
    "objective", "optimizer", "scheduler", "chunk_size", "gather_group", "freeze", "momentum", "mixing", "masking",
    "rates",
)  # fmt: skip
# tensors of the objective, of the copy that `momentum` keeps, and what `mixing` learns
_TRAINING_STATE = ("objective.", "slow.", "mixing.")


def fingerprint(recipe: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """sha256 over all that decides a vector: weights, architecture, prompt, preprocessing."""
    digest = hashlib.sha256(json.dumps(vector_settings(recipe), sort_keys=True, default=str).encode())
    for key, tensor in sorted((plain(key), tensor) for key, tensor in state.items()):
        if not key.startswith(_TRAINING_STATE):
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def vector_settings(recipe: Mapping[str, Any]) -> Any:
    """The part of a recipe that decides vectors, files in it replaced by their digests."""
    model = dict(recipe.get("model") or {})
    model["init_args"] = {k: v for k, v in (model.get("init_args") or {}).items() if k not in _TRAINING_OPTIONS}
    return _with_digests(model)


def _with_digests(value: Any) -> Any:
    from zoo.files import locate
    from zoo.weights import sha256

    if isinstance(value, Mapping):
        # the class may be written short or with its module
        return {k: str(v).rpartition(".")[2] if k == "class_path" else _with_digests(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_with_digests(v) for v in value]
    if isinstance(value, str) and value.startswith(("packaged:", "hf:")):
        try:
            return sha256(locate(value))
        except ZooError:  # a repository as a whole, or a file that nothing needed so far
            return value
    if isinstance(value, str) and len(value) < 4096 and "\n" not in value and Path(value).is_file():
        return sha256(Path(value))
    return value
