"""A scan that can be asked what it looks like at a place; no Qt, no napari."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from homolog.data.volume import FeatureMap
from homolog.geometry.affine import Affine, Index
from homolog.geometry.places import lengths_text
from homolog.gui.explore.feature_slices import (
    HeatBuffer,
    Map,
    SliceCache,
    usual_similarity,
    whole_map,
)
from homolog.gui.explore.pins import Answer
from homolog.gui.files.layer_geometry import shown_affine
from homolog.gui.files.layer_scan import ScanRef, layer_scan, shown_to_true
from homolog.tasks._matching import best_match, kept_inside
from homolog.tasks._regrid import on_grid

State: TypeAlias = Literal["looking", "none", "waiting", "computing", "ready", "failed"]


@dataclass
class Ready:
    """Features of a scan, opened and ready for queries.

    Attributes:
        features: (E, d, h, w), memory-mapped; cell -> true mm.
        shown: Cell -> shown mm, scale and translate only.
        cache: Its displayed slices.
        buffer: What its heat layer shows.
        usual: Similarity that says nothing; heat begins there.
    """

    features: FeatureMap
    shown: Affine
    cache: SliceCache
    buffer: HeatBuffer
    usual: float

    @classmethod
    def of(cls, features: FeatureMap, to_true: Affine) -> Ready:
        """From opened features and the scan's map from shown to true mm."""
        d, h, w = features.data.shape[1:]
        shown = to_true.inverse() @ features.affine
        usual = usual_similarity(features)
        return cls(features, shown, SliceCache(features), HeatBuffer((d, h, w)), usual)

    @property
    def shape(self) -> Index:
        """Cells (d, h, w)."""
        return self.cache.shape


@dataclass
class Scan:
    """An open scan.

    Attributes:
        key: Of its layer.
        ref: Name, file, size.
        to_true: Shown mm -> true mm.
        grid: Voxel of the layer -> shown mm.
        state: How far its features are.
        words: Why they failed, or what is being done.
        share: Done of the work, 0..1.
        remaining_s: Seconds left while computing.
        shown: Whether the user wants its heat.
        ready: Its features once they are there.
    """

    key: str
    ref: ScanRef
    to_true: Affine
    grid: Affine
    state: State = "looking"
    words: str = ""
    share: float = 0.0
    remaining_s: float = 0.0
    shown: bool = True
    ready: Ready | None = None

    def holds(self, shown_mm: NDArray[np.float64]) -> bool:
        """Whether a shown position lies within its voxels."""
        index = self.grid.inverse().apply(shown_mm)
        size = np.array(self.ref.shape)
        return bool(((index >= -0.5) & (index <= size - 0.5)).all())

    def line(self) -> str:
        """Its state in words."""
        if self.state == "computing":
            left = (
                f", {duration(self.remaining_s)} left" if self.remaining_s > 0 else ""
            )
            return f"computing {self.share:.0%}{left}"
        if self.state == "ready" and self.ready is not None:
            cell = lengths_text(self.ready.features.affine.spacing_mm)
            return f"ready, one feature per {cell}"
        return {
            "looking": "looking for features ...",
            "none": "no features yet",
            "waiting": "waiting for its turn",
        }.get(self.state, self.words)


@dataclass(frozen=True)
class Query:
    """What is asked of all scans.

    Attributes:
        vector: (E,) unit norm.
        scan_key: Scan it was taken from.
        mm: True mm there.
        pin: Number of the pin, None while hovering.
    """

    vector: NDArray[np.float32]
    scan_key: str
    mm: NDArray[np.float64]
    pin: int | None = None


def open_scans(layers: Iterable[Any]) -> tuple[dict[str, Any], list[Scan]]:
    """Scans among a viewer's layers: key -> layer, and what is known of each."""
    found, scans = {}, []
    for layer in layers:
        ref = layer_scan(layer) if layer.ndim == 3 else None
        if ref is not None:
            key = str(layer.unique_id)
            found[key] = layer
            scans.append(Scan(key, ref, shown_to_true(layer), shown_affine(layer)))
    return found, scans


def answer_of(
    scan: Scan, ready: Ready, vector: NDArray[np.float32], outdated: Callable[[], bool]
) -> Answer | None:
    """A scan's whole map and best match; on a thread. None when outdated."""
    whole: Map | None = whole_map(ready.features, vector, outdated)
    if whole is None:
        return None
    match = best_match(whole, ready.features.affine)
    match = kept_inside(match, scan.to_true @ scan.grid, scan.ref.shape)
    return Answer(scan.ref.name, match.mm, match.similarity, match.margin, whole)


def labels_of(
    scan: Scan, ready: Ready, whole: Map, low: float, high: float
) -> NDArray[np.uint8]:
    """Voxels of a scan's own grid (D, H, W) whose similarity lies in a range: 1.

    Args:
        scan: The scan.
        ready: Its features.
        whole: Similarity of all its cells.
        low: Least similarity.
        high: Greatest.
    """
    values = on_grid(whole, ready.shown, scan.ref.shape, scan.grid)
    return ((values >= low) & (values <= high)).astype(np.uint8)


def starting_threshold(usual: float) -> float:
    """Most of the way from what says nothing to equal."""
    usual = min(max(usual, -1.0), 0.98)
    return usual + 0.7 * (1.0 - usual)


def duration(seconds: float) -> str:
    """``40 s``, ``3 min``, ``1.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def is_same(one: Scan, other: Scan) -> bool:
    """Whether two looks at a layer saw the same voxels at the same place."""
    return (
        one.ref.path == other.ref.path
        and one.ref.shape == other.ref.shape
        and np.allclose(one.grid.matrix, other.grid.matrix)
        and np.allclose(one.to_true.matrix, other.to_true.matrix)
    )
