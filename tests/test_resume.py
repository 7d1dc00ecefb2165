"""A run that is killed and restarted ends with the weights of one that never stopped."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from zoo.callbacks.checkpointing import ResumableCheckpoint
from zoo.data.datamodule import EmbeddingData
from zoo.data.processors.collate import collate
from zoo.data.source import Processor, Source, TaskSource
from zoo.errors import NonFiniteError
from zoo.module import EmbeddingModule
from zoo.objectives.infonce import InfoNCE
from zoo.types import Batch, Embedding, Inputs, Item, RetrievalTask, Sample


class Letters(Processor):
    """Texts to counts of letters."""

    def __call__(self, samples: list[Sample]) -> Batch:
        return collate(samples, self._encode)

    def _encode(self, view: str, items: list[Item], names: list[str]) -> Inputs:
        rows = [[float((item.text or "").count(letter)) for letter in "abcdefgh"] for item in items]
        return {"x": torch.tensor(rows)}

    def split(self, inputs: Inputs, size: int) -> list[Inputs]:
        return [{"x": part} for part in inputs["x"].split(size)]


class Words(Source):
    """Pairs of random words; what is drawn depends on `rng`, as augmentation does."""

    name = "words"

    def __init__(self, count: int = 44) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def draw(self, index: int, rng: random.Random) -> Sample:
        word = "".join(rng.choices("abcdefgh", k=6))
        return Sample(f"{index}-{word}", {"query": Item(text=word), "target": Item(text=word[::-1] + "ab"[index % 2])})


class OneTask(TaskSource):
    def tasks(self) -> list[RetrievalTask]:
        items = [Item(text=t) for t in ("abc", "def", "gha")]
        return [RetrievalTask("t", items, items, [(0,), (1,), (2,)])]


class Dropped(EmbeddingModule):
    """Linear with dropout, so that random numbers inside the model matter; can fail on demand."""

    def __init__(self, poison_step: int = -1, **training: object) -> None:
        super().__init__(processor=Letters(), objective=InfoNCE(0.1, learn="log"), **training)
        torch.manual_seed(3)
        self.layer, self.drop, self.poison_step = nn.Linear(8, 8), nn.Dropout(0.3), poison_step

    def encode(self, inputs: Inputs) -> Embedding:
        x = self.drop(self.layer(inputs["x"]))
        if self.training and self.global_step == self.poison_step:
            x = x * torch.nan
        return Embedding(nn.functional.normalize(x, dim=-1))


class Diary(Callback):
    """Notes the samples of every step, and ends the run after one of them."""

    def __init__(self, stop_after: int = -1, how: str = "") -> None:
        self.samples: list[tuple[int, list[str]]] = []
        self.stop_after, self.how = stop_after, how

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.samples.append((trainer.global_step, batch.ids))
        if trainer.global_step == self.stop_after:
            if self.how == "sigterm":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                raise RuntimeError("killed")


def run(
    folder: Path,
    diary: Diary,
    resume: bool = False,
    workers: int = 0,
    every: int = 4,
    steps: int = -1,
    **module: object,
):
    model = Dropped(**module)
    trainer = Trainer(
        max_epochs=3,
        max_steps=steps,
        val_check_interval=5,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
        callbacks=[diary, ResumableCheckpoint(folder / "checkpoints", every_n_train_steps=every)],
    )
    data = EmbeddingData(train=[Words()], val=[OneTask()], batch_size=4, num_workers=workers)
    trainer.fit(model, datamodule=data, ckpt_path="last" if resume else None, weights_only=False)
    return model


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory):
    diary = Diary()
    model = run(tmp_path_factory.mktemp("unbroken"), diary)
    assert len(diary.samples) == 33
    return model, diary


@pytest.mark.parametrize("stop_after", [5, 8, 11, 15, 22, 29])
@pytest.mark.parametrize("how", ["kill", "sigterm"])
def test_killed_and_restarted_equals_unbroken(how: str, stop_after: int, unbroken, tmp_path: Path) -> None:
    expected, steps = unbroken
    first, second = Diary(stop_after, how), Diary()
    with pytest.raises((RuntimeError, SystemExit)):
        run(tmp_path, first)
    model = run(tmp_path, second, resume=True)
    if how == "sigterm":
        assert second.samples[0][0] == stop_after + 1, "SIGTERM did not save first"
    assert second.samples == steps.samples[second.samples[0][0] - 1 :]
    assert first.samples == steps.samples[:stop_after]
    for name, value in expected.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize("steps", [3, 5, 9, 10, 11, 14, 16, 22, 31])
def test_more_steps_after_the_end_equal_a_longer_run(steps: int, unbroken, tmp_path: Path) -> None:
    expected, whole = unbroken
    first, second = Diary(), Diary()
    ended = run(tmp_path, first, steps=steps)
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=False)
    assert state["global_step"] == steps
    assert all(torch.equal(v, state["state_dict"][k]) for k, v in ended.state_dict().items())
    model = run(tmp_path, second, resume=True)
    assert first.samples + second.samples == whole.samples
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in expected.state_dict().items())


def test_workers_do_not_change_the_samples(unbroken, tmp_path: Path) -> None:
    expected, steps = unbroken
    first, second = Diary(14, "kill"), Diary()
    with pytest.raises(RuntimeError):
        run(tmp_path, first, workers=2)
    model = run(tmp_path, second, resume=True, workers=2)
    assert second.samples == steps.samples[second.samples[0][0] - 1 :]
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in expected.state_dict().items())


def test_nan_stops_names_the_batch_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    diary = Diary()
    with pytest.raises(NonFiniteError, match=r"loss is nan at step 6 .*its samples are \d+-[a-h]{6}"):
        run(tmp_path, diary, poison_step=6)
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=False)
    assert state["global_step"] in (4, 5)
    assert all(torch.isfinite(value).all() for value in state["state_dict"].values())
