"""Labels of labelled scans carried to one other: maps, votes, and the result."""

from __future__ import annotations

from collections.abc import Mapping as Table
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from homolog.errors import UnusableInput
from homolog.events import Job, Progress, Request
from homolog.features.embed import DenseEncoder
from homolog.geometry.affine import Index
from homolog.propagation.config import PropagateConfig
from homolog.propagation.descriptors import (
    Field,
    Seen,
    read_at,
    seen,
    thinned,
    upright,
)  # fmt: skip
from homolog.propagation.matching import (
    Grid,
    Mapping,
    MatchConfig,
    map_of,
    region_of,
)  # fmt: skip
from homolog.propagation.voting import Atlas, Fused, VoteConfig, Votes, fused, votes_of
from homolog.scans.volume import FeatureMap, LabelMap, Volume

_CPU = torch.device("cpu")
# Weight of features and of grey values.
_WEIGHTS = {"both": (1.0, 1.0), "features": (1.0, 0.0), "grey": (0.0, 1.0)}
# A scan is voted on in voxels of about this number; finer ones are thinned.
_VOXELS = 3_000_000
# Numbers of all labels of a slab of the result.
_AT_ONCE = 20_000_000


@dataclass(frozen=True, eq=False)
class Labelled:
    """A labelled scan, ready to vote.

    Attributes:
        atlas: Scan and labels on its voting grid.
        values: Label value of each channel but the background's.
        names: Label value -> name.
    """

    atlas: Atlas
    values: tuple[int, ...]
    names: Table[int, str]


@dataclass(frozen=True, eq=False)
class Carried:
    """What was carried to a scan.

    Attributes:
        labels: On the scan's own grid.
        doubt: (D, H, W) in 0..1, likewise.
        confidence: 1 less the mean doubt where labels lie; 0 where there are none.
        miss_mm: Median distance by which there and back misses, near the labels.
    """

    labels: LabelMap
    doubt: NDArray[np.float32]
    confidence: float
    miss_mm: float


def looked_at(
    volume: Volume, features: FeatureMap | None, device: torch.device = _CPU
) -> Seen:
    """A scan as it is compared, thinned where it has very many voxels.

    Args:
        volume: The scan.
        features: Dense ones, or None.
        device: Where it will be compared.
    """
    size = float(np.prod(volume.shape)) * float(np.prod(volume.affine.spacing_mm))
    return seen(volume, features, (size / _VOXELS) ** (1 / 3)).to(device)


def labelled(
    scan: Seen, labels: LabelMap, values: Sequence[int], names: Table[int, str]
) -> Labelled:
    """A labelled scan: one channel per value; background first.

    Voxels that are unlabelled (negative) count as background.
    """
    numbers, affine = upright(labels.data, labels.affine)
    least = float(min(scan.image.affine.spacing_mm)) * 1.001
    parts = [
        thinned(Field((numbers == v).float()[None], affine), least) for v in values
    ]
    some = torch.cat([p.values for p in parts])
    whole = torch.cat([1 - some.sum(0, keepdim=True), some]).to(scan.device)
    return Labelled(Atlas(scan, Field(whole, parts[0].affine)), tuple(values), names)


def carry(
    sources: Sequence[Labelled], scan: Seen, volume: Volume, config: PropagateConfig
) -> Job[Carried | None]:
    """Labels of all sources on a scan's own grid; None when stopped.

    Args:
        sources: Their values and names must be the same.
        scan: Of ``volume``.
        volume: Gives the grid.
        config: How; its method decided.
    """
    mappings: list[Mapping] = []
    grids: list[Grid] = []
    for number, source in enumerate(sources):
        news = Progress("matching", number, len(sources), volume.name)
        if (yield news) is Request.STOP:
            return None
        where = Field(1 - source.atlas.labels.values[:1], source.atlas.labels.affine)
        with scan.at_home():
            mapping = mapping_of(source.atlas.seen, scan, where, config)
            grids.append(region_of(scan, mapping.affine, where, config.margin_mm))
        mappings.append(mapping)
    grid = _around(grids, scan)
    if (yield Progress("voting", 0, 1, volume.name)) is Request.STOP:
        return None
    how = _votes(config, grid)
    with scan.at_home():
        votes = [
            votes_of(source.atlas, scan, mapping, grid, how)
            for source, mapping in zip(sources, mappings, strict=True)
        ]
        result = fused(votes, scan, grid, how)
        return _on_own_grid(result, sources[0], volume, _missed(result, votes))


