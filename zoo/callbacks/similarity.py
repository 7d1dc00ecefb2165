"""Semantic textual similarity: do cosines of text pairs follow the scores that people gave?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.functional import cosine_similarity

from zoo.callbacks.measures import Measures, measures_table
from zoo.callbacks.terminal import show
from zoo.callbacks.vectors import embed_items
from zoo.data.sources.record_files import Records
from zoo.errors import SampleError
from zoo.metrics.correlation import pearson, spearman
from zoo.types import Item


class TextSimilarity(Callback):
    """Logs `val/<name>/spearman` and `val/<name>/pearson` (`test/...` likewise) of cosines with given scores.

    0 is what constant embeddings get. The usual figure of STS benchmarks is 100 times Spearman's.

    Args:
        path: a JSONL or Parquet file, or a folder of them.
        columns: the names of the first text, the second text and the score.
        name: of the measure; "" = that of the file.
        instruction: under which both texts are read.
        batch_size: texts that the module gets at once.

    Raises:
        ZooError: a file or column that is not there.
        SampleError: a score that is no number; names file and row.
    """

    def __init__(
        self,
        path: str,
        columns: tuple[str, str, str] = ("text1", "text2", "score"),
        name: str = "",
        instruction: str | None = None,
        batch_size: int = 128,
    ) -> None:
        self.path, self.columns, self.instruction, self.batch_size = (
            Path(path).expanduser(),
            columns,
            instruction,
            batch_size,
        )
        self.name = name or self.path.stem
        self.measures: dict[str, Measures] = {}

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure."""
        if not trainer.sanity_checking:
            self._measure(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure."""
        self._measure(trainer, pl_module, "test")

    def _measure(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        pairs, scores = self._read()
        texts = {text: number for number, text in enumerate(dict.fromkeys(text for pair in pairs for text in pair))}
        items = [Item(text=text, instruction=self.instruction) for text in texts]
        vectors = embed_items(trainer, module, items, self.name, self.batch_size).vector.double()
        first, second = (vectors[[texts[pair[side]] for pair in pairs]] for side in (0, 1))
        cosines = cosine_similarity(first, second, dim=1)
        values = {"spearman": spearman(cosines, scores), "pearson": pearson(cosines, scores)}
        for name, value in values.items():
            module.log(f"{stage}/{self.name}/{name}", value, batch_size=1, sync_dist=True)
        row = (self.name, *(f"{100 * value:.1f}" for value in values.values()), f"{len(pairs):,}")
        title = f"Text similarity ({stage}), correlation x 100"
        self.measures[stage] = Measures(title, ("data", "Spearman", "Pearson", "pairs"), [row])
        if trainer.state.fn != "fit":
            show(trainer, measures_table(self.measures[stage]))

    def _read(self) -> tuple[Sequence[tuple[str, str]], torch.Tensor]:
        first, second, score = self.columns
        records = Records(self.path, self.columns)
        pairs, scores = [], []
        for row in range(len(records)):
            pairs.append((records.value(first, row), records.value(second, row)))
            value = records.value(score, row, object)
            if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
                raise SampleError(f"{records.where(row)}: '{score}' is {value!r}, not a number")
            if not all(pairs[-1]):
                raise SampleError(f"{records.where(row)}: '{first}' or '{second}' is empty")
            scores.append(float(value))
        return pairs, torch.tensor(scores, dtype=torch.float64)
