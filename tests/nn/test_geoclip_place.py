"""Places as GeoCLIP sees them."""

from __future__ import annotations

import math

import torch

from zoo.nn.backbones.geoclip_place import GeoClipPlace, equal_earth


def test_the_map_keeps_areas() -> None:
    """The Jacobian of an equal-area projection is proportional to the cosine of the latitude."""
    places = torch.tensor([[0.0, 0.0], [30.0, 100.0], [-60.0, -170.0], [80.0, 20.0]], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda p: equal_earth(p).sum(0), places).permute(1, 0, 2)
    ratio = torch.linalg.det(jacobian).abs() / torch.cos(torch.deg2rad(places[:, 0]))
    torch.testing.assert_close(ratio, ratio[0].expand(4), rtol=2e-6, atol=0)


def test_the_map_by_its_published_formula() -> None:
    latitude, longitude = math.radians(48.2), math.radians(16.4)
    theta = math.asin(math.sqrt(3) / 2 * math.sin(latitude))
    a = (1.340264, -0.081106, 0.000893, 0.003796)
    slope = a[0] + 3 * a[1] * theta**2 + theta**6 * (7 * a[2] + 9 * a[3] * theta**2)
    x = 2 / 3 * math.sqrt(3) * longitude * math.cos(theta) / slope
    y = theta * (a[0] + a[1] * theta**2 + theta**6 * (a[2] + a[3] * theta**2))
    found = equal_earth(torch.tensor([[48.2, 16.4]], dtype=torch.float64))[0]
    expected = torch.tensor([x, y], dtype=torch.float64) * 66.50336 / 180
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_one_token_and_as_many_networks_as_scales() -> None:
    torch.manual_seed(0)
    tower = GeoClipPlace(sigmas=[1.0, 4.0])
    places = torch.tensor([[48.2, 16.4], [-33.9, 151.2], [0.0, 0.0]])
    states = tower(places)
    assert states.pooled.shape == (3, 512) == (3, tower.width)
    torch.testing.assert_close(states.tokens[:, 0], states.pooled)
    assert {name.partition(".")[0] for name, _ in tower.named_parameters()} == {"LocEnc0", "LocEnc1"}
    assert not tower.LocEnc0.capsule[0].b.requires_grad
