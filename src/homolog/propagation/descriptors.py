"""What places of two scans are compared by: dense features, grey values, or both."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from homolog.geometry.affine import Affine, Index
from homolog.scans.volume import FeatureMap, Volume
from homolog.store.preprocess import inside, spread_sample

# A scan as it is compared.
#
# Everything lies on grids of its own in world millimetres; a pair of scans is compared
# on a common grid, onto which the fields of both are read.

# Values below and above these percentiles of the body are cut before comparing.
_LOW, _HIGH = 1.0, 99.0


@dataclass(frozen=True, eq=False)
class Field:
    """Channels on a grid.

    Attributes:
        values: (C, D, H, W) float32.
        affine: Voxel -> world mm, z, y, x, LPS.
    """

    values: Tensor
    affine: Affine

    def to(self, device: torch.device) -> Field:
        """The same on a device."""
        return Field(self.values.to(device), self.affine)

    @property
    def shape(self) -> Index:
        """(D, H, W)."""
        d, h, w = self.values.shape[1:]
        return int(d), int(h), int(w)

    def read(self, places_mm: Tensor) -> Tensor:
        """Values (C, ...) at places (..., 3) in world mm, trilinear; 0 outside."""
        return read_at(self.values, self.affine, places_mm)


def read_at(values: Tensor, affine: Affine, places_mm: Tensor) -> Tensor:
    """Values (C, ...) of a volume (C, D, H, W) at places (..., 3) mm; 0 outside."""
    inverse = torch.tensor(affine.inverse().matrix, dtype=places_mm.dtype)
    index = places_mm @ inverse[:3, :3].T + inverse[:3, 3]
    return read_index(values, index)


def read_index(values: Tensor, index: Tensor) -> Tensor:
    """The same at voxel positions (..., 3) of the volume itself."""
    size = torch.tensor(values.shape[1:], dtype=index.dtype)
    # Half a voxel beyond the border belongs to it: a slab of one slice has a height.
    beyond = ((index < -0.5) | (index > size - 0.5)).any(dim=-1)
    near = torch.minimum(index.clamp(min=0), size - 1)
    unit = 2 * near / (size - 1).clamp(min=1) - 1
    unit = torch.where(size > 1, unit, torch.zeros_like(unit)).flip(-1)
    flat = unit.reshape(1, 1, 1, -1, 3).to(values.dtype)
    found = functional.grid_sample(
        values[None], flat, align_corners=True, padding_mode="border"
    )
    result = found[0, :, 0, 0].reshape(values.shape[0], *index.shape[:-1])
    return result * (~beyond).to(result)


@dataclass(frozen=True, eq=False)
class Seen:
    """A scan prepared for comparison.

    Attributes:
        name: For messages.
        image: Field of one channel: grey values scaled to about 0..1.
        body: Field of one channel: 1 in the body, 0 in air.
        features: Dense features, or None.
    """

    name: str
    image: Field
    body: Field
    features: Field | None = None

    @property
    def device(self) -> torch.device:
        """Where its fields lie and it is compared."""
        return self.image.values.device

    def at_home(self) -> contextlib.AbstractContextManager[object]:
        """A block in which new tensors are made where its fields lie."""
        on_cpu = self.device.type == "cpu"  # the context costs time in every call
        return contextlib.nullcontext() if on_cpu else self.device

    def to(self, device: torch.device) -> Seen:
        """The same on a device."""
        dense = self.features.to(device) if self.features else None
        return Seen(self.name, self.image.to(device), self.body.to(device), dense)


def upright(data: NDArray[np.generic], affine: Affine) -> tuple[Tensor, Affine]:
    """An array (D, H, W) turned so that its axes run nearest to z, y, x of LPS."""
    axes, flips = affine.closest_axes()
    turned = np.transpose(data, axes)
    turned = np.flip(turned, tuple(i for i, flip in enumerate(flips) if flip))
    shape = (data.shape[0], data.shape[1], data.shape[2])
    values = torch.from_numpy(np.ascontiguousarray(turned, np.float32))
    return values, affine.reorient(axes, flips, shape)


def seen(volume: Volume, features: FeatureMap | None, least_mm: float = 1.0) -> Seen:
    """A scan prepared for comparison; finer voxels than ``least_mm`` are thinned."""
    sample = spread_sample(np.asarray(volume.data[:1]))
    data = np.asarray(volume.data[0], np.float32)
    data = np.nan_to_num(data)
    body = inside(data, sample, volume.modality == "CT")
    if body.mean() < 0.02:
        body = np.ones_like(body)
    low, high = np.percentile(
        data[body][:: max(1, body.sum() // 100_000)], (_LOW, _HIGH)
    )
    if volume.modality == "CT":
        low, high = max(low, -200.0), min(high, 400.0)
    grey = np.clip((data - low) / max(high - low, 1e-6), -0.5, 1.5)
    values, affine = upright(grey, volume.affine)
    mask, _ = upright(body, volume.affine)
    image, where = Field(values[None], affine), Field(mask[None], affine)
    image, where = thinned(image, least_mm), thinned(where, least_mm)
    dense = None
    if features is not None:
        dense = Field(
            torch.from_numpy(np.array(features.data, np.float32, order="C")),
            features.affine,
        )
    return Seen(volume.name, image, where, dense)


def thinned(field: Field, least_mm: float) -> Field:
    """Voxels averaged until none is finer than ``least_mm``; coarser ones stay."""
    steps = thinning(field, least_mm)
    if steps == (1, 1, 1):
        return field
    pooled = functional.avg_pool3d(field.values[None], steps)[0]
    return Field(pooled, field.affine.coarsen(steps))


# Grey values as descriptors.


def smoothed(values: Tensor, sigma: Sequence[float]) -> Tensor:
    """Gaussian smoothing of (C, D, H, W), ``sigma`` in voxels; borders are held."""
    result = values
    for axis, s in enumerate(sigma):
        length = values.shape[axis + 1]
        if s <= 0 or length == 1:
            continue
        radius = min(max(1, round(3 * s)), length - 1)
        half = [math.exp(-0.5 * (i / s) ** 2) for i in range(radius + 1)]
        share = [h / (2 * sum(half) - half[0]) for h in half]
        pad = [0] * 6
        pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = radius
        wide = functional.pad(result[None], pad, mode="replicate")[0]
        # sums of moved copies: on a CPU four times as fast as a 3D convolution
        result = share[0] * wide.narrow(axis + 1, radius, length)
        for i in range(1, radius + 1):
            for start in (radius - i, radius + i):
                result.add_(wide.narrow(axis + 1, start, length), alpha=share[i])
    return result


# The six neighbours between which self-similarities are taken: pairs at a right angle.
_SIX = ((0, 1, 1), (1, 1, 0), (1, 0, 1), (1, 1, 2), (2, 1, 1), (1, 2, 1))


def self_similarity(image: Tensor) -> Tensor:
    """Twelve self-similarities (12, D, H, W) around each voxel of (1, D, H, W).

    Source: Heinrich et al., Towards realtime multimodal fusion for image-guided
    interventions using self-similarities, MICCAI 2013 (MIND-SSC).
    Differs from the paper: the patch is a Gaussian of one voxel; the variance is held
    within 0.02 and 50 times its mean over the scan.
    """
    padded = functional.pad(image[None], (1,) * 6, mode="replicate")[0, 0]
    d, h, w = image.shape[1:]
    moved = [padded[z : z + d, y : y + h, x : x + w] for z, y, x in _SIX]
    pairs = [
        (i, j)
        for i in range(6)
        for j in range(i)
        if sum((a - b) ** 2 for a, b in zip(_SIX[i], _SIX[j], strict=True)) == 2
    ]
    gaps = torch.stack([(moved[i] - moved[j]) ** 2 for i, j in pairs])
    gaps = smoothed(gaps, (1.0, 1.0, 1.0))
    gaps = gaps - gaps.min(dim=0, keepdim=True).values
    spread = gaps.mean(dim=0, keepdim=True)
    typical = float(spread.mean().clamp(min=1e-8))
    return torch.exp(-gaps / spread.clamp(0.02 * typical, 50 * typical))


def thinning(field: Field, least_mm: float) -> tuple[int, int, int]:
    """How many voxels along each axis ``thinned`` makes one of."""
    z, y, x = (
        min(max(1, int(least_mm / s)), n)
        for s, n in zip(field.affine.spacing_mm, field.shape, strict=True)
    )
    return z, y, x


@dataclass
class GreyFields:
    """Grey descriptors of one scan: self-similarities, and the values at three widths.

    What is asked for again on the same grid is not computed again.
    """

    scan: Seen
    _steps: tuple[int, int, int] | None = None
    _local: Tensor = field(default_factory=lambda: torch.empty(0))

    def at(self, step_mm: float) -> Field:
        """Of (15, D, H, W) on a grid of about ``step_mm``."""
        steps = thinning(self.scan.image, step_mm)
        image = thinned(self.scan.image, step_mm)
        if steps != self._steps:
            self._steps, self._local = steps, self_similarity(image.values)
        spacing = np.array(image.affine.spacing_mm)
        wide = [
            smoothed(image.values, (width * step_mm / spacing).tolist())
            for width in (0.5, 1.5, 4.0)
        ]
        grey = torch.cat(wide)
        grey = grey / grey.flatten(1).std(dim=1).clamp(min=1e-6)[:, None, None, None]
        # Three values weigh as much as the twelve self-similarities, whose spread
        # is .3.
        return Field(torch.cat([self._local / 0.3, 1.2 * grey]), image.affine)
