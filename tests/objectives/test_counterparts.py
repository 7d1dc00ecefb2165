"""Samples that lack a view: a row without a counterpart weighs nothing, in every objective."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from importlib import import_module
from pkgutil import iter_modules

import pytest
import torch
from encoded_rows import (
    WIDTH,
    check_ranks,
    check_tiles,
    close,
    encoded,
    leaves,
    outcome,
    randn,
    share_of,
    trained,
    unit,
)
from torch import Tensor, nn

import zoo.objectives
from zoo.errors import RecipeError
from zoo.nn.conditioned_pooling import ConditionedPooling
from zoo.objectives.adjust import FalseNegativeFilter, HardestNegatives, Hardness, Margin
from zoo.objectives.combined import Weighted
from zoo.objectives.counterparts import counterparts, rows_of
from zoo.objectives.flair import Flair
from zoo.objectives.gap import ContrastiveGap
from zoo.objectives.geodesic_mixup import GeodesicMixup
from zoo.objectives.infonce import InfoNCE
from zoo.objectives.masked_words import MaskedWords
from zoo.objectives.meme import MEME
from zoo.objectives.mixed_pairs import CoinFlipMixup
from zoo.objectives.objective import Objective
from zoo.objectives.pcme import PCME
from zoo.objectives.pcmepp import PCMEPP
from zoo.objectives.positive_margin import PositiveMargin
from zoo.objectives.probvlm import ProbVLM
from zoo.objectives.prolip import ProLIP
from zoo.objectives.regions import BestMatch
from zoo.objectives.siglip import SigLIP
from zoo.objectives.soft_targets import MomentumDistillation, SoftenedInfoNCE
from zoo.objectives.swapped_assignment import SwappedAssignment
from zoo.objectives.temperature import Temperature
from zoo.objectives.text_repulsion import TextRepulsion
from zoo.objectives.token_matching import TokenMatching
from zoo.objectives.triplet import Triplet
from zoo.objectives.vicreg import VicReg
from zoo.types import Embedding, Encoded

SCALE = 4.0
LACKING = {"query": [3], "target": [1, 4]}
WHOLE = [0, 2, 5]


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("vectors", unit(7, WIDTH, seed=50))
        self.register_buffer("prior", torch.linspace(1, 3, 7, dtype=torch.float64).softmax(0))

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.vectors, self.prior


def info(**options: object) -> InfoNCE:
    return InfoNCE(1 / SCALE, "linear", **options)  # type: ignore[arg-type]


def distilled() -> MomentumDistillation:
    objective = MomentumDistillation(WIDTH, 4, 1 / SCALE, alpha=0.3)
    for place, queue in enumerate(objective.queues.values()):
        queue.put(unit(3, WIDTH, seed=40 + place), torch.arange(700, 703))
    return objective.eval()


PER_SAMPLE: dict[str, Callable[[], nn.Module]] = {  # sums over rows, divided by the number of samples
    "infonce": info,
    "infonce, both ways": lambda: info(symmetric=True, label_smoothing=0.1),
    "infonce, own side": lambda: info(symmetric=True, intra_modal=True),
    "infonce, positives": lambda: info(symmetric=True, duplicates="positive"),
    "infonce, hardness": lambda: info(adjust=[Hardness(2.0), Margin(0.2)]),
    "infonce, filters": lambda: info(adjust=[FalseNegativeFilter(0.1), HardestNegatives(2)]),
    "siglip": lambda: SigLIP(1 / SCALE, -1.0, "linear"),
    "triplet": lambda: Triplet(0.9),
    "triplet, hardest": lambda: Triplet(0.9, "hardest", duplicates="positive"),
    "tokens, nce": lambda: TokenMatching(BestMatch(mutual=True)),
    "tokens, hinge": lambda: TokenMatching(BestMatch("mean"), "hinge", negatives="hardest"),
    "text repulsion": lambda: TextRepulsion(wrong="hardest"),
    "positive margin": lambda: PositiveMargin(info()),
    "gap, alignment": lambda: ContrastiveGap(info(), 1.0, 0.0),
    "softened": lambda: SoftenedInfoNCE(1 / SCALE, softness=0.3),
    "distilled": distilled,
    "vicreg, invariance": lambda: VicReg(variance=0.0, covariance=0.0),
    "swapped": lambda: SwappedAssignment(Words(), "exact", 0.1, 0.2),
    "geodesic": lambda: GeodesicMixup(1 / SCALE, "linear", m2=0.2, v=0.3, l=0.4, vl=0.5),
    "coin flip": lambda: CoinFlipMixup(1 / SCALE, "linear", label_smoothing=0.1, beta=2.0),
    "pcme": lambda: PCME(4.0, 3.0, samples=3, vib=0.0),
    "prolip": lambda: ProLIP(bias=-1.0, inclusions=(), vib=0.0),
    "weighted": lambda: Weighted({"a": info(), "b": Triplet(0.9)}, {"b": 0.3}),
}
PER_PAIR: dict[str, Callable[[], nn.Module]] = {  # means over what there is, or plain sums
    "gap, uniformity": lambda: ContrastiveGap(Weighted({"none": info()}, {"none": 0.0}), 0.0, 1.0, 1.0),
    "vicreg, spread": lambda: VicReg(invariance=0.0),
    "pcmepp": lambda: PCMEPP(label_smoothing=0.1, vib=0.2),
    "pcme, official": lambda: PCME(4.0, 3.0, samples=3, vib=0.2, uniformity=0.3, form="official"),
    "probvlm": lambda: ProbVLM(1.0, 0.3, 0.2),
    "masked words": lambda: MaskedWords(WIDTH, 11, 1, 2),
    "flair": lambda: Flair(ConditionedPooling(WIDTH, 2), 1 / SCALE, -1.0, "linear"),
    "flair, official": lambda: Flair(ConditionedPooling(WIDTH, 2), 1 / SCALE, -1.0, "linear", queries="official"),
}
BOTH: dict[str, Callable[[], nn.Module]] = {  # the part of the same name in PER_SAMPLE, and means
    "pcme": lambda: PCME(4.0, 3.0, samples=3, vib=0.2, uniformity=0.3),
    "prolip": lambda: ProLIP(bias=-1.0, inclusions=(("query", "target", 0.5),), inclusion_scale=3.0, vib=0.2),
}
EVERY = {name: (make, 0.5) for name, make in PER_SAMPLE.items()}
EVERY |= {name: (make, 1.0) for name, make in PER_PAIR.items()}
EVERY |= {f"{name} and more": (make, 1.0) for name, make in BOTH.items()}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return EVERY[name][0]().double()


def test_every_objective_is_tried() -> None:
    """But MEME, which is made for samples that lack a view and has its own tests."""
    modules = [import_module(f"zoo.objectives.{found.name}") for found in iter_modules(zoo.objectives.__path__)]
    parts = {part for module in modules for part in vars(module).values() if isinstance(part, type)}
    objectives = {part for part in parts if Objective in part.__mro__ and part is not Objective}
    tried = {type(part) for name in EVERY for part in made(name).modules()}
    assert objectives - tried == {MEME}


def complete(name: str = "") -> Encoded:
    """Six samples with everything that some objective looks at; samples 0 and 5 have one label."""
    batch = encoded(6, tokens=(3, 2), spread=-2.0, labels=torch.tensor([7, -1, -1, 7, -1, 7]))
    batch.weights = torch.linspace(1, 2, 6).double()
    for place, view in enumerate(("query", "target")):
        e = batch.views[view]
        e.given, e.log_shape = unit(6, WIDTH, seed=60 + place), (randn(6, WIDTH, seed=70 + place) / 2).requires_grad_()
        e.norm = (1 + randn(6, seed=80 + place).square()).requires_grad_()
        batch.views[f"{view}_momentum"] = Embedding(unit(6, WIDTH, seed=20 + place))
        batch.owners[f"{view}_momentum"], batch.keys[f"{view}_momentum"] = batch.owners[view], batch.keys[view]
    if name == "masked words":
        text = encoded(6, tokens=(2, 0), seed=50).views["query"]
        text.words = torch.tensor([[3, -1], [4, 1], [-1, -1], [2, 9], [0, 1], [5, -1]])
        batch.views["target_masked"] = text
        batch.owners["target_masked"], batch.keys["target_masked"] = batch.owners["target"], batch.keys["target"]
    return batch


def without(batch: Encoded, lacking: dict[str, list[int]]) -> Encoded:
    """The same, but these samples have no row in these views."""
    views, owners, keys = dict(batch.views), dict(batch.owners), dict(batch.keys)
    for name in views:
        gone = torch.tensor(lacking.get(name.partition("_")[0], []), dtype=torch.int64)
        kept = ~torch.isin(owners[name], gone)
        views[name], owners[name], keys[name] = rows_of(views[name], kept), owners[name][kept], keys[name][kept]
    return replace(batch, views=views, owners=owners, keys=keys)


def only(batch: Encoded, samples: list[int]) -> Encoded:
    """A batch of these samples alone."""
    found = without(batch, {name: [i for i in range(6) if i not in samples] for name in ("query", "target")})
    return replace(found, labels=batch.labels[samples], weights=batch.weights[samples], sample=batch.sample[samples])


def results(name: str, batch: Encoded, whole: Encoded) -> list[Tensor]:
    """Loss and gradients; those of the rows of `whole` come first."""
    objective = made(name)
    return outcome(objective(batch, batch)["loss"], [*leaves(whole), *trained(objective)])


@pytest.mark.parametrize("name", EVERY)
def test_is_the_loss_of_the_samples_that_have_both(name: str) -> None:
    """Half of the samples are whole: a mean over samples is half as large, a mean over pairs is the same."""
    batch = complete(name)
    expected = [EVERY[name][1] * part for part in results(name, only(batch, WHOLE), batch)]
    if name.endswith(" and more"):
        halved = results(name.removesuffix(" and more"), only(batch, WHOLE), batch)
        expected = [part - half / 2 for part, half in zip(expected, halved, strict=True)]
    found = results(name, without(batch, LACKING), batch)
    close(found, expected)
    of_rows = found[1 : 1 + len(leaves(batch))]
    assert max(float(part.abs().max()) for part in of_rows) > 1e-6
    assert not any(bool(part[[1, 3, 4]].any()) for part in of_rows)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    "lacking", [{"target": range(6)}, {"query": [0, 1, 2], "target": [3, 4, 5]}, {"query": range(6)}]
)
def test_where_nothing_has_a_counterpart_there_is_no_loss(name: str, lacking: dict[str, list[int]]) -> None:
    """Finite, all reports as well; 0; and a gradient of 0 for all that is trained, which processes share."""
    whole, objective = complete(name), made(name)
    batch = without(whole, {view: list(samples) for view, samples in lacking.items()})
    found = objective(batch, batch)
    assert all(bool(torch.isfinite(value).all()) for value in found.values()), found
    assert float(found["loss"].detach()) == 0
    for parameter in trained(objective):
        gradient = torch.autograd.grad(found["loss"], parameter, retain_graph=True)[0]
        assert not bool(gradient.any())
    assert not any(bool(part.any()) for part in outcome(found["loss"], leaves(whole)))


@pytest.mark.parametrize("name", EVERY)
def test_one_sample_alone(name: str) -> None:
    batch = only(complete(name), [2])
    for given in (batch, without(batch, {"target": [2]})):
        found = made(name)(given, given)
        assert all(bool(torch.isfinite(value).all()) for value in found.values()), found


@pytest.mark.parametrize("name", EVERY)
def test_ranks_and_tiles(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of three ranks has whole samples, the second none, the third both."""
    batch = without(complete(name), {"query": [3], "target": [2, 4]})

    def make() -> nn.Module:
        return made(name)

    check_ranks(make, batch, (2, 4))
    check_tiles(make, batch, monkeypatch)


