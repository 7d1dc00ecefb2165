"""What `zoo predict` leaves behind: the vectors of every source and task, as Parquet files."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from zoo.callbacks.terminal import show
from zoo.files import replacing
from zoo.types import Batch, Embedding

if TYPE_CHECKING:
    import pyarrow as pa


class Predictions(BasePredictionWriter):
    """Writes `DIRPATH/NAME.parquet` for every source or task: one row per item with `id`, `view`, `vector` and, where the
    model gives one, `log_var` (lists of float32). Rows stand in the order in which they were embedded; ids tell them apart.

    Several processes write a file each (`NAME.rank-K.parquet`). A file appears when it is whole.

    Args:
        dirpath: the folder.

    Raises:
        ZooError: no space left, or the place can't be written.
    """

    def __init__(self, dirpath: str = "predictions") -> None:
        super().__init__(write_interval="batch")
        self.dirpath = dirpath
        self._open = ExitStack()
        self._writers: dict[int, Any] = {}
        self._paths: list[Path] = []

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
        for view, embedding in prediction.items():
            table = _table([batch.ids[owner] for owner in batch.owners[view].tolist()], view, embedding)
            if dataloader_idx not in self._writers:
                self._writers[dataloader_idx] = self._start(trainer, batch.sources[0], table.schema)
            self._writers[dataloader_idx].write_table(table)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the files, which take their names now."""
        self._open.close()
        for path in self._paths:
            show(trainer, f"vectors: {path}")
        self._writers, self._paths = {}, []

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Nothing that is not whole is left behind."""
        self._open.__exit__(type(exception), exception, exception.__traceback__)

    def _start(self, trainer: Trainer, name: str, schema: pa.Schema) -> Any:
        import pyarrow.parquet as pq

        rank = f".rank-{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = Path(self.dirpath) / f"{re.sub(r'[^0-9A-Za-z_.-]+', '-', name).strip('-') or 'items'}{rank}.parquet"
        self._paths.append(path)
        partial = self._open.enter_context(replacing(path))
        return self._open.enter_context(pq.ParquetWriter(partial, schema, compression="zstd", use_dictionary=False))


def _table(ids: list[str], view: str, embedding: Embedding) -> pa.Table:
    import pyarrow as pa

    columns: dict[str, Any] = {"id": pa.array(ids, pa.string()), "view": pa.array([view] * len(ids), pa.string())}
    for name in ("vector", "log_var"):
        values = getattr(embedding, name)
        if values is not None:
            flat = pa.array(values.detach().float().cpu().flatten().numpy())
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.table(columns)
