"""GeoCLIP's encoder of places: latitude and longitude -> a vector in which near places and like landscapes are close.

Shapes: R rows, F random features of a capsule, W = 512.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.nn.towers import PlaceTower, States

# of the Equal Earth projection (Savric, Patterson and Jenny, 2018), and GeoCLIP's scale of it
_A1, _A2, _A3, _A4 = 1.340264, -0.081106, 0.000893, 0.003796
_SCALE = 66.50336
_FEATURES, _HIDDEN, _WIDTH = 256, 1024, 512


def equal_earth(places: Tensor) -> Tensor:
    """Degrees (R, 2), latitude first -> a map (R, 2) that keeps areas, both axes roughly within -1 and 1."""
    latitude, longitude = torch.deg2rad(places).unbind(dim=1)
    theta = torch.asin(math.sqrt(3) / 2 * torch.sin(latitude))
    slope = 9 * _A4 * theta**8 + 7 * _A3 * theta**6 + 3 * _A2 * theta**2 + _A1
    x = 2 * math.sqrt(3) * longitude * torch.cos(theta) / (3 * slope)
    y = _A4 * theta**9 + _A3 * theta**7 + _A2 * theta**3 + _A1 * theta
    return torch.stack((x, y), dim=1) * _SCALE / 180  # rounded as in the official code: fine scales see every bit


class GeoClipPlace(nn.Module, PlaceTower):
    """The location encoder of GeoCLIP (arXiv:2309.16020): the sum of several networks on random Fourier features, each of
    which sees the map at another scale. Parts have the names of the official code, so its weights load as they are.

    Args:
        sigmas: standard deviation of the frequencies, one per network; larger sees finer.
        pretrained: where weights are read from: a place as `zoo.weights` has them. The official ones (MIT) come with the
            PyPI package `geoclip`, of which nothing is run (`pip install --no-deps geoclip==1.3.0`):
            `package:geoclip/model/weights/location_encoder_weights.pth`. None = random weights.
    """

    def __init__(self, sigmas: Sequence[float] = (1.0, 16.0, 256.0), pretrained: str | None = None) -> None:
        super().__init__()
        self.count, self.width, self.pretrained = len(sigmas), _WIDTH, pretrained
        for number, sigma in enumerate(sigmas):
            self.add_module(f"LocEnc{number}", _Capsule(sigma))

    def forward(self, places: Tensor) -> States:
        """Places (R, 2), latitude and longitude in degrees -> States of one token."""
        points = equal_earth(places)
        pooled = torch.stack([self.get_submodule(f"LocEnc{i}")(points) for i in range(self.count)]).sum(0)
        return States(pooled, pooled[:, None])

    def load_pretrained(self) -> None:
        """Read the weights named by `pretrained`. Raises WeightsError when they can't be had or don't fit."""
        if self.pretrained is None:
            return
        from zoo.weights import fetch_folder, load_strictly, read_state

        load_strictly(self, read_state(fetch_folder(self.pretrained)), self.pretrained)


class _Capsule(nn.Module):
    def __init__(self, sigma: float) -> None:
        super().__init__()
        widths = (2 * _FEATURES, _HIDDEN, _HIDDEN, _HIDDEN)
        layers: list[nn.Module] = [_Fourier(sigma)]
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.capsule = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(_HIDDEN, _WIDTH))

    def forward(self, points: Tensor) -> Tensor:
        features = self.capsule[0](points).to(self.head[0].weight.dtype)
        out: Tensor = self.head(self.capsule[1:](features))
        return out


class _Fourier(nn.Module):
    """Points (R, 2) -> cosines and sines (R, 2F) of random projections."""

    full_precision = True  # angles of many turns: rounded frequencies would give another place

    def __init__(self, sigma: float) -> None:
        super().__init__()
        wide = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.b = nn.Parameter(torch.randn(_FEATURES, 2, dtype=wide) * sigma, requires_grad=False)

    def forward(self, points: Tensor) -> Tensor:
        angles = 2 * math.pi * points @ self.b.T
        return torch.cat((angles.cos(), angles.sin()), dim=-1)