@pytest.mark.parametrize("name", EVERY)
def test_all_ranks_learn_from_the_same_fields(name: str) -> None:
    """What is gathered meets again in the backward pass: a rank whose samples have no pair must come there as well."""
    batch = without(complete(name), {"query": [3], "target": [2, 4]})
    reached = []
    for start, stop in ((0, 2), (2, 4), (4, 6)):  # the second rank has no pair
        everyone = replace(batch, views={view: apart(e) for view, e in batch.views.items()})
        objective = made(name)
        loss = objective(share_of(batch, start, stop), everyone)["loss"]
        found = torch.autograd.grad(loss, [*leaves(everyone), *trained(objective)], allow_unused=True)
        reached.append([gradient is not None for gradient in found])
    assert reached[0] == reached[1] == reached[2]


def apart(embedding: Embedding) -> Embedding:
    """The same values, as leaves of their own."""
    values = {part.name: getattr(embedding, part.name) for part in fields(embedding)}
    kept = {name: value for name, value in values.items() if value is not None}
    return Embedding(**{name: value.detach().requires_grad_(value.requires_grad) for name, value in kept.items()})


@pytest.mark.parametrize("name", EVERY)
def test_extreme_temperatures_and_equal_vectors(name: str) -> None:
    batch = without(complete(name), LACKING)
    for e in batch.views.values():
        e.vector = unit(1, WIDTH).expand(len(e.vector), -1).clone().requires_grad_()
    for start in (1e-4, 1e3):
        objective = made(name)
        with torch.no_grad():
            for part in objective.modules():
                if isinstance(part, Temperature):
                    part.parameter.fill_(math.log(1 / start) if part.learn == "log" else start)
        for value in outcome(objective(batch, batch)["loss"], [*leaves(batch), *trained(objective)]):
            assert bool(torch.isfinite(value).all())


