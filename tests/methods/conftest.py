"""Views of an endless analytic anatomy: exact under any affine, nothing resampled."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from homolog.backbones.base import Backbone, BackboneConfig
from homolog.geometry.affine import Index
from homolog.small_maps import guard_small_maps
from homolog.views.view import View, Views, ViewSpec


def anatomy(places_mm: Tensor, case: int) -> Tensor:
    """Intensity at world places, (..., 3) -> (...): a random sum of waves per scan."""
    generator = torch.Generator().manual_seed(case)
    waves = torch.randn(24, 3, generator=generator, dtype=torch.float64) / 5
    phase = torch.rand(24, generator=generator, dtype=torch.float64) * 2 * math.pi
    return (places_mm @ waves.T + phase).sin().sum(-1) / 3


def draw_affine(spec: ViewSpec, generator: torch.Generator, at_mm: Tensor) -> Tensor:
    """A view of the spec's rotation about z, zoom and shift, centred near a place."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand(1, generator=generator))

    angle = math.radians(uniform(-spec.rotate_deg[0], spec.rotate_deg[0]))
    turn = torch.eye(3, dtype=torch.float64)
    turn[1, 1] = turn[2, 2] = math.cos(angle)
    turn[1, 2], turn[2, 1] = -math.sin(angle), math.sin(angle)
    linear = turn / uniform(*spec.scale)
    size = torch.tensor(spec.size, dtype=torch.float64)
    shift = torch.tensor([uniform(-t, t) for t in spec.translate]) * size
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = linear
    affine[:3, 3] = at_mm + shift - linear @ ((size - 1) / 2)
    return affine


def render(spec: ViewSpec, affines: Tensor, cases: list[int]) -> View:
    """View group (B, 1, 1, D, H, W) of given affines (B, 4, 4)."""
    axes = [torch.arange(n, dtype=torch.float64) for n in spec.size]
    voxels = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    images = [
        anatomy(voxels @ a[:3, :3].T + a[:3, 3], case)
        for a, case in zip(affines, cases, strict=True)
    ]
    image = torch.stack(images)[:, None, None].float()
    valid = torch.ones(len(cases), 1, *spec.size, dtype=torch.bool)
    return View(image, affines[:, None], valid, torch.tensor(cases))


@pytest.fixture
def make_views() -> Callable[..., Views]:
    """Factory: (specs, batch, seed) -> Views; groups of a sample share their place."""

    def make(specs: dict[str, ViewSpec], batch: int = 2, seed: int = 0) -> Views:
        generator = torch.Generator().manual_seed(seed)
        cases = list(range(batch))
        place = torch.rand(batch, 3, generator=generator, dtype=torch.float64) * 40
        groups = {}
        for name, spec in specs.items():
            affines = [draw_affine(spec, generator, at) for at in place]
            groups[name] = render(spec, torch.stack(affines), cases)
        return Views(groups)

    return make


class SmallBackbone(Backbone):
    """Four strided convolutions."""

    def __init__(self, config: BackboneConfig, in_plane: bool = False) -> None:
        super().__init__(config)
        self.channels = (8, 12, 16, 24)
        step = (1, 2, 2) if in_plane else (2, 2, 2)
        strides = [tuple(s**i for s in step) for i in range(1, 5)]
        self.strides = tuple(strides)  # type: ignore[assignment]
        self.size_divisor = self.strides[-1]
        widths = (config.in_channels, *self.channels)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(narrow, wide, step, step), nn.GroupNorm(4, wide), nn.GELU(),
                nn.Conv3d(wide, wide, 3, padding=1), nn.GroupNorm(4, wide), nn.GELU(),
            )
            for narrow, wide in itertools.pairwise(widths)
        )  # fmt: skip

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = []
        for layer in self.layers:
            image = layer(image)
            maps.append(image)
        return tuple(maps)


@pytest.fixture
def small_backbone() -> Callable[..., Backbone]:
    """Factory of a seeded small backbone; ``in_plane`` leaves z alone."""

    def make(in_plane: bool = False, seed: int = 0, channels: int = 1) -> Backbone:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            small = SmallBackbone(BackboneConfig(in_channels=channels), in_plane)
            return guard_small_maps(small)  # as every training does

    return make


@pytest.fixture
def small_size() -> Index:
    """A crop with 4 x 4 x 4 tokens of stride 8."""
    return (32, 32, 32)


@pytest.fixture
def render_view() -> Callable[..., View]:
    """``render``, for tests that place every view themselves."""
    return render
