"""What tells two frozen modules apart: digests of their weights and of their architecture."""

from __future__ import annotations

import hashlib
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from zoo.weights import plain

_known: WeakKeyDictionary[nn.Module, tuple[Any, str]] = WeakKeyDictionary()


def weights_digest(module: nn.Module) -> str:
    """sha256 of the state dict: names, types, shapes and values. Hashed again only when a tensor has changed, or made under
    `torch.inference_mode`, where nothing tells of changes.
    """
    state = sorted((plain(name), tensor) for name, tensor in module.state_dict(keep_vars=True).items())
    counted = not any(tensor.is_inference() for _, tensor in state)
    stamp = [(name, t.data_ptr(), t._version, t.dtype, t.shape) for name, t in state] if counted else None
    known = _known.get(module)
    if stamp is not None and known is not None and known[0] == stamp:
        return known[1]
    digest = hashlib.sha256()
    for name, tensor in state:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    _known[module] = stamp, digest.hexdigest()
    return digest.hexdigest()


def architecture_digest(module: nn.Module) -> str:
    """sha256 of how the module prints and of the numbers that its parts keep: the number of attention heads, for example,
    is neither printed nor seen in the weights.
    """
    digest = hashlib.sha256(repr(module).encode())
    for name, part in module.named_modules():
        numbers = {
            key: value
            for key, value in sorted(vars(part).items())
            if isinstance(value, int | float) and key != "training" and not key.startswith("_")
        }
        digest.update(f"{name} {numbers}\n".encode())
    return digest.hexdigest()
