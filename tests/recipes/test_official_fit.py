"""The recipes of published models train: a few steps of each, in a tiny size, on data in the authors' layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import official_layout
import pyarrow
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, Trainer
from official_layout import AbcReference, Vlm2VecReference, picture
from pyarrow import parquet

import zoo
from zoo import catalog
from zoo.commands.fit import run_lightning
from zoo.loading import build_model


def captions(folder: Path) -> None:
    rows = [
        {"caption": f"thing {i}", "image": f"{i}.png", "id": i, "negatives": [(i + k) % 12 for k in range(1, 12)] * 4}
        for i in range(12)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train.parquet")
    for i in range(12):
        picture(i, 20, 16).save(folder / f"{i}.png")


def instructions(folder: Path) -> None:
    rows = [
        {str(k): {"image": i, "instruction": f"what is {k}", "phrase": f"part {k} of {i}", "id": k} for k in range(3)}
        for i in range(12)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train.parquet")
    for i in range(12):
        picture(i, 20, 16).save(folder / f"{i}.jpg")


def mmeb(folder: Path) -> None:
    rows = [
        {
            "qry": f"<|image_1|> What is {i}?\n",
            "qry_image_path": f"{i}.png",
            "pos_text": f"thing {i}",
            "pos_image_path": "",
        }
        for i in range(12)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train.parquet")
    for i in range(12):
        picture(i, 20, 16).save(folder / f"{i}.png")


def data(section: dict[str, Any], folder: Path) -> Any:
    """The recipe's data section with one source, whose paths lead to `folder`, and small batches."""
    arguments = section["init_args"]
    source = arguments["train"][0]
    places = {"folder": folder, "images": folder, "path": folder / "train.parquet"}
    source["init_args"] |= {key: str(place) for key, place in places.items() if key in source["init_args"]}
    section["init_args"] = arguments | {"train": [source], "batch_size": 4, "num_workers": 0, "test": []}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    return parser.instantiate(parser.parse_object({"data": section})).data


@pytest.mark.parametrize(
    ("stem", "reference", "write", "trained"),
    [
        ("abc-qwen2vl-pretrain", AbcReference, captions, {"visual", "language_model", "head", "objective"}),
        ("abc-qwen2vl", AbcReference, instructions, {"language_model"}),
        ("vlm2vec-qwen2vl-2b", Vlm2VecReference, mmeb, {"language_model"}),
    ],
)
def test_what_moves(stem: str, reference: Any, write: Any, trained: set[str], tmp_path: Path) -> None:
    """What the authors train moves, and nothing else does."""
    reference(tmp_path)
    write(tmp_path)
    raw = official_layout.tiny_recipe(stem)
    arguments = raw["model"]["init_args"]
    base = next(tmp_path.glob("Qwen/*"))
    arguments["processor"]["init_args"]["tokenizer"] = str(base / "tokenizer.json")
    arguments["scheduler"]["init_args"]["warmup_steps"] = 0
    if "pretrained" in arguments["backbone"]["init_args"]:
        arguments["backbone"]["init_args"]["pretrained"] = str(base)
    moved = fit(build_model(raw["model"], stem), data(raw["data"], tmp_path))
    assert {_part(name) for name in moved} == trained
    assert all(".lora_" in name or name.startswith(("head.", "objective.")) for name in moved)


def fit(module: Any, datamodule: Any) -> set[str]:
    """Two steps (A of a fresh adapter moves in the second); the names of the parameters that changed."""
    module.backbone.load_pretrained()
    module.backbone.pretrained = None
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule)
    assert trainer.global_step == 2
    return {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}


def _part(name: str) -> str:
    return next((part for part in ("visual", "language_model") if f".{part}." in name), name.partition(".")[0])


def test_second_stage_of_abc_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`zoo fit` begins at the weights that `start` names: the base of the written model is the first stage, merged."""
    AbcReference(tmp_path / "hub")
    instructions(tmp_path)
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    for stem in ("abc-qwen2vl", "abc-qwen2vl-pretrain"):
        raw = official_layout.tiny_recipe(stem)
        raw["model"]["init_args"]["processor"]["init_args"]["tokenizer"] = str(
            tmp_path / "hub/Qwen/Qwen2-VL-7B-Instruct/tokenizer.json"
        )
        source = {"class_path": "AbcInstructions", "init_args": {"folder": str(tmp_path), "images": str(tmp_path)}}
        raw["data"]["init_args"] |= {"train": [source], "batch_size": 4, "num_workers": 0}
        raw["trainer"] = {"accelerator": "cpu", "max_steps": 1, "logger": False, "enable_progress_bar": False}
        (recipes / f"{stem}.yaml").write_text(yaml.safe_dump(raw), "utf-8")
    monkeypatch.setattr(catalog, "_folders", lambda: iter([(recipes, "zoo")]))
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path / "hub"))
    assert (
        run_lightning("fit", ["--config", str(recipes / "abc-qwen2vl.yaml"), "--run_dir", str(tmp_path / "run")]) == 0
    )
    first, second = zoo.load("abc-qwen2vl-pretrain"), zoo.load(f"path:{tmp_path / 'run'}")
    texts = ["a dog", "a tree behind a house"]
    np.testing.assert_allclose(second.encode(texts), first.encode(texts), atol=1e-5)
    assert second.module.objective.temperature.parameter.item() == first.module.objective.temperature.parameter.item()  # type: ignore[union-attr]