# ---- loops over the rows that have a counterpart --------------------------------------------------------------------


def cells(batch: Encoded, rows: str, columns: str) -> list[tuple[int, int, list[tuple[int, Tensor]]]]:
    """Of every row that has a counterpart: its sample, how many rows that has, and (sample, cosine) of all columns that
    have one.
    """
    left, right = batch.owners[rows].tolist(), batch.owners[columns].tolist()
    x, y = batch.views[rows].vector, batch.views[columns].vector
    both = set(left) & set(right)
    return [
        (i, left.count(i), [(j, x[a] @ y[b]) for b, j in enumerate(right) if j in both])
        for a, i in enumerate(left)
        if i in both
    ]


def as_right(batch: Encoded, i: int, j: int) -> bool:
    return i == j or int(batch.labels[i]) == int(batch.labels[j]) >= 0


def softmax_loop(batch: Encoded, rows: str, columns: str) -> Tensor:
    """Own columns are targets of equal weight; what is as right does not count."""
    total = torch.zeros((), dtype=torch.float64)
    for i, each, row in cells(batch, rows, columns):
        own = [SCALE * c for j, c in row if j == i]
        every = [SCALE * c for j, c in row if j == i or not as_right(batch, i, j)]
        total = total + batch.weights[i] / each * (sum(z.exp() for z in every).log() - sum(own) / len(own))
    return total / len(batch.sample)


