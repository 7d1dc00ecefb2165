"""A refit is the recipe on every family: its sources are those of the recipe, but for the split."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

RECIPES = Path(__file__).parent.parent.parent / "recipes"
REFITS = sorted((RECIPES / "refit").glob("*-refit.yaml"))


@pytest.mark.parametrize("path", REFITS, ids=lambda path: path.stem)
def test_only_the_split_differs(path: Path) -> None:
    base = yaml.safe_load((RECIPES / f"{path.stem.removesuffix('-refit')}.yaml").read_text("utf-8"))["data"][
        "init_args"
    ]
    refit = yaml.safe_load(path.read_text("utf-8"))["data"]["init_args"]
    for source in refit["train"]:
        assert source["init_args"].pop("split") == "all"
    assert refit["train"] == base["train"] and refit["val"] == refit["test"] == []


def test_there_is_one() -> None:
    assert [path.stem for path in REFITS] == ["clip-emoji-refit"]
