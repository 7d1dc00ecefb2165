"""What `zoo predict` leaves behind: the vectors of every source and task, as Parquet files."""

from __future__ import annotations

import itertools
import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from zoo.callbacks.terminal import show
from zoo.data.text_files import json_line
from zoo.errors import ZooError
from zoo.files import replacing
from zoo.locks import writing
from zoo.types import Batch, Embedding

if TYPE_CHECKING:
    import pyarrow as pa


class Predictions(BasePredictionWriter):
    """Writes `DIRPATH/NAME.parquet` for every source or task: one row per item with `id`, `view`, `vector` and, where the
    model gives one, `log_var` (lists of float32; null in views that have none). Rows stand in the order in which they were
    embedded; ids tell them apart.

    Several processes write a file each (`NAME.rank-K.parquet`). A file appears when it is whole; a further source of the
    same name is `NAME-2.parquet`. Items that could not be used are counted in `bad` and listed in `DIRPATH/bad.jsonl`.

    Args:
        dirpath: the folder.

    Raises:
        ZooError: no space left, the folder can't be written, or not one item can be used.
    """

    def __init__(self, dirpath: str = "predictions") -> None:
        super().__init__(write_interval="batch")
        self.dirpath = dirpath
        self._open = ExitStack()
        self._writers: dict[int, Any] = {}
        self._paths: dict[Path, str] = {}
        self.bad = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A folder that can't be written is told before anything is embedded."""
        self._open.enter_context(writing(Path(self.dirpath), shared=True))

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: dict[str, Embedding],
        batch_indices: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """The rows of one batch."""
        import pyarrow as pa

        tables = [
            _table([batch.ids[owner] for owner in batch.owners[view].tolist()], view, embedding)
            for view, embedding in prediction.items()
        ]
        table = pa.concat_tables(tables, promote_options="default")  # null where one view alone has a variance
        if dataloader_idx not in self._writers:
            self._writers[dataloader_idx] = self._start(trainer, batch.sources[0], table.schema)
        self._writers[dataloader_idx].write_table(table)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the files, which take their names now, and list what could not be used."""
        self._list_bad(trainer)
        written, self._writers, self._paths = self._paths, {}, {}
        self._open.close()
        for path, name in written.items():
            show(trainer, f"vectors of {name}: {path}")

    def _list_bad(self, trainer: Trainer) -> None:
        loaders = trainer.predict_dataloaders
        several = loaders if isinstance(loaders, list) else [loaders]
        errors = [error for loader in several for error in getattr(loader, "skipped", ())]
        self.bad = len(errors)
        listed = Path(self.dirpath) / f"bad{_rank(trainer)}.jsonl"
        if not errors:
            listed.unlink(missing_ok=True)  # of an earlier run
            return
        with replacing(listed) as partial:
            partial.write_bytes(b"".join(json_line({"error": error}) for error in errors))
        if not self._paths:
            raise ZooError(f"none of the {len(errors):,} items could be used; the first: {errors[0]}")
        show(trainer, f"{len(errors):,} items could not be used; {listed} lists them")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Nothing that is not whole is left behind."""
        self._open.__exit__(type(exception), exception, exception.__traceback__)

    def _start(self, trainer: Trainer, name: str, schema: pa.Schema) -> Any:
        import pyarrow.parquet as pq

        stem = re.sub(r"[^0-9A-Za-z_.-]+", "-", name).strip("-") or "items"
        taken = {path.name.lower() for path in self._paths}  # some disks take capitals for the same
        for number in itertools.count(1):
            path = Path(self.dirpath) / f"{stem}{f'-{number}' * (number > 1)}{_rank(trainer)}.parquet"
            if path.name.lower() not in taken:
                break
        self._paths[path] = name
        partial = self._open.enter_context(replacing(path))
        return self._open.enter_context(pq.ParquetWriter(partial, schema, compression="zstd", use_dictionary=False))


def _rank(trainer: Trainer) -> str:
    return f".rank-{trainer.global_rank}" if trainer.world_size > 1 else ""


def _table(ids: list[str], view: str, embedding: Embedding) -> pa.Table:
    import pyarrow as pa

    columns: dict[str, Any] = {"id": pa.array(ids, pa.string()), "view": pa.array([view] * len(ids), pa.string())}
    for name in ("vector", "log_var"):
        values = getattr(embedding, name)
        if values is not None:
            flat = pa.array(values.detach().float().cpu().flatten().numpy())
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.table(columns)