def hinge_loop(batch: Encoded, rows: str, columns: str) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for i, each, row in cells(batch, rows, columns):
        own = min((c for j, c in row if j == i), key=lambda c: float(c.detach()))
        costs = [(0.9 - own + c).clamp(min=0) for j, c in row if not as_right(batch, i, j)]
        total = total + batch.weights[i] / each * sum(costs, torch.zeros(()).double())
    return total / len(batch.sample)


def sigmoid_loop(batch: Encoded) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for i, each, row in cells(batch, "query", "target"):
        signs = [1 if as_right(batch, i, j) else -1 for j, _ in row]
        losses = [(1 + (-y * (SCALE * c - 1.0)).exp()).log() for y, (_, c) in zip(signs, row, strict=True)]
        total = total + batch.weights[i] / each * sum(losses)
    return total / len(batch.sample)


LOOPS: dict[str, Callable[[Encoded], Tensor]] = {
    "infonce": lambda batch: softmax_loop(batch, "query", "target"),
    "triplet": lambda batch: hinge_loop(batch, "query", "target") + hinge_loop(batch, "target", "query"),
    "siglip": sigmoid_loop,
}


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("each", [1, 3])
def test_equals_the_loop(name: str, each: int) -> None:
    """Also where a sample has three targets, of which it may lack one or all."""
    batch = encoded(6, each, labels=torch.tensor([7, -1, -1, 7, -1, 7]))
    batch.weights = torch.linspace(1, 2, 6).double()
    objective, results = made(name), []
    for loss in (lambda some: objective(some, some)["loss"], LOOPS[name]):
        given = without(batch, LACKING)
        if each > 1:
            kept = torch.arange(len(given.owners["target"])) != 1
            given.views["target"] = rows_of(given.views["target"], kept)
            given.owners["target"], given.keys["target"] = given.owners["target"][kept], given.keys["target"][kept]
        results.append(outcome(loss(given), leaves(batch)))
    close(*results)


