"""Rows in, a file of vectors out, in a run that can be stopped and continued."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.embedder import Embedder, Side
from zoo.errors import SampleError
from zoo.identity import vector_settings
from zoo.progress import counting
from zoo.vectors.files import table_of
from zoo.vectors.rows import Row, Rows
from zoo.vectors.shards import NAMED_FILES, Earlier, Shards

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Result:
    """What a run gave: how many rows the input has, how many of them were left out, how many had been done before."""

    rows: int
    bad: int
    before: int


def embed_rows(
    embedder: Embedder,
    rows: Rows,
    out: Path,
    *,
    side: Side = "document",
    settings: dict[str, Any] | None = None,
    batch_size: int = 32,
    strict: bool = False,
    earlier: Earlier = "refuse",
    show: bool = True,
) -> Result:
    """Embed all rows into `out` (see `zoo.vectors.files`), going on where an earlier equal run stopped.

    Args:
        embedder: the model.
        rows: its input.
        out: `.parquet` or `.npy`.
        side: whose prompt to use.
        settings: what else the vectors depend on (instruction, columns); kept with them.
        batch_size: rows that the model gets at once.
        strict: raise for the first row that can't be used, instead of leaving it out and listing it.
        earlier: what to do with what other runs left in the place of `out` (see `Shards`).
        show: a bar with rate and time left.

    Raises:
        SampleError: in strict mode; ZooError: `out` is of another run, no space left, no usable row.
    """
    facts = facts_of(embedder, side) | {"settings": settings or {}, "input": rows.fingerprint}
    if rows.named_files:
        facts[NAMED_FILES] = rows.named_files
    with Shards(out, facts, len(rows), earlier, lambda: facts_of(embedder, side, former=True)) as shards:
        if shards.complete:
            return Result(len(rows), shards.bad, len(rows))
        missing = shards.missing()
        before = min((shards.count - len(missing)) * shards.size, len(rows))
        with counting(len(rows), "embedding", show=show, done=before) as advance:
            for number, part in rows.shards(shards.size, missing):
                shards.save(number, *_embedded(embedder, part, facts, side, batch_size, strict, advance))
        shards.finish()
        return Result(len(rows), shards.bad, before)


def facts_of(embedder: Embedder, side: Side, *, former: bool = False) -> dict[str, Any]:
    """What vectors depend on besides their input; `former`: as the first version put it."""
    return {
        "model": embedder.name,
        "fingerprint": embedder.former_fingerprint() if former else embedder.fingerprint(),
        "dim": embedder.dim,
        "side": side,
        "processor": vector_settings(embedder.recipe, former=former).get("init_args", {}).get("processor"),
    }


def _embedded(
    embedder: Embedder,
    part: list[Row],
    facts: dict[str, Any],
    side: Side,
    batch_size: int,
    strict: bool,
    advance: Callable[[int], None],
) -> tuple[pa.Table, list[dict[str, Any]]]:
    """The table of the usable rows in input order, and a record of each of the others."""
    bad: dict[int, str] = {}

    def refuse(position: int, error: str | SampleError) -> None:
        if strict:
            raise SampleError(str(error))
        bad[position] = str(error)
        advance(1)

    for position, row in enumerate(part):
        if row.error:
            refuse(position, f"row {row.number}: {row.error}")
    usable = [position for position, row in enumerate(part) if not row.error]
    dim, both = embedder.dim, embedder.probabilistic
    vectors = np.zeros((len(part), 2 * dim if both else dim), np.float32)
    stream = embedder.stream(
        [part[p].item for p in usable],
        side=side,
        batch_size=batch_size,
        names=[f"row {part[p].number} '{part[p].id}'" for p in usable],
        on_bad=lambda i, error: refuse(usable[i], error),
        log_var=both,
    )
    for found, values in stream:
        vectors[[usable[i] for i in found]] = values
        advance(len(found))
    good = [p for p in range(len(part)) if p not in bad]
    kept = [part[p] for p in good]
    means, log_var = vectors[good, :dim], vectors[good, dim:] if both else None
    table = table_of([r.id for r in kept], [r.path for r in kept], [r.text for r in kept], means, facts, log_var)
    records = [{"row": part[p].number, "id": part[p].id, "path": part[p].path, "error": bad[p]} for p in sorted(bad)]
    return table, records
