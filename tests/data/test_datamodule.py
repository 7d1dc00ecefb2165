"""Batches from the datamodule: the same whatever happened before, and clear words where there is nothing to give."""

from __future__ import annotations

import pickle
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from zoo.data.augment import WordDropout
from zoo.data.batches import TaskBatches, even_batches
from zoo.data.datamodule import EmbeddingData
from zoo.data.loader import BadSampleWarning, OrderWarning
from zoo.data.processors.collate import collate
from zoo.data.source import Processor, Source, TaskSource
from zoo.errors import RecipeError, SampleError, UnknownNameError
from zoo.types import Batch, Inputs, Item, RetrievalTask, Sample

LETTERS = "abcdefgh"


class Letters(Processor):
    """Texts to counts of letters; refuses the word "bad" as a picture that can't be decoded would be."""

    def __call__(self, samples: list[Sample]) -> Batch:
        return collate(samples, self.view)

    def view(self, view: str, items: Sequence[Item], names: Sequence[str]) -> Inputs:
        for item, name in zip(items, names, strict=True):
            if item.text == "bad":
                raise SampleError(f"{name}: the text is bad")
        return {"x": torch.tensor([[float((item.text or "").count(c)) for c in LETTERS] for item in items])}

    def split(self, inputs: Inputs, size: int) -> list[Inputs]:
        return [{"x": part} for part in inputs["x"].split(size)]


class Words(Source):
    """Pairs of random words; `bad` lists records that the processor refuses, `broken` those that can't be drawn."""

    def __init__(
        self, name: str = "words", count: int = 44, bad: Sequence[int] = (), broken: Sequence[int] = ()
    ) -> None:
        self.name, self.count, self.bad, self.broken = name, count, bad, broken

    def __len__(self) -> int:
        return self.count

    def draw(self, index: int, rng: random.Random) -> Sample:
        if index in self.broken:
            raise SampleError(f"{self.name}/{index}: no such file")
        word = "".join(rng.choices(LETTERS, k=6))
        target = Item(text="bad" if index in self.bad else word[::-1])
        return Sample(
            f"{self.name}/{index}/{word}", {"query": Item(text=f"{word} x"), "target": target}, source=self.name
        )


class Tasks(TaskSource):
    def __init__(self, name: str = "t", queries: int = 5, candidates: int = 7, bad: bool = False) -> None:
        texts = [("abcdefgh" * 30)[n : n + 1 + n % 4] for n in range(max(queries, candidates))]
        items = [Item(text=text) for text in texts]
        right = [[n] for n in range(queries)]
        found = items[:candidates] if not bad else [*items[: candidates - 1], Item(text="bad")]
        self.task = RetrievalTask(name, items[:queries], found, right)

    def tasks(self) -> list[RetrievalTask]:
        return [self.task]


