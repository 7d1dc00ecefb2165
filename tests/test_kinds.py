"""A class of the wrong kind is told which kind is wanted, and which classes are of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from zoo import catalog
from zoo.cli import main
from zoo.errors import RecipeError
from zoo.loading import build_model


def message(**arguments: Any) -> str:
    """What is said of `clip` with these arguments of its model."""
    model = copy.deepcopy(catalog.find("clip")[0].raw["model"])
    model["init_args"] |= arguments
    with pytest.raises(RecipeError) as caught:
        build_model(model, "clip")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "wanted", "fitting", "other"),
    [
        ({"objective": {"class_path": "Projection"}}, "an Objective is wanted", "InfoNCE", "Projector"),
        (
            {"objective": "zoo.nn.heads.Projection"},
            "'Projection' does not fit here: an Objective",
            "InfoNCE",
            "Projector",
        ),
        ({"objective": {"class_path": "zoo.nn.heads.Projection"}}, "an Objective is wanted", "InfoNCE", "Projector"),
        ({"processor": {"class_path": "TablePairs"}}, "Processor is wanted", "DualProcessor", "ImagePairs"),
        ({"text": {"class_path": "TimmImage"}}, "a TextTower is wanted", "TransformersText", "EntryImage"),
        ({"optimizer": {"class_path": "InfoNCE"}}, "an Optimizer is wanted", "", "SoftenedInfoNCE"),
        ({"scheduler": {"class_path": "torch.optim.AdamW"}}, "an LRScheduler", "WarmupCosine", "AbcCaptions"),
        (
            {
                "text": {
                    "class_path": "TransformersText",
                    "init_args": {"kind": "bert", "pooling": {"class_path": "InfoNCE"}},
                }
            },
            "a Pooling is wanted",
            "MeanPooling",
            "SoftenedInfoNCE",
        ),
    ],
)
def test_the_kind_that_is_wanted_is_named(arguments: dict[str, Any], wanted: str, fitting: str, other: str) -> None:
    told = message(**arguments)
    assert wanted in told and fitting in told
    assert other not in told and "did you mean" not in told


def test_slips_are_looked_for_among_those_that_fit() -> None:
    told = message(objective={"class_path": "InfoNC"})
    assert told.endswith("there is no class 'InfoNC'; did you mean 'InfoNCE'?")


@pytest.mark.parametrize("objective", [{"class_pth": "InfoNCE"}, {"class_path": "InfoNCE", "init_arg": {}}])
def test_a_misspelled_class_path_is_told(objective: dict[str, Any]) -> None:
    told = message(objective=objective)
    assert "protocol" not in told and ("`class_path`" in told or "init_arg" in told)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"freeze": "text"}, "model.freeze (DualEncoder): text is not a list; put it in [brackets]"),
        ({"freeze": [1]}, "model.freeze (DualEncoder): 1 is not text; put it in quotes"),
    ],
)
def test_values_of_the_wrong_kind_are_told_in_the_words_of_yaml(arguments: dict[str, Any], told: str) -> None:
    assert told in message(**arguments)


@pytest.mark.parametrize(
    ("edit", "wanted", "fitting"),
    [
        (lambda r: r["data"]["init_args"].update(val=[{"class_path": "TablePairs"}]), "TaskSource", "EmojiTasks"),
        (lambda r: r["data"]["init_args"].update(train=[{"class_path": "InfoNCE"}]), "Source", "EmojiRetrieval"),
        (lambda r: r["data"].update(class_path="InfoNCE"), "LightningDataModule", "EmbeddingData"),
        (lambda r: r["trainer"].update(callbacks=[{"class_path": "InfoNCE"}]), "Callback", "History"),
    ],
)
def test_so_it_is_for_data_and_callbacks(
    tmp_path: Path, edit: Any, wanted: str, fitting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = copy.deepcopy(catalog.find("clip")[0].raw)
    edit(recipe)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    assert main(["fit", "--config", str(tmp_path / "mine.yaml"), "--run_dir", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert f"a {wanted} is wanted" in told and fitting in told and "did you mean" not in told
