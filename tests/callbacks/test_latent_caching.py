"""Training on cached latents: the same numbers as without, and every encoder sees a part once."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from frozen_towers import FrozenTowers, ManyPairs, build
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from toy import ToyEncoder, ToyProcessor, recipe

from zoo.bundle import write_bundle
from zoo.callbacks.checkpointing import ResumableCheckpoint
from zoo.callbacks.evaluation import RetrievalEvaluation
from zoo.callbacks.latent_caching import LatentCaching
from zoo.data.augment import Mirror
from zoo.data.datamodule import EmbeddingData
from zoo.data.processors.cached import CachedProcessor
from zoo.data.processors.dual import DualProcessor
from zoo.data.source import TaskSource
from zoo.errors import RecipeError, SampleError
from zoo.objectives.infonce import InfoNCE
from zoo.types import RetrievalTask


class PairTask(TaskSource):
    """Pictures of numbers against their texts."""

    def __init__(self, first: int, name: str = "pairs") -> None:
        self.first, self.name = first, name

    def tasks(self) -> list[RetrievalTask]:
        source = ManyPairs(60)
        samples = [source.draw(self.first + n, random.Random(0)).views for n in range(10)]
        queries, targets = ([views[side] for views in samples] for side in ("query", "target"))
        return [RetrievalTask(self.name, queries, targets, [(n,) for n in range(10)])]


class Stop(Callback):
    """Ends the run behind a step, and notes which processor the loops have."""

    def __init__(self, after: int = -1) -> None:
        self.after = after
        self.processors: dict[str, Any] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.processors["train"] = pl_module.processor
        if trainer.global_step == self.after:
            raise RuntimeError("killed")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.processors["val"] = pl_module.processor

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.processors["test"] = pl_module.processor


def data(**options: Any) -> EmbeddingData:
    options = {"train": [ManyPairs(40)], "val": [PairTask(40)], "test": [PairTask(50)], "batch_size": 8} | options
    return EmbeddingData(**options)


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        **{"max_epochs": 3, "num_sanity_val_steps": 0} | options,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        callbacks=[
            RetrievalEvaluation(),
            *callbacks,
            ResumableCheckpoint(folder / "checkpoints", every_n_train_steps=4),
        ],
    )


def model(**options: Any) -> FrozenTowers:
    return build(objective=InfoNCE(0.1, learn="log"), **options)


def fit(
    folder: Path, cache: Path | None, stop: Stop | None = None, resume: bool = False, **options: Any
) -> FrozenTowers:
    module = model(**options.pop("module", {}))
    caching = LatentCaching(enabled=cache is not None, batch_size=7, folder=str(cache or ""))
    run = trainer(folder, caching, *([stop] if stop else []), max_epochs=options.pop("max_epochs", 3))
    run.fit(module, datamodule=data(**options), ckpt_path="last" if resume else None, weights_only=False)
    return module


def weights(module: FrozenTowers) -> dict[str, torch.Tensor]:
    return {name: value for name, value in module.state_dict().items() if name.startswith(("heads.", "objective."))}


@pytest.mark.parametrize("module", [{}, {"chunk_size": 3}], ids=["whole", "chunks"])
def test_training_on_latents_equals_training_on_items(module: dict[str, Any], tmp_path: Path) -> None:
    with_cache = fit(tmp_path / "a", tmp_path / "cache", module=module)
    without = fit(tmp_path / "b", None, module=module)
    for name, value in weights(without).items():
        torch.testing.assert_close(weights(with_cache)[name], value, atol=1e-5, rtol=1e-4, msg=name)
    assert with_cache.calls == 2 * 60  # of the sources 40 pairs, of each task 10
    assert without.calls > 2 * 3 * 40


def test_a_second_run_encodes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path / "a", tmp_path / "cache", max_epochs=1)
    assert "latents: 40 images of pairs, 6 wide, 40 encoded now" in capsys.readouterr().out
    assert fit(tmp_path / "b", tmp_path / "cache", max_epochs=1).calls == 0
    assert "latents: 40 images of pairs, 6 wide, all cached before" in capsys.readouterr().out


@pytest.mark.parametrize("stop_after", [3, 6, 11])
def test_a_killed_run_goes_on_as_if_it_had_not_stopped(stop_after: int, tmp_path: Path) -> None:
    unbroken = fit(tmp_path / "unbroken", tmp_path / "cache")
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path / "broken", tmp_path / "cache", Stop(stop_after))
    resumed = fit(tmp_path / "broken", tmp_path / "cache", resume=stop_after > 4)
    for name, value in weights(unbroken).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_workers_read_the_cache_too(tmp_path: Path) -> None:
    here, there = (fit(tmp_path / str(n), tmp_path / "cache", num_workers=n, max_epochs=1) for n in (0, 2))
    assert all(torch.equal(value, weights(there)[name]) for name, value in weights(here).items())


def test_loops_read_the_cache_and_everything_else_does_not(tmp_path: Path) -> None:
    module, watch, these = model(), Stop(), data()
    run = trainer(tmp_path, LatentCaching(True, folder=str(tmp_path / "cache")), watch, max_epochs=1)
    run.fit(module, datamodule=these)
    assert type(module.processor) is DualProcessor
    calls = module.calls
    run.test(module, datamodule=these, verbose=False)
    assert {name: type(one) for name, one in watch.processors.items()} == dict.fromkeys(
        ("train", "val", "test"), CachedProcessor
    )
    assert module.calls == calls and type(module.processor) is DualProcessor
    run.test(module, datamodule=data(test=[PairTask(0, "other")]), verbose=False)  # nobody has cached these
    assert module.calls == calls + 20
    folder = write_bundle(module, _recipe(), tmp_path / "bundle")
    assert (folder / "tokenizer.json").is_file()


def _recipe() -> dict[str, Any]:
    processor = {"class_path": "DualProcessor", "init_args": {"tokenizer": "packaged:emoji-tokenizer.json"}}
    return {
        "card": {"title": "t", "family": "toys", "license": "Apache-2.0"},
        "model": {"class_path": "frozen_towers.FrozenTowers", "init_args": {"processor": processor}},
    }


def test_metrics_are_those_of_the_items(tmp_path: Path) -> None:
    found = []
    for cache in (True, False):
        module = model()
        run = trainer(tmp_path / str(cache), LatentCaching(cache, folder=str(tmp_path / "cache")))
        run.fit(module, datamodule=data())
        found.append({k: float(v) for k, v in run.callback_metrics.items() if k.startswith("val/")})
    assert found[0] == pytest.approx(found[1]) and found[0]


def test_bad_samples_are_skipped_as_without_a_cache(tmp_path: Path) -> None:
    bad = ManyPairs(40, bad=(3, 17))
    with pytest.raises(SampleError, match=r"pairs, image 3 .*is not a picture"):
        fit(tmp_path / "a", tmp_path / "cache", train=[bad])
    with pytest.warns(UserWarning, match="bad training sample replaced: pairs/(3|17)"):
        module = fit(tmp_path / "b", tmp_path / "cache", train=[bad], on_bad_sample="skip", max_epochs=1)
    assert module.calls == 2 * 60 - 2


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_nothing_happens_where_it_is_not_enabled(tmp_path: Path) -> None:
    module = model()
    trainer(tmp_path, LatentCaching(folder=str(tmp_path / "cache")), max_epochs=1).fit(module, datamodule=data())
    assert not (tmp_path / "cache").exists()


def test_a_model_without_frozen_encoders_is_refused(tmp_path: Path) -> None:
    processor = ToyProcessor(recipe(tmp_path)["model"]["init_args"]["processor"]["init_args"]["words"])
    module = ToyEncoder(processor, objective=InfoNCE(0.1))
    with pytest.raises(RecipeError, match="ToyEncoder has no frozen encoders whose latents could be cached; use"):
        trainer(tmp_path, LatentCaching(True)).fit(module, datamodule=data())


def test_augmentation_is_refused_before_anything_is_encoded(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="exclude each other"):
        fit(tmp_path, tmp_path / "cache", augment=[Mirror()])
    assert not (tmp_path / "cache").exists()


def test_other_data_modules_are_refused(tmp_path: Path) -> None:
    class Other(LightningDataModule):
        def train_dataloader(self) -> list[Any]:
            return []

    with pytest.raises(RecipeError, match="use EmbeddingData"):
        trainer(tmp_path, LatentCaching(True)).fit(model(), datamodule=Other())


def test_the_processor_comes_back_after_an_error(tmp_path: Path) -> None:
    module = model()
    run = trainer(tmp_path, LatentCaching(True, folder=str(tmp_path / "cache")), Stop(2))
    with pytest.raises(RuntimeError, match="killed"):
        run.fit(module, datamodule=data())
    assert type(module.processor) is DualProcessor