class Module(LightningModule):
    """One linear map, moved towards each batch: the weights remember which samples came, and in which order."""

    def __init__(self, asks_for_steps: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.processor, self.layer, self.asks_for_steps = Letters(), nn.Linear(8, 8), asks_for_steps
        self.seen: list[tuple[int, list[str]]] = []
        self.rows: dict[str, Tensor] = {}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen.append((batch_idx, batch.ids))
        return (self.layer(batch.views["query"]["x"]) - batch.views["target"]["x"]).square().mean()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        (view,) = batch.views
        assert {"q": "query", "c": "target"}[batch.ids[0][0]] == view
        self.rows |= dict(zip(batch.ids, batch.views[view]["x"], strict=True))

    test_step = validation_step

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> list[str]:
        return batch.ids

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.asks_for_steps:  # Lightning then sets the data up before it has restored where the run stands
            assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.AdamW(self.parameters(), lr=0.05)


class Kill(Callback):
    """Ends the run in the middle of something."""

    def __init__(self, batch: int, where: str = "end") -> None:
        self.batch, self.where = batch, where

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self.where == "start" and trainer.fit_loop.total_batch_idx == self.batch:
            raise RuntimeError("killed")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.where == "end" and trainer.fit_loop.total_batch_idx == self.batch:
            raise RuntimeError("killed")

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.where == "validation" and trainer.fit_loop.total_batch_idx >= self.batch:
            raise RuntimeError("killed")


def data(**settings: Any) -> EmbeddingData:
    sources = [Words("one"), Words("two", 21)]
    return EmbeddingData(**{"train": sources, "batch_size": 4, "augment": [WordDropout(0.3)], **settings})


def trainer(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    quiet |= {"accelerator": "cpu", "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks)}
    length = {} if "max_steps" in settings else {"max_epochs": 3}
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**quiet, **length, **settings})


def fit(folder: Path, *callbacks: Callback, resume: str | None = None, module: Module | None = None, **settings: Any):
    module = module or Module()
    own = {
        name: settings.pop(name)
        for name in ("num_workers", "homogeneous", "weights", "val", "seed")
        if name in settings
    }
    trainer(folder, *callbacks, **settings).fit(module, datamodule=data(**own), ckpt_path=resume, weights_only=False)
    return module


STEPS = {"every_n_train_steps": 3}
EPOCHS = {"every_n_epochs": 1, "save_on_train_epoch_end": True}
RESTARTS = {  # an epoch has 16 batches
    "in the first epoch": (7, "end", STEPS, {}),
    "in the second": (21, "start", STEPS, {}),
    "after the first batch of an epoch": (16, "end", {"every_n_train_steps": 1}, {}),
    "after the last batch of an epoch": (15, "end", {"every_n_train_steps": 1}, {}),
    "at the end of an epoch": (18, "start", EPOCHS, {}),
    "counted in steps": (38, "end", STEPS, {"max_steps": 40}),
    "counted in steps, at the end of an epoch": (35, "start", EPOCHS, {"max_steps": 40}),
    "accumulated": (22, "end", STEPS, {"accumulate_grad_batches": 2}),
    "accumulated over an odd rest": (29, "start", STEPS, {"accumulate_grad_batches": 3}),
    "short epochs": (16, "start", STEPS, {"limit_train_batches": 5, "max_epochs": 5}),
    "mixed batches": (21, "end", STEPS, {"homogeneous": 2, "weights": [3.0, 1.0]}),
    "a scheduler that asks for the number of steps": (21, "end", STEPS, {"module": "asks"}),
    "by an exception in the step": (21, "start", {"save_on_exception": True, "every_n_epochs": 9}, {}),
    "in a validation": (20, "validation", STEPS, {"val_check_interval": 5, "val": [Tasks()]}),
    "workers": (21, "end", STEPS, {"num_workers": 2}),
    "workers and a scheduler": (21, "end", STEPS, {"num_workers": 2, "module": "asks"}),
    "the same few batches": (21, "end", STEPS, {"overfit_batches": 4, "max_epochs": 8}),
}


@pytest.mark.parametrize("name", RESTARTS)
def test_killed_and_restarted_sees_what_an_unbroken_run_sees(name: str, tmp_path: Path) -> None:
    at, where, saving, settings = RESTARTS[name]
    settings = dict(settings)
    asks = settings.pop("module", None) == "asks"
    whole = fit(tmp_path, module=Module(asks), **{**settings, "num_workers": 0})
    saver = ModelCheckpoint(tmp_path / "saved", save_last=True, enable_version_counter=False, **saving)
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path, Kill(at, where), saver, module=Module(asks), **settings)
    (file,) = {*(tmp_path / "saved").glob("last.ckpt")} or (tmp_path / "saved").glob("*.ckpt")
    done = torch.load(file, weights_only=False)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]
    assert 0 < done <= at + 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*your dataloader is not resumable.*")
        rest = fit(tmp_path, resume=str(file), module=Module(asks), **settings)
    assert rest.seen == whole.seen[done:] and rest.seen
    assert all(torch.equal(value, rest.state_dict()[key]) for key, value in whole.state_dict().items())


def test_epochs_differ_and_the_samples_of_each_come_once(tmp_path: Path) -> None:
    seen = [ids for _, ids in fit(tmp_path).seen]
    records = [[name.rsplit("/", 1)[0] for ids in seen[n : n + 16] for name in ids] for n in (0, 16, 32)]
    assert all(len(set(some)) == len(some) == 64 for some in records)
    assert records[0] != records[1] != records[2]
    assert len({name for ids in seen for name in ids}) == 192, "every draw has random numbers of its own"


def test_overfitting_repeats_the_same_batches(tmp_path: Path) -> None:
    seen = fit(tmp_path, overfit_batches=2, max_epochs=3).seen
    assert seen[:2] == seen[2:4] == seen[4:] and seen[0] != seen[1]


def test_the_seed_changes_order_and_augmentation(tmp_path: Path) -> None:
    runs = [fit(tmp_path, seed=seed, max_epochs=1).seen for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_a_restart_with_another_batch_size_is_not_silent(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=3)
    with pytest.raises(RuntimeError):
        fit(tmp_path, Kill(7), saver)
    with pytest.warns(OrderWarning, match=r"samples of one source was 4, is 2"):
        fit(tmp_path, resume=str(tmp_path / "last.ckpt"), homogeneous=2)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["bad", "broken"])
