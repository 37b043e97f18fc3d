"""Contrast drawn at random over regions: as if any other machine had made the scan.

A curve of grey values alone (``Intensity.curve``) keeps two organs of one grey value
alike, which another modality need not. Here the new value depends on the voxel's value
*and* on the region it lies in; regions follow from the scan itself and from random
shapes. Whatever is learnt from two views of different contrast is what both share:
where things lie and what form they have.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from homolog.views.random import normal_noise, uniform_noise

# Curves along values, and regions between which they change.
VALUES, REGIONS = 8, 4
# Cells of a random shape along each axis of a view, and of a bias field.
_SHAPE_CELLS, _BIAS_CELLS = 5, 3
# Voxels: widths of the neighbourhood that tells regions of the scan apart.
_WIDTHS = (1.5, 5.0)
# How sharply one region ends where the next begins: 1 is a slow change.
_SHARPNESS = (1.0, 8.0)
# Knots lie half way between even ones and such that each part has as many voxels.
_EVENLY = 0.5
# Values looked at for that, evenly spread.
_SAMPLE = 4096
_SPACE = (-3, -2, -1)
# Streams of random numbers of one view.
_LUT, _FIELD, _SHARES, _BIAS = 0x2545F491, 0x4F6CDD1D, 0x1B873593, 0x369DEA0F


def region_width(keys: Tensor) -> Tensor:
    """(N,) voxels: the width of the Gaussian that ``drawn_contrast`` wants smoothed."""
    low, high = _WIDTHS
    return low + (high - low) * uniform_noise(keys ^ _SHARES, 4)[:, 3]


def drawn_contrast(image: Tensor, smooth: Tensor, mask: Tensor, keys: Tensor) -> Tensor:
    """Values 0..1 by a random table of value and region.

    The region of a voxel is a number 0..1: a random mixture of the smoothed scan (what
    lies about it) and of a smooth random field (shapes that the scan does not know).
    The table is linear between its knots, so equal values at one place become equal
    ones, and no edge is made within a region.

    Args:
        image: (N, C, D, H, W).
        smooth: The same, smoothed by a Gaussian of ``region_width(keys)`` voxels.
        mask: (N, 1, D, H, W) bool, voxels that count.
        keys: (N,) int64, one stream each.

    Returns:
        (N, C, D, H, W) float32 in 0..1.

    Source: Billot et al., "SynthSeg", Medical Image Analysis 2023 (intensities drawn at
    random for every label); Dey et al., "Learning General-Purpose Biomedical Volume
    Representations using Randomized Synthesis" (anatomix), 2024 (random shapes).
    Differs from the papers: no label maps and no synthetic anatomy; regions come from
    real scans' own values and neighbourhoods, and from random fields; texture stays, by
    the slope of the table.
    """
    count, channels = image.shape[:2]
    flat = image.flatten(0, 1)
    seen = mask.expand(image.shape).flatten(0, 1)
    own = (keys[:, None] + torch.arange(channels, device=keys.device)).flatten()
    knots = _knots(flat, seen)
    left, share = _between(flat, knots)
    shares = uniform_noise(keys ^ _SHARES, 4).repeat_interleave(channels, 0)
    field = smooth_field(keys ^ _FIELD, image, _SHAPE_CELLS)
    region = _region(smooth.flatten(0, 1), field, seen, shares, channels)
    table = _table(own, 1 - shares[:, 2] ** 2)
    below = region.floor().clamp(max=REGIONS - 2)
    low, high = _SHARPNESS
    sharp = low + (high - low) * shares[:, 1].reshape(-1, 1, 1, 1)
    across = ((region - below - 0.5) * sharp + 0.5).clamp(0, 1)
    index = left * REGIONS + below.long()

    def at(offset: int) -> Tensor:
        return table.gather(1, (index + offset).flatten(1)).reshape(flat.shape)

    first = torch.lerp(at(0), at(REGIONS), share)
    second = torch.lerp(at(1), at(REGIONS + 1), share)
    return torch.lerp(first, second, across).reshape(count, channels, *image.shape[2:])


def smooth_field(keys: Tensor, like: Tensor, cells: int) -> Tensor:
    """(N, 1, D, H, W) smooth random numbers, standard normal at ``cells`` knots a side.

    Args:
        keys: (N,) int64, one stream each.
        like: (N, C, D, H, W); its size.
        cells: Knots along each axis.
    """
    coarse = normal_noise(keys, cells**3).reshape(-1, 1, cells, cells, cells)
    return functional.interpolate(
        coarse, size=like.shape[2:], mode="trilinear", align_corners=True
    )


def bias_field(keys: Tensor, like: Tensor) -> Tensor:
    """(N, 1, D, H, W) slowly changing numbers within -1..1, one of them reached.

    Args:
        keys: (N,) int64, one stream each.
        like: (N, C, D, H, W); its size.
    """
    field = smooth_field(keys ^ _BIAS, like, _BIAS_CELLS)
    return field / field.abs().amax(_SPACE, keepdim=True).clamp_min(1e-6)


def _knots(values: Tensor, seen: Tensor) -> Tensor:
    """(M, VALUES) rising values, of M images (M, D, H, W)."""
    step = max(1, values[0].numel() // _SAMPLE) | 1
    some = values.flatten(1)[:, ::step]
    real = seen.flatten(1)[:, ::step]
    ordered = torch.where(real, some, torch.inf).sort(1).values
    last = (real.sum(1, keepdim=True) - 1).clamp_min(0)
    at = torch.linspace(0, 1, VALUES, device=values.device)
    quantiles = ordered.gather(1, (at * last).round().long())
    quantiles = torch.where(quantiles.isfinite(), quantiles, 0.0)
    low, high = quantiles[:, :1], quantiles[:, -1:]
    even = low + (high - low) * at
    # a little apart everywhere, so that a share of a part is always a number
    return torch.lerp(quantiles, even, _EVENLY) + 1e-5 * torch.arange(
        VALUES, device=values.device
    )


def _between(values: Tensor, knots: Tensor) -> tuple[Tensor, Tensor]:
    """The knot (M, D, H, W) left of each value, and how far it is to the next."""
    flat = values.flatten(1)
    left = torch.searchsorted(knots, flat, right=True).sub_(1).clamp_(0, VALUES - 2)
    start, stop = knots.gather(1, left), knots.gather(1, left + 1)
    share = ((flat - start) / (stop - start)).clamp_(0, 1)
    return left.reshape(values.shape), share.reshape(values.shape)


def _region(
    smooth: Tensor, field: Tensor, seen: Tensor, shares: Tensor, channels: int
) -> Tensor:
    """(M, D, H, W) the region of each voxel, 0..REGIONS - 1, about evenly filled."""
    shape = field[:, 0].repeat_interleave(channels, 0)
    angle = (0.5 * torch.pi * shares[:, 0]).reshape(-1, 1, 1, 1)
    mixed = _standard(smooth, seen) * angle.cos() + _standard(shape, seen) * angle.sin()
    normal = _standard(mixed, seen)
    return (0.5 + 0.5 * torch.erf(normal / 2**0.5)) * (REGIONS - 1)


def _standard(values: Tensor, seen: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over the voxels that count."""
    real = seen.to(values.dtype)
    count = real.sum(_SPACE, keepdim=True).clamp_min(1)
    centred = values - (values * real).sum(_SPACE, keepdim=True) / count
    spread = ((centred**2 * real).sum(_SPACE, keepdim=True) / count).sqrt()
    return centred / spread.clamp_min(1e-6)


def _table(keys: Tensor, apart: Tensor) -> Tensor:
    """(M, VALUES * REGIONS) new values 0..1, all used; ``apart`` (M,): by region."""
    drawn = uniform_noise(keys ^ _LUT, VALUES * (REGIONS + 1))
    drawn = drawn.reshape(-1, VALUES, REGIONS + 1)
    table = torch.lerp(drawn[..., :1], drawn[..., 1:], apart[:, None, None]).flatten(1)
    low, high = table.amin(1, keepdim=True), table.amax(1, keepdim=True)
    return (table - low) / (high - low).clamp_min(1e-6)
