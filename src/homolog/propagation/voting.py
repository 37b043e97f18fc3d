"""Labels from one or several mapped scans: votes, the scan's own edges, and doubt."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from homolog.geometry.affine import Affine
from homolog.propagation.descriptors import Field, Seen, smoothed
from homolog.propagation.matching import Grid, Mapping, held


@dataclass(frozen=True)
class VoteConfig:
    """How labels are read through a map.

    Attributes:
        reach: Voxels around a place whose labels may be taken, along each axis.
        sharp: How much better a place must look to outvote the one mapped to.
        grey_share: How much the grey values of the scan itself say afterwards.
        smooth_mm: Width of the smoothing along the scan's own edges; 0: none.
    """

    reach: tuple[int, int, int] = (1, 2, 2)
    sharp: float = 1.0
    grey_share: float = 0.5
    smooth_mm: float = 4.0


@dataclass(frozen=True, eq=False)
class Atlas:
    """A labelled scan.

    Attributes:
        seen: The scan.
        labels: (1 + L, D, H, W): one channel of 0 and 1 per label, background first.
    """

    seen: Seen
    labels: Field


@dataclass(frozen=True, eq=False)
class Votes:
    """What one atlas says of a scan.

    Attributes:
        chances: (1 + L, d, h, w), sum 1.
        weight: (1, d, h, w) how alike the scans look there.
        miss_mm: (1, d, h, w) how far there and back misses.
    """

    chances: Tensor
    weight: Tensor
    miss_mm: Tensor


def votes_of(
    atlas: Atlas, scan: Seen, mapping: Mapping, grid: Grid, config: VoteConfig
) -> Votes:
    """Labels of an atlas on a grid of the scan, each place asking those around it.

    A place takes the labels of mapped places nearby, weighted by how alike the patches
    around them look.

    Source: Coupe et al., Patch-based segmentation using expert priors, NeuroImage 2011.
    Differs from the paper: the search goes around the mapped place, a few voxels wide.
    """
    places = grid.places_mm
    there = mapping(places)
    labels = atlas.labels.read(there)
    labels[0] += 1 - labels.sum(0)  # what the atlas does not show is background
    own = scan.image.read(places)
    other = _alike(atlas.seen.image.read(there), own, atlas.seen.body.read(there))
    sigma = _patch(grid)
    reach = [min(r, n - 1) for r, n in zip(config.reach, grid.shape, strict=True)]
    moves = list(itertools.product(*(range(-r, r + 1) for r in reach)))
    looks, votes = around(other, reach), around(labels, reach)
    apart = {move: smoothed((own - looks(move)) ** 2, sigma) for move in moves}
    best = functools.reduce(torch.minimum, apart.values())
    noise = float(best.mean().clamp(min=1e-8))
    scale = (best + 0.5 * noise) / config.sharp
    chances, total = torch.zeros_like(labels), torch.zeros_like(best)
    spacing = torch.tensor(grid.affine.spacing_mm)
    for move, gap in apart.items():
        mm = torch.tensor(move) * spacing / float(spacing.mean())
        weight = torch.exp(-gap / scale - 0.5 * float((mm**2).sum()))
        chances.addcmul_(weight, votes(move))
        total += weight
    missed = torch.zeros_like(own)
    if mapping.unsure_mm is not None:
        missed = held(mapping.unsure_mm, places)
    return Votes(chances / total, torch.exp(-best / (4 * noise)) + 1e-3, missed)


def around(values: Tensor, reach: Sequence[int]) -> Callable[[Sequence[int]], Tensor]:
    """Cells that lie so much further, of (C, d, h, w), as views; borders are held.

    Args:
        values: On a grid.
        reach: No way is longer, along each axis.
    """
    pad = [r for r in reversed(reach) for _ in range(2)]
    wide = functional.pad(values[None], pad, mode="replicate")[0]

    def moved(move: Sequence[int]) -> Tensor:
        part = wide
        for axis, (r, step) in enumerate(zip(reach, move, strict=True), start=1):
            part = part.narrow(axis, r + step, values.shape[axis])
        return part

    return moved


def _patch(grid: Grid) -> list[float]:
    """Sigma of a patch in voxels: one voxel of the finest axis, in mm."""
    spacing = np.array(grid.affine.spacing_mm)
    return [float(s) for s in np.clip(spacing.min() / spacing, 0.3, 1.0)]


def _alike(values: Tensor, wanted: Tensor, body: Tensor) -> Tensor:
    """Grey values brought to the mean and spread of others."""
    inside = body > 0.5
    if int(inside.sum()) < 10:
        return values
    a, b = values[inside], wanted[inside]
    scale = (b.std() / a.std().clamp(min=1e-4)).clamp(0.3, 3.0)
    return (values - a.mean()) * scale + b.mean()


# All that is known of a scan brought together.


@dataclass(frozen=True, eq=False)
class Fused:
    """Labels of a scan.

    Attributes:
        chances: (1 + L, d, h, w) on the grid, sum 1.
        doubt: (1, d, h, w) in 0..1.
        grid: Where.
    """

    chances: Tensor
    doubt: Tensor
    grid: Grid


def fused(votes: Sequence[Votes], scan: Seen, grid: Grid, config: VoteConfig) -> Fused:
    """Votes of all atlases, sharpened by the grey values of the scan itself."""
    weight = torch.stack([v.weight for v in votes])
    weight = weight / weight.sum(0)
    chances = torch.zeros_like(votes[0].chances)
    missed = torch.zeros_like(votes[0].miss_mm)
    for vote, share in zip(votes, weight, strict=True):
        chances += vote.chances * share
        missed += vote.miss_mm * share
    own = scan.image.read(grid.places_mm)
    if config.grey_share > 0:
        chances = by_grey(chances, own, config.grey_share)
    if config.smooth_mm > 0:
        chances = along_edges(chances, own, config.smooth_mm, grid.affine)
    return Fused(chances, _doubt(chances, missed, grid.affine), grid)


_BINS = 32


def by_grey(chances: Tensor, image: Tensor, share: float) -> Tensor:
    """Chances times how usual a voxel's grey value is for each label of this scan.

    Args:
        chances: (K, d, h, w).
        image: (1, d, h, w).
        share: Power to which the second factor is raised.

    The histograms are those of the votes themselves. Only where more than one label has
    a chance is anything changed.
    """
    low, high = torch.quantile(image.flatten()[:: max(1, image.numel() // 100_000)],
                               torch.tensor([0.002, 0.998]))  # fmt: skip
    unit = ((image - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    bins = (unit * (_BINS - 1)).round().long().flatten()
    # Background counts only near the labels: the rest of the body says nothing of it.
    near = functional.max_pool3d(chances[1:].sum(0)[None, None], 7, 1, 3)[0, 0] > 0.05
    result = chances.clone()
    likely = []
    for k in range(len(chances)):
        weight = (chances[k] * near if k == 0 else chances[k]).flatten()
        counts = torch.bincount(bins, weight, _BINS).float()
        counts = smoothed(counts.reshape(1, 1, 1, -1), (0, 0, 1.5)).flatten()
        counts = counts + 0.02 * counts.sum() / _BINS + 1e-6
        likely.append(counts / counts.sum())
    for k, table in enumerate(likely):
        result[k] *= table[bins].reshape(image.shape[1:]) ** share
    return result / result.sum(0, keepdim=True).clamp(min=1e-12)


def along_edges(
    chances: Tensor, image: Tensor, width_mm: float, affine: Affine
) -> Tensor:
    """Chances smoothed within regions of one grey value, not across their edges.

    Source: He, Sun, Tang, Guided image filtering, TPAMI 2013.
    """
    sides = [
        2 * max(0, round(width_mm / s / 2)) + 1 if n > 1 else 1
        for s, n in zip(affine.spacing_mm, image.shape[1:], strict=True)
    ]
    if max(sides) == 1:
        return chances

    def mean(values: Tensor) -> Tensor:
        pad = [p for n in reversed(sides) for p in (n // 2, n // 2)]
        wide = functional.pad(values[None], pad, mode="replicate")
        return functional.avg_pool3d(wide, sides, 1)[0]

    centre = mean(image)
    spread = mean(image * image) - centre**2
    softness = 0.1 * spread.mean()
    slope = (mean(chances * image) - mean(chances) * centre) / (spread + softness)
    offset = mean(chances) - slope * centre
    result = (mean(slope) * image + mean(offset)).clamp(0, 1)
    return result / result.sum(0, keepdim=True).clamp(min=1e-6)


def _doubt(chances: Tensor, missed: Tensor, affine: Affine) -> Tensor:
    """Entropy of the chances (1 where two are even), and the way back missing.

    The second counts only near labels, and no more than half.
    """
    entropy = -(chances * chances.clamp(min=1e-9).log()).sum(0, keepdim=True)
    entropy = (entropy / float(np.log(2))).clamp(0, 1)
    lost = 1 - torch.exp(-missed / 20.0)
    near = smoothed(
        chances[1:].sum(0, keepdim=True), [4.0 / s for s in affine.spacing_mm]
    )
    return 1 - (1 - entropy) * (1 - 0.5 * lost * (2 * near).clamp(0, 1))