def mapping_of(
    a: Seen, b: Seen, where: Field | None, config: PropagateConfig
) -> Mapping:
    """The map of places of B to places of A by the method wanted."""
    if config.method == "registration":
        from homolog.propagation.registration import registered

        found = registered(a.to(_CPU), b.to(_CPU))
        assert found.field is not None
        return replace(found, field=found.field.to(b.device))
    features, grey = _WEIGHTS[config.method]
    settings = MatchConfig(
        feature_weight=features,
        grey_weight=grey,
        shift_cells=max(2000, config.cells // 10),
        affine_cells=max(4000, config.cells // 7),
        deform_cells=config.cells,
        margin_mm=config.margin_mm,
    )
    return map_of(a, b, where, settings)


def _votes(config: PropagateConfig, grid: Grid) -> VoteConfig:
    reach = tuple(
        int(np.clip(round(config.reach_mm / s), 0 if config.reach_mm == 0 else 1, 2))
        for s in grid.affine.spacing_mm
    )
    z, y, x = reach
    return VoteConfig(
        reach=(z, y, x), grey_share=config.grey_share, smooth_mm=config.smooth_mm
    )


def _around(grids: Sequence[Grid], scan: Seen) -> Grid:
    """The box of B's own grid that holds all of several boxes of it."""
    inverse = scan.image.affine.inverse()
    lows = [np.round(inverse.apply(g.affine.matrix[:3, 3])) for g in grids]
    highs = [low + g.shape for low, g in zip(lows, grids, strict=True)]
    low, high = np.min(lows, axis=0), np.max(highs, axis=0)
    d, h, w = (int(n) for n in high - low)
    return Grid(scan.image.affine.crop(low), (d, h, w))


def _missed(result: Fused, votes: Sequence[Votes]) -> float:
    near = result.chances[0] < 0.5
    if not bool(near.any()):
        return 0.0
    return float(torch.stack([v.miss_mm[0][near].median() for v in votes]).mean())


def _on_own_grid(
    result: Fused, source: Labelled, volume: Volume, miss_mm: float
) -> Carried:
    """Slab by slab: memory is bounded by the result."""
    shape = volume.shape
    kind = np.uint8 if max(source.values) < 256 else np.int32
    labels, doubt = np.zeros(shape, kind), np.zeros(shape, np.float32)
    table = np.array([0, *source.values], kind)
    channels = torch.cat([result.chances, result.doubt])
    planes = max(1, _AT_ONCE // (len(channels) * shape[1] * shape[2]))
    for first in range(0, shape[0], planes):
        count = min(planes, shape[0] - first)
        slab: Index = (count, shape[1], shape[2])
        places = Grid(volume.affine.crop((first, 0, 0)), slab).places_mm
        found = read_at(channels, result.grid.affine, places)
        chances = found[:-1]
        chances[0] += 1 - chances.sum(0)
        rows = slice(first, first + count)
        labels[rows] = table[chances.argmax(0).cpu().numpy()]
        doubt[rows] = found[-1].clamp(0, 1).cpu().numpy()
    where = labels > 0
    confidence = float(1 - doubt[where].mean()) if where.any() else 0.0
    names = {v: n for v, n in source.names.items() if v in source.values}
    written = LabelMap(labels, volume.affine, names, volume.name, volume.meta)
    return Carried(written, doubt, confidence, miss_mm)


def decided(
    config: PropagateConfig, encoder: DenseEncoder | None
) -> tuple[PropagateConfig, DenseEncoder | None]:
    """The same with ``auto`` decided, and the encoder where its features are used.

    Raises:
        UnusableInput: Features are to be compared and there is no encoder.
    """
    config = replace(config, method=config.chosen(has_encoder=encoder is not None))
    if config.method in ("grey", "registration"):
        return config, None
    if encoder is None:
        raise UnusableInput(
            f"comparing by {config.method} needs an encoder (--encoder RUN)."
        )
    return config, encoder
