"""Files of vectors: what `zoo embed` writes and `zoo search` reads.

A Parquet file with the columns `id`, `path`, `text` (null where a row has none), `vector` (fixed-size list of float32) and,
of probabilistic models, `log_var`; and in its metadata the facts without which vectors mean nothing: which model, weights,
side and prompt. Or an .npy file that holds the vectors alone, with the rest in files beside it (`write_npy`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zoo.data.text_files import json_line
from zoo.errors import ZooError
from zoo.files import replacing

if TYPE_CHECKING:
    import pyarrow as pa

Vectors = npt.NDArray[np.float32]
LOG_VAR_NPY = ".log_var.npy"
"""How the names of .npy files of log-variances end: they lie beside vectors, and hold none."""
_FACTS = b"zoo"


@dataclass(frozen=True)
class VectorFile:
    """All rows of a file. vectors, and log_var of probabilistic models: (N, E) float32; the lists have N entries; `facts` as
    written.
    """

    ids: Sequence[str]
    paths: Sequence[str | None]
    texts: Sequence[str | None]
    vectors: Vectors
    facts: Mapping[str, Any]
    log_var: Vectors | None = None


def table_of(
    ids: Sequence[str],
    paths: Sequence[str | None],
    texts: Sequence[str | None],
    vectors: Vectors,
    facts: Mapping[str, Any],
    log_var: Vectors | None = None,
) -> pa.Table:
    """Rows as a table in the layout of this module."""
    import pyarrow as pa

    columns = {
        "id": pa.array(ids, pa.string()),
        "path": pa.array(paths, pa.string()),
        "text": pa.array(texts, pa.string()),
    }
    for name, values in (("vector", vectors), ("log_var", log_var)):
        if values is not None:
            flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.table(columns).replace_schema_metadata({_FACTS: json.dumps(dict(facts))})


def read_facts(path: Path) -> dict[str, Any]:
    """The facts of a file. Raises ZooError if it can't be read or was not written by the zoo."""
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(path).metadata or {}
        facts: dict[str, Any] = json.loads(metadata[_FACTS])
    except KeyError as error:
        raise ZooError(
            f"{path} was not written by zoo embed: it does not say which model its vectors come from"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ZooError(f"{path} can't be read as a file of vectors: {error}") from error
    if not isinstance(facts, dict):
        raise ZooError(f"{path} can't be read as a file of vectors: what it says of them is no mapping")
    return facts


def read_vectors(path: Path) -> VectorFile:
    """A whole file. Raises ZooError if it can't be read or was not written by the zoo."""
    import pyarrow.parquet as pq

    facts = read_facts(path)
    try:
        table = pq.read_table(path).combine_chunks()
    except (OSError, ValueError) as error:
        raise ZooError(f"{path} is damaged: {error}") from error
    vectors = _matrix(table, "vector")
    log_var = _matrix(table, "log_var") if "log_var" in table.column_names else None
    ids, paths, texts = (table.column(name).to_pylist() for name in ("id", "path", "text"))
    return VectorFile(ids, paths, texts, vectors, facts, log_var)


def _matrix(table: pa.Table, name: str) -> Vectors:
    column = table.column(name)
    values = column.combine_chunks().flatten().to_numpy() if len(table) else np.zeros(0, np.float32)
    matrix: Vectors = values.reshape(len(table), column.type.list_size)
    return matrix


def write_vectors(path: Path, tables: Iterable[pa.Table]) -> int:
    """Write tables of one schema into one Parquet file, which appears when it is whole; returns the number of rows.

    Raises:
        ZooError: no space left, or the place can't be written; nothing is left behind.
    """
    import pyarrow.parquet as pq

    remaining = iter(tables)
    first = next(remaining)
    rows = 0
    with (
        replacing(path) as partial,
        # vectors do not repeat: a dictionary would only make the file half as large again
        pq.ParquetWriter(partial, first.schema, compression="zstd", use_dictionary=False) as writer,
    ):
        for table in chain([first], remaining):
            writer.write_table(table)
            rows += len(table)
    return rows


def write_npy(path: Path, tables: Iterable[pa.Table], rows: int, facts: Mapping[str, Any]) -> None:
    """Write the vectors (rows, E) as `path`, log-variances as `<path>.log_var.npy` if there are any, the rest of each row as
    one line of `<path>.ids.jsonl`, the facts as `<path>.json`. Errors as `write_vectors`.
    """
    ids, about, log_var = (path.with_name(path.name + suffix) for suffix in (".ids.jsonl", ".json", LOG_VAR_NPY))
    with replacing(about) as partial:
        partial.write_text(json.dumps(dict(facts), indent=2) + "\n", "utf-8")
    remaining = iter(tables)
    first = next(remaining)
    with ExitStack() as stack:  # the vectors, entered first, appear last: they say "complete"
        arrays = {
            name: np.lib.format.open_memmap(
                stack.enter_context(replacing(place)), "w+", np.float32, (rows, first.schema.field(name).type.list_size)
            )
            for name, place in (("vector", path), ("log_var", log_var))
            if name in first.column_names
        }
        lines = stack.enter_context(stack.enter_context(replacing(ids)).open("wb"))
        start = 0
        for table in chain([first], remaining):
            for name, array in arrays.items():
                array[start : start + len(table)] = _matrix(table, name)
            start += len(table)
            for row in table.select(["id", "path", "text"]).to_pylist():
                lines.write(json_line(row))
        for array in arrays.values():
            array.flush()
