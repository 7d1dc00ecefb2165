"""Weighted sums of objectives, and that recipes can build them and all other objectives."""

from __future__ import annotations

import pytest
import torch
from encoded_rows import check_ranks, close, encoded, leaves, outcome, share_of
from jsonargparse import ArgumentParser

from zoo.errors import RecipeError
from zoo.objectives.combined import Weighted
from zoo.objectives.infonce import InfoNCE
from zoo.objectives.objective import Objective
from zoo.objectives.triplet import Triplet


def make() -> Weighted:
    return Weighted({"clip": InfoNCE(0.125, "log", symmetric=True), "hinge": Triplet(0.5)}, {"hinge": 0.3})


def test_is_the_weighted_sum_and_logs_each() -> None:
    batch = encoded(6)
    parts = [InfoNCE(0.125, symmetric=True)(batch, batch), Triplet(0.5)(batch, batch)]
    found = make().double()(batch, batch)
    expected = parts[0]["loss"] + 0.3 * parts[1]["loss"]
    close(outcome(found["loss"], leaves(batch)), outcome(expected, leaves(batch)))
    assert float(found["clip"]) == pytest.approx(float(parts[0]["loss"].detach()))
    assert float(found["hinge"]) == pytest.approx(float(parts[1]["loss"].detach()))
    assert set(found) == {"loss", "clip", "clip/temperature", "clip/accuracy", "hinge", "hinge/violations"}


def test_ranks_and_what_they_log() -> None:
    """The mean over ranks of what is logged is the value of one process, for ranks of one size."""
    batch = encoded(6)
    check_ranks(make, batch)
    logged = [make()(share_of(batch, *cut), batch)["hinge"] for cut in ((0, 3), (3, 6))]
    torch.testing.assert_close(sum(logged) / 2, make()(batch, batch)["hinge"])


def test_unknown_weights_and_nothing_are_refused() -> None:
    with pytest.raises(RecipeError, match="hing"):
        Weighted({"hinge": Triplet()}, {"hing": 1.0})
    with pytest.raises(RecipeError, match="objectives"):
        Weighted({})


def built(config: dict) -> Objective:
    parser = ArgumentParser()
    parser.add_argument("--objective", type=Objective)
    return parser.instantiate(parser.parse_object({"objective": config})).objective


CLIP = {"class_path": "zoo.objectives.infonce.InfoNCE", "init_args": {"temperature": 0.1, "symmetric": True}}
SCORE = {"class_path": "zoo.objectives.regions.RegionSentence", "init_args": {"pool": "attention"}}
RECIPES = {
    "triplet.Triplet": {"negatives": "hardest"},
    "token_matching.TokenMatching": {"score": SCORE, "loss": "nce"},
    "gap.ContrastiveGap": {"contrastive": CLIP, "cross_uniformity": 1.0},
    "positive_margin.PositiveMargin": {"contrastive": CLIP},
    "geodesic_mixup.GeodesicMixup": {"vl": 0.05},
    "mixed_pairs.CoinFlipMixup": {"mixed": ["target"]},
    "soft_targets.MomentumDistillation": {"dim": 6, "queue_size": 8},
    "soft_targets.SoftenedInfoNCE": {"ramp_steps": 100},
    "combined.Weighted": {"objectives": {"a": CLIP, "b": CLIP}, "weights": {"a": 0.5}},
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_build_it(name: str) -> None:
    objective = built({"class_path": f"zoo.objectives.{name}", "init_args": RECIPES[name]})
    batch = encoded(4, 1, (3, 2))
    found = objective(batch, batch)
    assert found["loss"].ndim == 0 and all(value.ndim == 0 for value in found.values())
    before = objective.state_dict()
    objective.load_state_dict(before)
