"""Samples that lack a view: what an objective compares is what has a counterpart."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from zoo.objectives.objective import view
from zoo.types import Embedding, Encoded, Mixture


def counterparts(local: Encoded, everyone: Encoded, *names: str) -> tuple[Encoded, Encoded]:
    """Both, with those rows of the views `names` only whose sample has a row in each of them.

    Whatever else is there weighs nothing: it is no row of a loss, and nobody's negative. `sample`, `labels` and `weights`
    stay whole, so a mean over samples counts those that lack a view as 0. Momentum views are cut like the views that they
    belong to. Where nothing is missing, both are returned as they are.

    Raises:
        RecipeError: the data gives no such view.
    """
    for name in names:
        view(everyone, name)
    if _complete(everyone, names):
        return local, everyone
    narrowed = _narrowed(everyone, names)
    return (narrowed, narrowed) if local is everyone else (_narrowed(local, names), narrowed)


def rows_of(embedding: Embedding, kept: Tensor | slice) -> Embedding:
    """Some rows of an embedding."""
    parts = {part.name: getattr(embedding, part.name) for part in fields(embedding)}
    return Embedding(**{name: None if values is None else values[kept] for name, values in parts.items()})  # type: ignore[arg-type]


def _complete(encoded: Encoded, names: tuple[str, ...]) -> bool:
    owners = [encoded.owners[name] for name in names]
    pairs = [(one, other) for one in owners for other in owners if one is not other and not torch.equal(one, other)]
    return all(bool(torch.isin(one, other).all()) for one, other in pairs)


def _narrowed(encoded: Encoded, names: tuple[str, ...]) -> Encoded:
    whole = encoded.sample
    for name in names:
        whole = whole[torch.isin(whole, encoded.owners[name])]
    views, owners = dict(encoded.views), dict(encoded.owners)
    keys, mixed = dict(encoded.keys), dict(encoded.mixed)
    for name in {*names, *(f"{name}_momentum" for name in names)} & set(views):
        kept = torch.isin(owners[name], whole)
        views[name], owners[name], keys[name] = rows_of(views[name], kept), owners[name][kept], keys[name][kept]
        if name in mixed:
            mixed[name] = Mixture(mixed[name].partner[kept], mixed[name].share[kept])
    return replace(encoded, views=views, owners=owners, keys=keys, mixed=mixed)
