"""One home for every way of putting images, text and other modalities into one vector space.

    import zoo

    zoo.list_models("*vlm*")              # names that zoo.load takes
    model = zoo.load("vlm2vec-emoji")
    vectors = model.encode_query(["a person swimming"])

The names below are read from their modules when they are first used: `import zoo` itself loads no library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.catalog import list_models, show
    from zoo.embedder import Embedder
    from zoo.errors import ZooError
    from zoo.loading import load
    from zoo.module import EmbeddingModule
    from zoo.registry import register
    from zoo.types import Batch, Embedding, Graph, Item, RetrievalTask, Sample

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Embedder",
    "Embedding",
    "EmbeddingModule",
    "Graph",
    "Item",
    "RetrievalTask",
    "Sample",
    "ZooError",
    "__version__",
    "list_models",
    "load",
    "register",
    "show",
]

_HOMES = {
    "Batch": "types",
    "Embedder": "embedder",
    "Embedding": "types",
    "EmbeddingModule": "module",
    "Graph": "types",
    "Item": "types",
    "RetrievalTask": "types",
    "Sample": "types",
    "ZooError": "errors",
    "list_models": "catalog",
    "load": "loading",
    "register": "registry",
    "show": "catalog",
}


def __getattr__(name: str) -> Any:
    """Read a public name from its module, once."""
    if name not in _HOMES:
        raise AttributeError(f"module 'zoo' has no attribute '{name}'; public are: {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"zoo.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
