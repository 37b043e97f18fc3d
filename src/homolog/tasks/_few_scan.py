"""A scan with its features and its paint, as the few-voxel head reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.data.preprocess import Intensities, Preprocessing, prepare_volume
from homolog.data.volume import FeatureMap, LabelMap, Volume
from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine, Index, Triple
from homolog.tasks._body import Body, find_body
from homolog.tasks._few_settings import FewConfig
from homolog.tasks._few_simple import SimpleFeatures, SimpleSpec, knots_of
from homolog.tasks._matching import grid_shape

Voxels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FewScan:
    """One open scan.

    Attributes:
        volume: As stored in its file.
        features: Of an encoder, or None: intensity and place alone.
        intensity: How values are normalised.
        centre_mm: Middle of the body box, world mm (z, y, x).
        body: Where the body is.
    """

    volume: Volume
    features: FeatureMap | None
    intensity: Intensities
    centre_mm: Triple
    body: Body

    @property
    def encoder_id(self) -> str:
        """Of the features; empty where there are none."""
        return "" if self.features is None else self.features.encoder_id

    @property
    def encoder_size(self) -> int:
        """Length of an encoder feature; 0 where there are none."""
        return 0 if self.features is None else int(self.features.data.shape[0])

    def simple(self, spec: SimpleSpec) -> SimpleFeatures:
        """Its simple features."""
        return SimpleFeatures(self.volume, self.intensity, self.centre_mm, spec)

    def vectors(self, voxels: Voxels, spec: SimpleSpec) -> NDArray[np.float32]:
        """Encoder features, then simple ones, of voxels (N, 3): (N, E + F)."""
        parts = [self.simple(spec).at(voxels)]
        if self.features is not None:
            mm = self.volume.affine.apply(voxels)
            parts.insert(0, features_at(self.features, mm))
        return np.concatenate(parts, axis=1)


@dataclass(frozen=True, eq=False)
class Paint:
    """The painted voxels of one scan.

    Attributes:
        scan: Which of the scans it belongs to.
        voxels: (N, 3) indices (z, y, x) on the scan's own grid, in the array's order.
        values: (N,) positive labels.
        mm: (N, 3) world positions.
        covered: (N,) whether the encoder's features reach there.
        in_body: (N,) whether the body is there.
    """

    scan: int
    voxels: Voxels
    values: NDArray[np.int64]
    mm: NDArray[np.float64]
    covered: NDArray[np.bool_]
    in_body: NDArray[np.bool_]


def few_scan(
    volume: Volume,
    features: FeatureMap | None = None,
    preprocessing: Preprocessing | None = None,
) -> FewScan:
    """A scan made ready; its values are read once.

    Args:
        volume: As stored in its file.
        features: Of an encoder; (E, d, h, w).
        preprocessing: The encoder's; decides how values are normalised.

    Raises:
        UnusableInput: NaN or infinite values.
    """
    # the scan's own voxels: only the numbers of normalisation are wanted
    recipe = replace(preprocessing or Preprocessing(), spacing_mm=None)
    prepared = prepare_volume(volume, recipe)
    start, stop = (np.array(corner, np.float64) for corner in prepared.foreground)
    z, y, x = prepared.affine.apply((start + stop - 1) / 2)
    centre = float(z), float(y), float(x)
    return FewScan(volume, features, prepared.intensity, centre, find_body(volume))


def painted(scan: FewScan, labels: LabelMap, number: int = 0) -> Paint:
    """The painted voxels of a scan.

    Args:
        scan: The scan.
        labels: On the scan's own grid; 0 is unpainted, classes are positive.
        number: Which of the scans it is.

    Raises:
        UnusableInput: Another grid than the scan's, or negative labels.
    """
    check_grid(scan.volume, labels)
    if labels.data.size and labels.data.min() < 0:
        raise UnusableInput(
            f"painted labels must be 0 (unpainted) or positive, got "
            f"{int(labels.data.min())} in {_named(labels)}."
        )
    voxels = np.argwhere(labels.data)
    values = labels.data[tuple(voxels.T)].astype(np.int64)
    mm = scan.volume.affine.apply(voxels)
    if scan.features is None:
        reached = np.ones(len(voxels), bool)
    else:
        reached = covered(scan.features, mm)
    return Paint(number, voxels, values, mm, reached, scan.body.at(voxels))


def check_grid(volume: Volume, labels: LabelMap) -> None:
    """Refuse labels of another grid than the scan's.

    Raises:
        UnusableInput: Another shape, or another place in the world.
    """
    if labels.shape != volume.shape:
        raise UnusableInput(
            f"the painted labels {_named(labels)} must have the shape "
            f"{_by(volume.shape)} of their scan {_named(volume)}, got "
            f"{_by(labels.shape)}."
        )
    if not labels.affine.close_to(volume.affine, volume.shape, 0.1):
        raise UnusableInput(
            f"the painted labels {_named(labels)} must lie where their scan "
            f"{_named(volume)} does: expected {volume.affine}, got {labels.affine}."
        )


def simple_spec(
    scans: Sequence[FewScan], paints: Sequence[Paint], config: FewConfig
) -> SimpleSpec:
    """Which simple features a model of these scans has; the paint places its knots.

    Raises:
        UnusableInput: Scans of different encoders or numbers of channels.
    """
    first = scans[0]
    for scan in scans[1:]:
        if (scan.encoder_id, scan.encoder_size) != (
            first.encoder_id,
            first.encoder_size,
        ):
            raise UnusableInput(
                f"scans of one model must have features of one encoder: "
                f"{_named(first.volume)} has {first.encoder_id or 'none'}, "
                f"{_named(scan.volume)} has {scan.encoder_id or 'none'}."
            )
        if scan.volume.data.shape[0] != first.volume.data.shape[0]:
            raise UnusableInput(
                f"scans of one model must have the same number of channels: "
                f"{_named(first.volume)} has {first.volume.data.shape[0]}, "
                f"{_named(scan.volume)} has {scan.volume.data.shape[0]}."
            )
    step_mm = float(np.prod(first.volume.affine.spacing_mm) ** (1 / 3))
    smoothing = config.smoothing_mm or (0.0, step_mm, 2 * step_mm)
    knots = tuple(
        _knots(scans, paints, channel) for channel in range(first.volume.data.shape[0])
    )
    return SimpleSpec(tuple(float(s) for s in smoothing), config.position, knots)


def _knots(
    scans: Sequence[FewScan], paints: Sequence[Paint], channel: int
) -> tuple[float, ...]:
    """Where the painted values of a channel lie."""
    values = np.concatenate([p.values for p in paints])
    if not len(values):
        return ()
    greys = np.concatenate(
        [
            scan.intensity.normalise(scan.volume.data[channel][tuple(paint.voxels.T)])
            for scan, paint in zip(scans, paints, strict=True)
        ]
    )
    return knots_of([greys[values == v] for v in np.unique(values)])


def features_at(features: FeatureMap, mm: NDArray[np.float64]) -> NDArray[np.float32]:
    """Features (N, E) at world positions (N, 3), trilinear, border cells held.

    Not scaled to unit norm again: what is linear in the cells stays so.
    """
    shape = np.array(grid_shape(features))
    index = np.clip(features.affine.inverse().apply(mm), 0, shape - 1)
    low = np.minimum(index.astype(np.int64), np.maximum(shape - 2, 0))
    share = index - low
    cells = np.moveaxis(features.data, 0, -1)
    total = np.zeros((len(index), features.data.shape[0]), np.float32)
    for corner in np.ndindex(2, 2, 2):
        z, y, x = np.minimum(low + corner, shape - 1).T
        weight = np.prod(np.where(corner, share, 1 - share), axis=1)
        total += weight[:, None].astype(np.float32) * cells[z, y, x].astype(np.float32)
    return total


def covered(features: FeatureMap, mm: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether positions (N, 3) lie in the cells' boxes."""
    index = features.affine.inverse().apply(mm)
    shape = np.array(grid_shape(features))
    inside = (index >= -0.5 - 1e-6) & (index <= shape - 0.5 + 1e-6)
    found: NDArray[np.bool_] = np.asarray(inside.all(axis=1))
    return found


def block_covered(
    features: FeatureMap, affine: Affine, start: Index, stop: Index
) -> NDArray[np.bool_] | None:
    """Which voxels of a block lie in the cells' boxes; None: all of them."""
    ends = [(a, b - 1) for a, b in zip(start, stop, strict=True)]
    corners = np.stack(np.meshgrid(*ends), -1).reshape(-1, 3)
    if covered(features, affine.apply(corners)).all():
        return None
    index = np.indices([b - a for a, b in zip(start, stop, strict=True)])
    flat = index.reshape(3, -1).T + np.array(start)
    inside = covered(features, affine.apply(flat))
    return inside.reshape(index.shape[1:])


def _named(thing: Any) -> str:
    source = thing.meta.get("source")
    return str(source) if source else repr(thing.name)


def _by(shape: Index) -> str:
    return " x ".join(map(str, shape))
