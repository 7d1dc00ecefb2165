"""Rows of several chunks or processes, joined: which fields of an embedding there are, and how many tokens a row has."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.distributed import gather_numbers, gather_rows, rank_in
from zoo.errors import RecipeError
from zoo.types import Embedding, Encoded, Mixture

_NAMES = tuple(part.name for part in fields(Embedding))
_FILLING = {"tokens": 0, "mask": 0, "words": -1}  # fields with one entry per token, and what stands behind the last one
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.bool)


class Field(NamedTuple):
    """A field of rows: the sizes of one row, its type, and whether a gradient flows into it."""

    sizes: tuple[int, ...]
    dtype: torch.dtype
    learns: bool


def joined(chunks: Sequence[Embedding]) -> Embedding:
    """The rows of all chunks, one after the other.

    A field is there if every chunk with rows has it: chunks may hold rows of several kinds, pictures and texts, of which
    not all have a variance, say. Tokens are padded to the longest chunk.

    Raises:
        RecipeError: rows of chunks that do not fit together.
    """
    agreed = _agreed([_fields(one) for one in chunks], [len(one.vector) for one in chunks])
    fitted = [_fitted(one, agreed) for one in chunks]
    return Embedding(**{name: torch.cat([getattr(one, name) for one in fitted]) for name in agreed})


def without_rows(others: Iterable[Embedding], trained: Sequence[Tensor]) -> Embedding:
    """0 rows with every field that one of the other embeddings has, through which a gradient of 0 flows to `trained`."""
    rows, nothing = list(others), sum((part.sum() * 0.0 for part in trained), torch.zeros(()))
    found: dict[str, Tensor] = {}
    for name in _NAMES:
        for value in (getattr(one, name) for one in rows):
            if value is not None and name not in found:
                found[name] = value[:0] + nothing.to(value) if value.is_floating_point() else value[:0]
    return Embedding(**found)


def gathered(local: Encoded, group: Any) -> Encoded:
    """The rows of all ranks of the group; changes `local` in place so that both agree on owners and fields.

    What holds for chunks (see `joined`) holds for ranks: they agree on the fields before anything is sent, because a rank
    that waits for a field that another one lacks would wait for ever.

    Raises:
        RecipeError, on all ranks: they have other views than one another, or rows that do not fit together.
    """
    device, names = local.labels.device, sorted(local.views)
    samples = _samples(local, device, group)
    start = sum(samples[: rank_in(group)])
    local.sample = local.sample + start
    local.owners = {name: owner + start for name, owner in local.owners.items()}
    local.mixed = {name: Mixture(one.partner + start, one.share) for name, one in local.mixed.items()}
    told = gather_numbers([n for name in names for n in _numbers(local.views[name])], device, group)
    counts, views = {}, {}
    for place, name in enumerate(names):
        each = [one[place * _PER_VIEW : (place + 1) * _PER_VIEW] for one in told]
        counts[name] = [one[0] for one in each]
        agreed = _agreed([_read(one) for one in each], counts[name])
        fitted = _fitted(local.views[name], agreed)
        views[name] = Embedding(**{part: gather_rows(getattr(fitted, part), counts[name], group) for part in agreed})
        if not len(local.owners[name]):  # nothing here says which fields its rows have
            local.views[name] = fitted
    return Encoded(
        views=views,
        owners={name: gather_rows(local.owners[name], counts[name], group) for name in names},
        keys={name: gather_rows(local.keys[name], counts[name], group) for name in names},
        labels=gather_rows(local.labels, samples, group),
        weights=gather_rows(local.weights, samples, group),
        sample=gather_rows(local.sample, samples, group),
        mixed={
            name: Mixture(*(gather_rows(part, counts[name], group) for part in (one.partner, one.share)))
            for name, one in sorted(local.mixed.items())
        },
    )


def _samples(local: Encoded, device: torch.device, group: Any) -> list[int]:
    """Number of samples on every rank. RecipeError if the ranks do not have the same views."""
    views = sorted(local.views)
    digest = zlib.crc32(repr((views, sorted(local.mixed))).encode())
    told = gather_numbers([len(local.sample), digest], device, group)
    if any(other != digest for _, other in told):
        raise RecipeError(
            f"processes that train together need the same views in every step: this one (number {rank_in(group)}) has "
            f"{views}, mixed are {sorted(local.mixed)}, and another one has others"
        )
    return [count for count, _ in told]


# ---- fields ----------------------------------------------------------------------------------------------------------


def _fields(embedding: Embedding) -> dict[str, Field]:
    found = {name: getattr(embedding, name) for name in _NAMES}
    return {
        name: Field(tuple(value.shape[1:]), value.dtype, value.requires_grad)
        for name, value in found.items()
        if value is not None
    }


def _agreed(parts: Sequence[dict[str, Field]], rows: Sequence[int]) -> dict[str, Field]:
    """The fields of all parts together. Parts without rows have no say, but there must be one that has."""
    deciding = [part for part, count in zip(parts, rows, strict=True) if count] or parts
    agreed = {}
    for name in _NAMES:
        if not all(name in part for part in deciding):
            continue
        kinds = [part[name] for part in deciding]
        sizes = {kind.sizes[1:] if name in _FILLING else kind.sizes for kind in kinds}
        if len(sizes) > 1:
            raise RecipeError(
                f"rows of one view have a `{name}` of different sizes, {sorted(sizes)}: give rows of different kinds "
                "(such as pictures and texts) a view each"
            )
        (size,) = sizes
        longest = (max(kind.sizes[0] for kind in kinds),) if name in _FILLING else ()
        dtype = reduce(torch.promote_types, (kind.dtype for kind in kinds))
        agreed[name] = Field((*longest, *size), dtype, any(kind.learns for kind in kinds))
    return agreed


def _fitted(embedding: Embedding, agreed: dict[str, Field]) -> Embedding:
    """With these fields and no others, of these sizes and types."""
    return Embedding(**{name: _value(embedding, name, field) for name, field in agreed.items()})


def _value(embedding: Embedding, name: str, field: Field) -> Tensor:
    value: Tensor | None = getattr(embedding, name)
    if value is None or (not len(value) and value.shape[1:] != field.sizes):  # a part without rows
        value = torch.zeros(0, *field.sizes, device=embedding.vector.device)
    elif name in _FILLING:
        missing = field.sizes[0] - value.shape[1]
        value = F.pad(value, (0, 0) * (value.ndim - 2) + (0, missing), value=_FILLING[name])
    value = value.to(field.dtype)
    # the backward pass of gathering is a meeting of all ranks, so all or none must come
    return value.detach().requires_grad_() if field.learns and not value.requires_grad else value


# ---- fields as numbers, to be sent -----------------------------------------------------------------------------------

_PER_FIELD = 5  # there or not, type, learns, and two sizes
_PER_VIEW = 1 + _PER_FIELD * len(_NAMES)


def _numbers(embedding: Embedding) -> list[int]:
    """Number of rows, and what there is of each field."""
    found, numbers = _fields(embedding), [len(embedding.vector)]
    for name in _NAMES:
        if name in found:
            sizes, dtype, learns = found[name]
            numbers += [1, _DTYPES.index(dtype), int(learns), *sizes, *[-1] * (2 - len(sizes))]
        else:
            numbers += [0] * _PER_FIELD
    return numbers


def _read(numbers: Sequence[int]) -> dict[str, Field]:
    found = {}
    for place, name in enumerate(_NAMES):
        there, dtype, learns, *sizes = numbers[1 + place * _PER_FIELD : 1 + (place + 1) * _PER_FIELD]
        if there:
            found[name] = Field(tuple(size for size in sizes if size >= 0), _DTYPES[dtype], bool(learns))
    return found
