"""One view of one scan, without chance: what a network sees when it predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from homolog.feed.batches import levels_of, pad_blocks, stack_plans
from homolog.feed.reading import read_blocks
from homolog.geometry.affine import Affine, Index
from homolog.store.card import Card
from homolog.store.preprocess import Intensities
from homolog.store.store import Store
from homolog.views.generate import generate, share_blocks
from homolog.views.plan import Scan, plan_views
from homolog.views.view import View, ViewSpec


@dataclass(frozen=True, eq=False)
class StoredScan:
    """A scan as the store keeps it, whether it lies in one or not.

    Attributes:
        data: (C, D, H, W) int16.
        affine: Voxel -> world mm.
        scale: Value units per stored step.
        offset: Value of a stored 0.
        intensity: How values are normalised.
    """

    data: NDArray[np.int16]
    affine: Affine
    scale: float
    offset: float
    intensity: Intensities

    id = "scan"

    @property
    def shape(self) -> Index:
        """Voxels (D, H, W)."""
        d, h, w = self.data.shape[1:]
        return d, h, w

    @property
    def channels(self) -> int:
        """Of an image voxel."""
        return len(self.data)

    @property
    def low(self) -> float:
        """Least value kept."""
        return self.intensity.low

    @property
    def high(self) -> float:
        """Largest value kept."""
        return self.intensity.high

    @property
    def centre(self) -> float:
        """Value that becomes 0."""
        return self.intensity.centre

    @property
    def spread(self) -> float:
        """Value units per normalised unit."""
        return self.intensity.spread

    def image(self, case_id: str) -> NDArray[np.int16]:
        """Its voxels, as a store hands them out."""
        return self.data

    def label(self, case_id: str) -> None:
        """It has no labels."""


def view_of(spec: ViewSpec, scan: StoredScan, device: torch.device) -> View:
    """A view of a scan around its middle, batch of one.

    Args:
        spec: One group; nothing of it may be random.
        scan: The scan.
        device: Where the view is to lie.
    """
    specs: Mapping[str, ViewSpec] = {"view": spec}
    middle = (np.array(scan.shape) - 1) / 2
    plan = plan_views(
        specs, Scan(scan.affine, scan.shape), lambda _: middle, seed=0, sample=0
    )
    source: Any = scan
    shares = share_blocks(specs)
    store, card = cast("Store", source), cast("Card", source)
    block = pad_blocks(read_blocks(store, card, plan, specs, shares)).to(device)
    levels = levels_of([card]).to(device)
    return generate(
        spec,
        stack_plans([plan["view"]]).to(device),
        replace(block, image=levels.normalise(block.image)),
        levels.low,
        torch.zeros(1, dtype=torch.int64, device=device),
    )