def test_a_bad_training_sample_stops_the_run_by_name(kind: str, workers: int, tmp_path: Path) -> None:
    settings = {"train": [Words(**{kind: [5]})], "num_workers": workers}
    message = {"bad": r"^words/5/[a-h]{6} \(target\): the text is bad", "broken": "^words/5: no such file"}[kind]
    way_out = r" \(data.init_args.on_bad_sample: skip trains on the others\)$"
    with pytest.raises(SampleError, match=message + way_out):
        trainer(tmp_path, max_epochs=1).fit(Module(), datamodule=data(**settings))


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_can_be_replaced_with_a_warning(workers: int, tmp_path: Path) -> None:
    sources = [Words(bad=[5, 6], broken=[7])]
    settings = {"train": sources, "on_bad_sample": "skip", "bad_sample_limit": 0.5, "num_workers": workers}
    module = Module()
    with pytest.warns(BadSampleWarning) as caught:
        trainer(tmp_path, max_epochs=1).fit(module, datamodule=data(**settings))
    messages = [str(w.message) for w in caught if w.category is BadSampleWarning]
    assert messages[-1].endswith(" of 44 training samples were bad and replaced")
    assert any("words/7: no such file" in m for m in messages) and any("words/5/" in m for m in messages)
    assert [len(ids) for _, ids in module.seen] == [4] * 11
    assert not {name.split("/")[1] for _, ids in module.seen for name in ids} & {"5", "6", "7"}
    again = Module()
    with pytest.warns(BadSampleWarning):
        trainer(tmp_path, max_epochs=1).fit(again, datamodule=data(**{**settings, "num_workers": 0}))
    assert again.seen == module.seen, "which sample comes instead does not depend on chance or workers"


def test_too_many_bad_samples_stop_the_run(tmp_path: Path) -> None:
    all_bad = data(train=[Words(broken=range(44))], on_bad_sample="skip")
    with pytest.raises(
        SampleError, match=r"100 samples of source 'words' in a row can't be used; last: words/\d+: no such"
    ):
        trainer(tmp_path).fit(Module(), datamodule=all_bad)
    many = data(train=[Words(bad=range(0, 44, 2))], on_bad_sample="skip", bad_sample_limit=0.01)
    with (
        pytest.warns(BadSampleWarning, match="further ones of this epoch are only counted"),
        pytest.raises(
            SampleError, match=r"1\d of \d+ training samples can't be used.*bad_sample_limit = 0.01.*the text is bad"
        ),
    ):
        trainer(tmp_path).fit(Module(), datamodule=many)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_item_of_a_task_is_evaluated_in_batches_of_one_view(workers: int, tmp_path: Path) -> None:
    module = Module()
    held_out = data(test=[Tasks("a", 50, 70)], eval_batch_size=16, num_workers=workers)
    trainer(tmp_path).test(module, datamodule=held_out, verbose=False)
    assert set(module.rows) == {f"q:{n}" for n in range(50)} | {f"c:{n}" for n in range(70)}


def test_a_bad_item_stops_an_evaluation_and_names_the_task(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=r"task 'a': c:6 \(target\): the text is bad"):
        trainer(tmp_path).test(Module(), datamodule=data(test=[Tasks("a", bad=True)], on_bad_sample="skip"))


