"""The learned temperature: values and gradients at, above and below its bounds, against numbers worked out by hand and steps
that a loop takes as official codes do; and what becomes of a number that another temperature keeps otherwise.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from encoded_rows import encoded, unit
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from torch.utils.checkpoint import checkpoint
from toy import recipe

from zoo.errors import RecipeError, WeightsError
from zoo.loading import build_model
from zoo.objectives.combined import Weighted
from zoo.objectives.flair import Flair
from zoo.objectives.geodesic_mixup import GeodesicMixup
from zoo.objectives.infonce import InfoNCE
from zoo.objectives.mixed_pairs import CoinFlipMixup
from zoo.objectives.prolip import ProLIP
from zoo.objectives.siglip import SigLIP
from zoo.objectives.soft_targets import MomentumDistillation, SoftenedInfoNCE
from zoo.objectives.temperature import Temperature
from zoo.types import Embedding, Encoded

OFFICIAL = (0.001, 0.5)  # ALBEF, FuseMix, freeze-align: self.temp.clamp_(0.001, 0.5)


def gradient(temperature: Temperature) -> tuple[float, float]:
    """The scale, and its derivative by the parameter."""
    scale = temperature()
    (found,) = torch.autograd.grad(scale, temperature.parameter)
    return scale.item(), found.item()


@pytest.mark.parametrize(("start", "scale"), [(0.02, 50.0), (0.01, 100.0), (0.001, 100.0)])
def test_a_logarithm_has_its_gradient_below_at_and_above_the_cap(start: float, scale: float) -> None:
    """d exp(p) / dp = exp(p), also where it was moved back to the cap."""
    temperature = Temperature(start, "log")
    assert gradient(temperature) == pytest.approx((scale, scale), rel=1e-6)
    assert temperature.parameter.item() == pytest.approx(math.log(scale), rel=1e-6)


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("start", "held"), [(0.02, 0.02), (0.001, 0.001), (0.0001, 0.001), (0.4, 0.4), (0.5, 0.5), (3, 0.5)]
)
@pytest.mark.parametrize("learn", ["log", "linear"])
def test_limits_hold_either_kind(learn: str, start: float, held: float, precision: torch.dtype) -> None:
    temperature = Temperature(start, learn, None, OFFICIAL).to(precision)  # type: ignore[arg-type]
    slope = 1 / held if learn == "log" else -1 / held**2
    assert gradient(temperature) == pytest.approx((1 / held, slope), rel=1e-5)


def test_the_tighter_of_cap_and_limits_counts() -> None:
    assert gradient(Temperature(1e-4, "log", 100.0, OFFICIAL))[0] == pytest.approx(100)
    assert gradient(Temperature(1e-4, "log", 5000.0, OFFICIAL))[0] == pytest.approx(1000)
    assert gradient(Temperature(1e-4, "linear", 100.0, OFFICIAL))[0] == pytest.approx(1000)


def test_a_fixed_temperature_has_no_bounds() -> None:
    assert Temperature(1e-4, "no", 100.0, OFFICIAL)().item() == pytest.approx(1e4)


@pytest.mark.parametrize(("start", "scale"), [(0.02, 50.0), (0.01, 100.0), (0.005, 100.0), (math.exp(-6), 100.0)])
def test_the_official_cap_passes_the_gradient_of_the_uncapped_scale(start: float, scale: float) -> None:
    """FDT: `logit_scale = p.exp(); logit_scale.data = clamp(logit_scale.data, max=100)`, here as it runs there."""
    temperature = Temperature(start, "log", 100.0, cap="official")
    p = torch.tensor(math.log(1 / start), requires_grad=True)
    theirs = p.exp()
    theirs.data = torch.clamp(theirs.data, max=100)
    (slope,) = torch.autograd.grad(theirs, p)
    assert gradient(temperature) == pytest.approx((theirs.item(), slope.item()), rel=1e-6)
    assert (scale, 1 / start) == pytest.approx((theirs.item(), slope.item()), rel=1e-5)
    assert temperature.parameter.item() == pytest.approx(math.log(1 / start), rel=1e-6)  # not moved


def test_fdt_holds_its_logarithm_between_3_and_6_and_the_scale_below_100() -> None:
    for start, scale, slope in ((1.0, math.exp(3), math.exp(3)), (1e-4, 100.0, math.exp(6))):
        temperature = Temperature(start, "log", 100.0, (math.exp(-6), math.exp(-3)), "official")
        assert gradient(temperature) == pytest.approx((scale, slope), rel=1e-5)


@pytest.mark.parametrize("name", ["InfoNCE", "GeodesicMixup", "SigLIP", "SoftenedInfoNCE", "CoinFlipMixup"])
def test_a_recipe_can_lift_the_cap(name: str, tmp_path: Path) -> None:
    """By null, as the message about a bad `max_scale` says."""
    arguments = {"temperature": 0.001, "learn": "log", "max_scale": None}
    raw = recipe(tmp_path, objective={"class_path": name, "init_args": arguments})
    objective = build_model(raw["model"], "a recipe").objective
    temperature = next(part for part in objective.modules() if isinstance(part, Temperature))  # type: ignore[union-attr]
    assert temperature().item() == pytest.approx(1000)


@pytest.mark.parametrize("limits", [(0.0, 0.5), (0.5, 0.1), (0.1, 0.1), (-1.0, 1.0), (math.nan, 1.0)])
def test_limits_that_are_none_are_refused(limits: tuple[float, float]) -> None:
    with pytest.raises(RecipeError, match=r"limits are .*; give the least and the largest temperature, both above 0"):
        Temperature(0.07, "linear", None, limits)


# ---- training --------------------------------------------------------------------------------------------------------


def noisy_pairs() -> Encoded:
    """Pairs that a scale of 100 is far too sure of."""
    batch = encoded(32)
    batch.views = {"query": Embedding(unit(32, 8).float()), "target": Embedding(unit(32, 8, seed=1).float())}
    mixed = batch.views["query"].vector + batch.views["target"].vector
    batch.views["target"] = Embedding(F.normalize(mixed, dim=-1))
    return batch


def best_loss(batch: Encoded) -> tuple[float, float]:
    """The least loss over all scales up to 100, and that scale, by trying them one by one."""
    logits = batch.views["query"].vector.double() @ batch.views["target"].vector.double().T
    own = torch.arange(len(logits))
    losses = {s: F.cross_entropy(logits * s, own).item() for s in torch.linspace(0.1, 100, 1000).tolist()}
    scale = min(losses, key=losses.__getitem__)
    return losses[scale], scale


@pytest.mark.parametrize("start", [0.01, 1 / 99.99, 0.001])
def test_a_temperature_at_its_cap_learns(start: float) -> None:
    batch = noisy_pairs()
    lowest, scale = best_loss(batch)
    objective = InfoNCE(start, "log", duplicates="keep")
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.05)
    losses = []
    for _ in range(200):
        found = objective(batch, batch)
        losses.append(found["loss"].item())
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
    assert losses[0] > 2 * lowest and scale < 50
    assert losses[-1] == pytest.approx(lowest, rel=1e-3)
    assert objective.temperature().item() == pytest.approx(scale, rel=0.05)


def official_steps(p: Tensor, loss: Callable[[Tensor], Tensor], bounds: tuple[float, float], steps: int) -> list[float]:
    """A loop in which, as in FuseMix, the parameter is clamped in place before each use."""
    p = p.clone().requires_grad_()
    optimizer, seen = torch.optim.SGD([p], lr=0.002), []
    for _ in range(steps):
        with torch.no_grad():
            p.clamp_(*bounds)
        seen.append(p.item())
        optimizer.zero_grad()
        loss(p).backward()
        optimizer.step()
    return seen


def test_a_linear_temperature_goes_as_the_official_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """It hits both bounds on the way, and comes back from them."""
    batch = noisy_pairs()
    logits = batch.views["query"].vector @ batch.views["target"].vector.T
    signs = iter([1, 1, -1, -1, -1, -1, 1, 1, 1] * 2)

    def official(p: Tensor) -> Tensor:
        return next(signs) * F.cross_entropy(logits / p, torch.arange(32))

    wanted = official_steps(torch.tensor(0.07), official, (0.05, 0.08), 18)
    assert wanted.count(pytest.approx(0.05)) and wanted.count(pytest.approx(0.08))
    signs = iter([1, 1, -1, -1, -1, -1, 1, 1, 1] * 2)
    objective = InfoNCE(0.07, "linear", duplicates="keep", limits=(0.05, 0.08))
    optimizer, seen = torch.optim.SGD(objective.parameters(), lr=0.002), []
    for _ in range(18):
        found = objective(batch, batch)
        seen.append(found["temperature"].item())
        optimizer.zero_grad()
        (next(signs) * found["loss"]).backward()
        optimizer.step()
    assert seen == pytest.approx(wanted, rel=1e-4)


def flair() -> Flair:
    from zoo.nn.conditioned_pooling import ConditionedPooling

    return Flair(ConditionedPooling(6, 2), 0.001, 0.0, "log", 100.0)


CAPPED: dict[str, Callable[[], torch.nn.Module]] = {
    "InfoNCE": lambda: InfoNCE(0.001, "log", symmetric=True),
    "InfoNCE linear": lambda: InfoNCE(0.001, "linear", limits=(0.01, 0.5)),
    "SigLIP": lambda: SigLIP(0.001, 0.0, "log", 100.0),
    "ProLIP": lambda: ProLIP(0.001, 0.0, "log", 100.0),
    "Flair": flair,
    "CoinFlipMixup": lambda: CoinFlipMixup(0.001, "linear", limits=(0.01, 0.5)),
    "SoftenedInfoNCE": lambda: SoftenedInfoNCE(0.001, "log"),
    "MomentumDistillation": lambda: MomentumDistillation(6, 12, 0.001, "linear", limits=(0.01, 0.5)),
    "GeodesicMixup": lambda: GeodesicMixup(0.001, "log", m2_temperature=None, v=0.1),  # asks for the scale twice
    "Weighted": lambda: Weighted({"a": InfoNCE(0.001, "log"), "b": SigLIP(0.001, 0.0, "log", 100.0)}),
}


@pytest.mark.parametrize("name", CAPPED)
def test_every_objective_learns_beyond_its_cap(name: str) -> None:
    """Two steps from far beyond it: each finds a gradient; frozen or without gradient nothing is moved."""
    batch, objective = encoded(8, tokens=(3, 0), spread=-3.0), CAPPED[name]().double()
    parameters = [p for n, p in objective.named_parameters() if n.endswith("temperature.parameter")]
    before = [p.item() for p in parameters]
    with torch.no_grad():
        objective(batch, batch)
    assert [p.item() for p in parameters] == before
    for _ in range(2):
        objective.zero_grad()
        objective(batch, batch)["loss"].backward()
        for parameter in parameters:
            assert abs(parameter.grad.item()) > 1e-6  # type: ignore[union-attr]
            assert parameter.item() == pytest.approx(math.log(100) if parameter.item() > 1 else 0.01)
    objective.requires_grad_(False)
    for parameter, value in zip(parameters, before, strict=True):
        parameter.fill_(value)
    objective(batch, batch)
    assert [p.item() for p in parameters] == before


def test_a_scale_that_is_computed_again_is_the_same() -> None:
    """In a checkpoint of either kind; the clamp must not count as a change of what the graph needs."""
    for reentrant in (False, True):
        temperature, x = Temperature(0.001, "log"), torch.ones(3, requires_grad=True)
        checkpoint(lambda x, t=temperature: x * t() * t(), x, use_reentrant=reentrant).sum().backward()
        assert temperature.parameter.grad.item() == pytest.approx(3 * 2 * 100**2)  # type: ignore[union-attr]


def ddp_worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(trained(DistributedDataParallel(OnRank()), rank), folder / f"{rank}.pt")
    dist.destroy_process_group()


class OnRank(torch.nn.Module):
    """The scale times a number that differs between ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = Temperature(0.001, "log")

    def forward(self, x: Tensor) -> Tensor:
        return x * self.temperature()