# ---- several rows per sample ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["infonce, both ways", "triplet, hardest", "softened"])
def test_both_directions_weigh_the_same_where_samples_have_several_rows(name: str) -> None:
    """A picture with five equal captions teaches what it teaches with one of them."""
    one, gradients = only(complete(), [0, 1, 2]), []
    for each in (1, 5):
        query, target = (one.views[view].vector.detach().requires_grad_() for view in ("query", "target"))
        owners = one.owners | {"target": one.owners["target"].repeat_interleave(each)}
        keys = one.keys | {"target": one.keys["target"].repeat_interleave(each)}
        views = {"query": Embedding(query), "target": Embedding(target.repeat_interleave(each, 0))}
        batch = replace(one, views=views, owners=owners, keys=keys)
        gradients.append(outcome(made(name)(batch, batch)["loss"], [query, target])[1:])
    close(*gradients)


# ---- what `counterparts` does ---------------------------------------------------------------------------------------


def test_nothing_is_copied_where_nothing_is_missing() -> None:
    batch = complete()
    found = counterparts(batch, batch, "query", "target")
    assert found[0] is batch and found[1] is batch
    cut = without(batch, LACKING)
    local, everyone = counterparts(cut, cut, "query", "target")
    assert local is everyone and everyone is not cut and len(everyone.sample) == 6
    assert everyone.owners["query"].tolist() == WHOLE == everyone.owners["target_momentum"].tolist()
    with pytest.raises(RecipeError, match=r"'audio'.*query.*target"):
        counterparts(batch, batch, "query", "audio")


def test_a_row_without_a_counterpart_is_nobodys_negative_but_further_negatives_are() -> None:
    """A view of hard negatives has no counterparts by nature."""
    batch = without(encoded(3), {"target": [2]})
    batch.views["mined"] = Embedding(unit(2, WIDTH, seed=9).requires_grad_())
    batch.owners["mined"], batch.keys["mined"] = torch.tensor([0, 2]), torch.tensor([900, 901])
    found = info(negatives_view="mined").double()(batch, batch)["loss"]
    query, columns = batch.views["query"].vector, torch.cat([e.vector for n, e in batch.views.items() if n != "query"])
    logits = SCALE * query[:2] @ columns.T
    expected = nn.functional.cross_entropy(logits, torch.arange(2), reduction="sum") / 3
    torch.testing.assert_close(found, expected)
    with pytest.raises(RecipeError, match=r"'other'.*mined"):
        info(negatives_view="other")(batch, batch)
    assert bool(torch.isfinite(info()(batch, batch)["loss"]))
