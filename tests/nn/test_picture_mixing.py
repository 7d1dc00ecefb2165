"""Mixed pictures are what the formula says, and the shares that labels get are those of the pixels."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from encoded_rows import encoded
from torch import nn

from zoo.errors import RecipeError
from zoo.module import EmbeddingModule
from zoo.nn.picture_mixing import PictureMixing
from zoo.objectives.combined import Weighted
from zoo.objectives.infonce import InfoNCE
from zoo.objectives.mixed_pairs import CoinFlipMixup
from zoo.objectives.pcmepp import PCMEPP
from zoo.objectives.siglip import SigLIP
from zoo.types import Batch, Inputs, Mixture

ROWS = 40


def batch(kind: str = "pixels", rows: int = ROWS) -> Batch:
    """Picture i is the constant i; the query is a text."""
    shape = (rows, 3, 8, 10) if kind == "pixels" else (rows, 5)
    values = torch.arange(rows, dtype=torch.float32).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    owner = torch.arange(rows)
    pictures: Inputs = {"rows": owner, "image_rows": owner, kind: values}
    texts: Inputs = {"rows": owner, "text_rows": owner, "input_ids": owner[:, None], "attention_mask": owner[:, None]}
    return Batch(
        views={"query": texts, "target": pictures},
        owners={"query": owner, "target": owner + 100},
        keys={"query": owner, "target": owner},
        labels=torch.full((rows,), -1),
        weights=torch.ones(rows),
        ids=[str(i) for i in range(rows)],
        sources=[""] * rows,
    )


@pytest.mark.parametrize("kind", ["pixels", "image_pooled"])
@pytest.mark.parametrize("cutmix", [0.0, 2.0])
def test_shares_are_those_of_the_picture(kind: str, cutmix: float) -> None:
    given = batch(kind)
    mixing = PictureMixing(cutmix=cutmix, share=0.5)
    if kind != "pixels" and cutmix:
        with pytest.raises(RecipeError, match="the view 'target' holds latents, which CutMix can't cut; set cutmix: 0"):
            mixing(given)
        return
    torch.manual_seed(0)
    found = mixing(given)
    assert found.views["query"] is given.views["query"] and bool((found.mixed["query"].share == 1).all())
    partner, share = found.mixed["target"].partner, found.mixed["target"].share
    assert torch.equal(partner, given.owners["target"].flip(0))
    own = torch.arange(ROWS, dtype=torch.float32)
    expected = share * own + (1 - share) * own.flip(0)
    torch.testing.assert_close(found.views["target"][kind].flatten(1).mean(1), expected)
    assert int((share < 1).sum()) in (ROWS // 2 - 1, ROWS // 2) or cutmix
    assert torch.equal(given.views["target"][kind], batch(kind).views["target"][kind]), "the batch given was changed"


def test_cutmix_pastes_a_rectangle() -> None:
    torch.manual_seed(1)
    found = PictureMixing(mixup=0.0, share=1.0)(batch())
    for row, picture in enumerate(found.views["target"]["pixels"]):
        other = picture[0] == ROWS - 1 - row
        assert bool((other | (picture[0] == row)).all()) and torch.equal(picture[0], picture[2])
        lines, columns = other.any(1), other.any(0)
        assert int(other.sum()) == int(lines.sum()) * int(columns.sum())
        assert found.mixed["target"].share[row] == pytest.approx(1 - float(other.float().mean()), abs=1e-6)


def test_one_share_for_a_batch_and_batches_that_stay() -> None:
    torch.manual_seed(2)
    mixing = PictureMixing(mixup=0.5, cutmix=0.0, share=1.0, per="batch", chance=0.5)
    shares = [mixing(batch()).mixed["target"].share for _ in range(60)]
    shares = [share for share in shares if float(share.min()) < 1]
    assert 15 < len(shares) < 45
    assert all(len(share.unique()) == 1 for share in shares) and len({float(s[0]) for s in shares}) > 10


def test_the_same_seed_mixes_alike_and_nothing_else_is_mixed() -> None:
    pair = []
    for _ in range(2):
        torch.manual_seed(5)
        pair.append(PictureMixing()(batch()).views["target"]["pixels"])
    assert torch.equal(*pair)
    two = batch()
    two.views["target"]["text_rows"] = two.owners["query"]  # a picture and a text per row
    found = PictureMixing()(two)
    assert found.views == two.views and all(bool((one.share == 1).all()) for one in found.mixed.values())


@pytest.mark.parametrize("settings", [{"mixup": 0.0, "cutmix": 0.0}, {"share": 0.0}, {"mixup": -1.0}])
def test_settings_that_mix_nothing(settings: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="PictureMixing needs mixup or cutmix above 0"):
        PictureMixing(**settings)


READING = {"pcmepp": PCMEPP(), "coin flip": CoinFlipMixup(), "both": Weighted({"a": PCMEPP(), "b": CoinFlipMixup()})}
BLIND = {"infonce": InfoNCE(), "siglip": SigLIP(), "one of two": Weighted({"a": PCMEPP(), "b": InfoNCE()})}


class Small(EmbeddingModule):
    def __init__(self, mixing: nn.Module | None, objective: nn.Module) -> None:
        super().__init__(processor=None, objective=objective)  # type: ignore[arg-type]
        self.mixing, self.layer = mixing, nn.Linear(2, 2)


@pytest.mark.parametrize("name", [*READING, *BLIND])
def test_mixed_pictures_want_an_objective_that_looks_at_their_shares(name: str) -> None:
    """Refused where fitting starts; what was trained so before can still be used."""
    module = Small(PictureMixing(), (READING | BLIND)[name])
    module.setup("test")
    if name in READING:
        module.setup("fit")
        return
    with pytest.raises(RecipeError, match=r"(InfoNCE|SigLIP|Weighted) ignores that: use PCMEPP or CoinFlipMixup"):
        module.setup("fit")
    Small(None, BLIND[name]).setup("fit")


@pytest.mark.parametrize("name", READING)
def test_what_says_that_it_looks_at_shares_does(name: str) -> None:
    """Other shares, another loss."""
    losses = []
    for share in (1.0, 0.7):
        whole = encoded(4, spread=-2.0)
        whole.mixed = {"target": Mixture(torch.arange(4).flip(0), torch.full((4,), share))}
        objective = deepcopy(READING[name]).eval()
        losses.append(float(objective(whole, whole)["loss"].detach()))
    assert abs(losses[0] - losses[1]) > 1e-3