def trained(module: torch.nn.Module, *ranks: int) -> list[float]:
    """The logarithm after each of three steps on the mean over ranks, the second of which leads above the cap."""
    optimizer, seen = torch.optim.SGD(module.parameters(), lr=1.0), []
    for sign in (1.0, -1.0, 1.0):
        optimizer.zero_grad()
        torch.stack([sign * module(torch.tensor(0.001 + 0.002 * rank)) for rank in ranks]).mean().backward()
        optimizer.step()
        seen.append(next(module.parameters()).item())
    return seen


def test_two_processes_go_as_one(tmp_path: Path) -> None:
    mp.spawn(ddp_worker, (tmp_path,), nprocs=2)
    one = trained(OnRank(), 0, 1)
    # from the cap: the gradient is 0.002 exp(p)
    assert one[0] == pytest.approx(math.log(100) - 0.2, rel=1e-6)
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(one, rel=1e-6)


# ---- state -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ours", ["no", "log", "linear"])
@pytest.mark.parametrize("theirs", ["no", "log", "linear"])
def test_a_number_kept_otherwise_is_read_as_the_temperature_that_it_is(theirs: str, ours: str) -> None:
    file = io.BytesIO()
    torch.save(InfoNCE(0.05, theirs).state_dict(), file)  # type: ignore[arg-type]
    file.seek(0)
    objective = InfoNCE(0.02, ours)  # type: ignore[arg-type]
    objective.load_state_dict(torch.load(file), strict=True)
    assert 1 / objective.temperature().item() == pytest.approx(0.05, rel=1e-6)
    again = InfoNCE(0.02, ours)  # type: ignore[arg-type]
    again.load_state_dict(objective.state_dict())
    assert 1 / again.temperature().item() == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize(("learn", "value"), [("no", 0.05), ("log", math.log(20)), ("linear", 0.05)])