@pytest.mark.parametrize(("items", "world_size"), [(1, 1), (17, 1), (3, 2), (64, 3), (65, 4), (2, 5)])
def test_ranks_evaluate_as_many_batches_each_and_miss_nothing(items: int, world_size: int) -> None:
    task = Tasks("t", items, items).task
    ranks = [TaskBatches(task, Letters()).keys(8, rank, world_size) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    assert all(0 < len(batch) <= 8 for batches in ranks for batch in batches)
    assert {number for batches in ranks for batch in batches for number in batch} == set(range(2 * items))
    if items >= world_size:
        assert sum(len(batch) for batches in ranks for batch in batches) == 2 * items, "none twice"


def test_items_of_like_length_share_a_batch() -> None:
    task = RetrievalTask("t", [Item(text="a" * n) for n in (1, 9, 2, 8, 3, 7)], [Item(text="a")], [[0]] * 6)
    batches = TaskBatches(task, Letters()).keys(2, 0, 1)
    assert [{len(task.queries[i].text) for i in batch} for batch in batches[:3]] == [{9, 8}, {7, 3}, {2, 1}]


def test_even_batches_of_nothing() -> None:
    assert even_batches([], 8, 2) == []


def test_predict_takes_sources_and_tasks_or_else_the_test_items(tmp_path: Path) -> None:
    both = data(predict=[Words("w", 10), Tasks("a", 2, 3)], eval_batch_size=4)
    of_source, of_task = trainer(tmp_path).predict(Module(), datamodule=both)
    assert [name.rsplit("/", 1)[0] for ids in of_source for name in ids] == [f"w/{n}" for n in range(10)]
    assert {name for ids in of_task for name in ids} == {"q:0", "q:1", "c:0", "c:1", "c:2"}
    assert trainer(tmp_path).predict(Module(), datamodule=both)[0] == of_source, "the same words each time"
    ids = trainer(tmp_path).predict(Module(), datamodule=data(test=[Tasks("a", 2, 3)]))
    assert len([name for batch in ids for name in batch]) == 5


@pytest.mark.parametrize(
    ("settings", "call", "message"),
    [
        ({"train": []}, "fit", "nothing to train on: data.init_args.train is empty"),
        ({}, "validate", "nothing to validate on: data.init_args.val is empty"),
        ({}, "test", "nothing to test: data.init_args.test is empty"),
        ({}, "predict", "nothing to test: data.init_args.test is empty"),
        ({"predict": []}, "predict", "nothing to embed: data.init_args.predict is empty"),
        ({"test": [Tasks("a"), Tasks("a")]}, "test", "2 tasks of data.init_args.test are called 'a'"),
        ({"test": [Tasks("a", 0)]}, "test", "task 'a' has 0 queries and 7 candidates"),
        ({"batch_size": 30}, "fit", "source 'two' has 21 samples, fewer than the 30"),
    ],
)
def test_nothing_to_do_is_said_plainly(settings: dict[str, Any], call: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        getattr(trainer(tmp_path), call)(Module(), datamodule=data(**settings))


def test_sources_with_other_views_can_not_share_a_batch(tmp_path: Path) -> None:
    class OneView(Words):
        def draw(self, index: int, rng: random.Random) -> Sample:
            return Sample(str(index), {"image": Item(text="a")})

    mixed = data(train=[Words("one"), OneView("two")], homogeneous=2)
    with pytest.raises(RecipeError, match=r"source 'two' has the views \['image'\], 'one' has \['query', 'target'\]"):
        trainer(tmp_path).fit(Module(), datamodule=mixed)


def test_a_stage_that_does_not_exist_and_a_module_without_processor(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown stage 'vall'; did you mean 'val'"):
        data().tasks("vall")
    with pytest.raises(RecipeError, match=r"use trainer\.fit"):
        data().train_dataloader()
    module = Module()
    del module.processor
    with pytest.raises(RecipeError, match="Module has no processor"):
        trainer(tmp_path).fit(module, datamodule=data())


def test_a_folder_of_sources_stands_for_its_parts() -> None:
    class Folder(Words):
        parts = (Words("x"), Words("y"))

    assert [source.name for source in EmbeddingData(train=[Words("w"), Folder()]).train] == ["w", "x", "y"]


def test_loading_takes_no_random_numbers_from_the_model(tmp_path: Path) -> None:
    """Dropout would differ between a run that starts an epoch and one that resumes in its middle."""
    module, datamodule = Module(), data(test=[Tasks()])
    trainer(tmp_path, max_epochs=1, limit_train_batches=3).fit(module, datamodule=datamodule)
    before = torch.get_rng_state(), random.getstate()
    training = datamodule.train_dataloader()
    training.position = lambda: (0, 0)  # the run is at its end, where no batch is left
    for loader in (training, *datamodule.test_dataloader()):
        assert list(loader)
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()


def test_what_goes_to_the_workers_is_small(tmp_path: Path) -> None:
    module, datamodule = Module(), data()
    trainer(tmp_path, max_epochs=1).fit(module, datamodule=datamodule)
    assert len(pickle.dumps(datamodule.train_dataloader().loader.dataset)) < 2000


def test_a_recipe_names_parts_by_their_class(tmp_path: Path) -> None:
    from jsonargparse import ArgumentParser

    import zoo.data.sources.emoji
    import zoo.data.sources.emoji_tasks  # noqa: F401

    parser = ArgumentParser()
    parser.add_subclass_arguments(EmbeddingData, "data")
    config = {
        "class_path": "zoo.data.datamodule.EmbeddingData",
        "init_args": {
            "train": [{"class_path": "EmojiRetrieval", "init_args": {"split": "val"}}],
            "predict": [{"class_path": "EmojiTasks"}, {"class_path": "EmojiRetrieval"}],
            "weights": {"emoji": 2.0},
            "augment": [{"class_path": "Crop", "init_args": {"views": ["query"]}}, {"class_path": "LowerCase"}],
        },
    }
    made = parser.instantiate(parser.parse_object({"data": config})).data
    assert [type(s).__name__ for s in (*made.train, *made.predict)] == [
        "EmojiRetrieval",
        "EmojiTasks",
        "EmojiRetrieval",
    ]
    assert [type(change).__name__ for change in made.augment] == ["Crop", "LowerCase"]
    assert made.weights == {"emoji": 2.0} and list(made.augment[0].views) == ["query"]
