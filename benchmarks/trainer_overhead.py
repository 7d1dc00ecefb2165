"""One Lightning training step of the zoo against a bare loop over the same module, batches and optimizer.

python benchmarks/trainer_overhead.py
"""

from __future__ import annotations

import copy
import logging
import time
import warnings
from pathlib import Path

import torch
import yaml
from alternating import machine
from lightning.pytorch import Callback, Trainer

from zoo.data.datamodule import EmbeddingData
from zoo.data.sources.emoji import EmojiRetrieval
from zoo.loading import build_model

STEPS, REPEATS = 20, 5
RECIPE = Path(__file__).parent.parent / "recipes" / "clip.yaml"


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []
        self.start = self.seconds = 0.0

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        if batch_idx == 1:
            self.start = time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        self.values.append(float(outputs["loss"]))
        self.seconds = time.perf_counter() - self.start


def data() -> EmbeddingData:
    return EmbeddingData(train=[EmojiRetrieval(per="base")], batch_size=64)


def lightning_steps(module) -> tuple[float, list[float]]:  # type: ignore[no-untyped-def]
    losses = Losses()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[losses],
        use_distributed_sampler=False,
        gradient_clip_val=1.0,
    )
    torch.manual_seed(0)
    trainer.fit(module, datamodule=data())
    return losses.seconds, losses.values


def bare_steps(module) -> tuple[float, list[float]]:  # type: ignore[no-untyped-def]
    source = data()
    source.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=STEPS)
    source.trainer.strategy._lightning_module = module
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    module.train()
    torch.manual_seed(0)
    values: list[float] = []
    start = 0.0
    for number, batch in enumerate(source.train_dataloader()):
        if number == STEPS:
            break
        if number == 1:
            start = time.perf_counter()
        encoded = module._encoded(batch)
        loss = module.objective(encoded, encoded)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        values.append(loss.item())
    return time.perf_counter() - start, values


def main() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    model = yaml.safe_load(RECIPE.read_text())["model"]
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):  # the same losses whoever draws random numbers
        model["init_args"]["text"]["init_args"]["config"][name] = 0.0
    start = build_model(model, "clip")
    found: dict[str, list[float]] = {"lightning": [], "bare": []}
    for _ in range(REPEATS):
        results = {}
        for name, run in (("lightning", lightning_steps), ("bare", bare_steps)):
            seconds, results[name] = run(copy.deepcopy(start))
            found[name].append(seconds / (STEPS - 1))
        assert torch.allclose(torch.tensor(results["lightning"]), torch.tensor(results["bare"]), atol=1e-6), results
    ours, bare = (sorted(found[name])[REPEATS // 2] for name in ("lightning", "bare"))
    print(machine())
    print(f"seconds a step: {ours:.4f} in Lightning, {bare:.4f} bare, ratio {ours / bare:.3f}, losses equal to 1e-6")


if __name__ == "__main__":
    main()
