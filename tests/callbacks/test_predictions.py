"""What `zoo predict` writes, of batches whose views differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from lightning.pytorch import LightningModule, Trainer

from zoo.callbacks.predictions import Predictions
from zoo.types import Batch, Embedding


def test_a_variance_that_one_view_alone_has(tmp_path: Path) -> None:
    """Rows of the other view have none: null, in each order of the views."""
    with_variance = Embedding(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[-1.0, -2.0], [-3.0, -4.0]]))
    without = Embedding(torch.tensor([[0.6, 0.8]]))
    owners = {"query": torch.tensor([0, 1]), "target": torch.tensor([1])}
    batch = Batch({}, owners, owners, torch.tensor([-1, -1]), torch.ones(2), ["a", "b"], ["photos", "photos"])
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    writer, module = Predictions(str(tmp_path / "found")), LightningModule()
    writer.on_predict_start(trainer, module)
    views = {"query": with_variance, "target": without}
    writer.write_on_batch_end(trainer, module, views, None, batch, 0, 0)
    writer.write_on_batch_end(trainer, module, dict(reversed(views.items())), None, batch, 1, 0)
    writer._open.close()
    rows = pq.read_table(tmp_path / "found" / "photos.parquet").to_pylist()
    assert [(row["id"], row["view"], row["log_var"]) for row in rows[:3]] == [
        ("a", "query", [-1.0, -2.0]),
        ("b", "query", [-3.0, -4.0]),
        ("b", "target", None),
    ]
    assert [row["log_var"] for row in rows[3:]] == [None, [-1.0, -2.0], [-3.0, -4.0]]
    assert np.allclose(rows[2]["vector"], [0.6, 0.8]) and np.allclose(rows[3]["vector"], [0.6, 0.8])