def test_a_state_of_an_older_version_holds_what_its_recipe_says(learn: str, value: float) -> None:
    objective = InfoNCE(0.02, learn)  # type: ignore[arg-type]
    objective.load_state_dict({"temperature.parameter": torch.tensor(value)}, strict=True)
    assert objective.temperature().item() == pytest.approx(20)


def test_averaged_weights_keep_their_kind() -> None:
    """EMA of 2 and 2 may be 1.9999999, which is 1 as an integer, and would make a linear temperature a logarithm."""
    for decay in (0.9, 0.99, 0.999):
        objective = InfoNCE(0.05, "linear")
        average = AveragedModel(objective, use_buffers=True, avg_fn=get_ema_avg_fn(decay))
        for _ in range(5):
            average.update_parameters(objective)
        other = InfoNCE(0.02, "log")
        other.load_state_dict(average.module.state_dict())
        assert 1 / other.temperature().item() == pytest.approx(0.05, rel=1e-5)
        assert not dict(objective.named_buffers())


def test_a_kind_of_a_newer_version_is_refused() -> None:
    state = InfoNCE().state_dict() | {"temperature.kind": torch.tensor(7)}
    with pytest.raises(WeightsError, match=r"temperature\.kind' is 7, which this version does not know"):
        InfoNCE().load_state_dict(state)
