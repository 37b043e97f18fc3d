"""What to tell somebody who paints: what is wrong with the paint, where to go next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from homolog.data.volume import FeatureMap
from homolog.geometry.affine import Index, Triple
from homolog.tasks._body import body_of
from homolog.tasks._few_head import Head
from homolog.tasks._few_scan import FewScan, Paint
from homolog.tasks._few_settings import FewClass
from homolog.tasks._few_uncertain import Uncertainty

_FEWEST = 5
_UNBALANCED = 20
# A border between two classes is always unsure: a whole neighbourhood counts instead.
_REGION_CELLS = 1.0


@dataclass(frozen=True)
class NextClick:
    """Where one more stroke helps most.

    Attributes:
        mm: World position (z, y, x), a voxel's centre.
        voxel: The voxel's index (z, y, x).
        uncertainty: 0..1 of the place's neighbourhood: 1 less the lead of the likeliest
            class over the second.
        likely: Names of the likeliest class there and of the second.
    """

    mm: Triple
    voxel: Index
    uncertainty: float
    likely: tuple[str, str]


def warnings_of(
    scans: Sequence[FewScan], paints: Sequence[Paint], classes: Sequence[FewClass]
) -> list[str]:
    """Plain sentences about paint that cannot make a good model.

    Args:
        scans: All scans of the model.
        paints: Their painted voxels, in the same order.
        classes: What the values mean.
    """
    values = np.concatenate([p.values for p in paints])
    inside = np.concatenate([p.covered for p in paints])
    counts = {c: int((values == c.value).sum()) for c in classes}
    counts = {c: n for c, n in counts.items() if n}
    found = []
    if len(counts) == 1:
        name = next(iter(counts)).name
        found.append(
            f"Only {name!r} is painted: everything will become {name!r}; paint a "
            "second class, background for example."
        )
    for known, count in counts.items():
        if count < _FEWEST:
            found.append(
                f"{known.name!r} has only {count} painted voxel{'s' * (count != 1)}; "
                f"paint at least {_FEWEST}."
            )
    slices = _one_slice(scans, paints)
    if slices:
        found.append(slices)
    if len(counts) > 1:
        most = max(counts, key=lambda c: counts[c])
        least = min(counts, key=lambda c: counts[c])
        if counts[most] > _UNBALANCED * counts[least]:
            found.append(
                f"{most.name!r} has {counts[most]} painted voxels, {least.name!r} only "
                f"{counts[least]}; paint more of {least.name!r}."
            )
    lost = int((~inside).sum())
    if lost:
        found.append(
            f"{lost} painted voxel{'s lie' if lost != 1 else ' lies'} outside the "
            "encoder's features and cannot be learnt from."
        )
    return found


def _one_slice(scans: Sequence[FewScan], paints: Sequence[Paint]) -> str:
    """A sentence where all paint lies in one slice of one scan."""
    used = [p for p in paints if len(p.voxels)]
    if len(used) != 1:
        return ""
    volume = scans[used[0].scan].volume
    order = volume.affine.closest_axes()[0]
    for name, axis in zip(("axial", "coronal", "sagittal"), order, strict=True):
        along = used[0].voxels[:, axis]
        # a stack of one slice has no other one to paint
        if volume.shape[axis] > 1 and along.min() == along.max():
            return (
                f"All painted voxels lie in one {name} slice; paint in others too, "
                "so that the model sees the organs' whole length."
            )
    return ""


def next_click(
    head: Head,
    scan: FewScan,
    paint: Paint,
    uncertainty: Uncertainty,
    *,
    apart_mm: float = 10.0,
) -> NextClick | None:
    """The most uncertain neighbourhood in the body, away from the paint.

    Args:
        head: That predicted.
        scan: The scan.
        paint: Its painted voxels.
        uncertainty: Of the prediction, see ``FewResult``.
        apart_mm: Least distance from any painted voxel.

    Returns:
        The place; None where no place in the body is far enough from the paint, or
        there is nothing to be unsure about (a single class).
    """
    from scipy import ndimage
    from scipy.spatial import cKDTree

    if len(head.classes) < 2:
        return None
    shape = uncertainty.values.shape
    grid = FeatureMap(np.empty((0, *shape), np.float32), uncertainty.affine)
    body = body_of(scan.volume, grid, scan.body) & (uncertainty.values > 0)
    index = np.argwhere(body)
    mm = uncertainty.affine.apply(index)
    if len(paint.mm) and len(index):
        apart, _ = cKDTree(paint.mm).query(mm, distance_upper_bound=apart_mm)
        far = ~np.isfinite(apart)
        index, mm = index[far], mm[far]
    if not len(index):
        return None
    region = _within(uncertainty.values, body, ndimage.gaussian_filter)
    values = region[tuple(index.T)]
    best = int(values.argmax())
    place = tuple(int(i) for i in index[best])
    voxel = np.rint(scan.volume.affine.inverse().apply(mm[best])).astype(int)
    first, second = (int(likely[place]) for likely in uncertainty.likely)
    z, y, x = (float(v) for v in mm[best])
    return NextClick(
        (z, y, x),
        (int(voxel[0]), int(voxel[1]), int(voxel[2])),
        float(values[best]),
        (head.classes[first].name, head.classes[second].name),
    )


def _within(
    values: NDArray[np.float32], mask: NDArray[np.bool_], blur: object
) -> NDArray[np.float32]:
    """Mean of the neighbourhood's values inside the mask."""
    assert callable(blur)
    weight = blur(mask.astype(np.float32), _REGION_CELLS)
    total = blur(np.where(mask, values, 0.0).astype(np.float32), _REGION_CELLS)
    mean: NDArray[np.float32] = np.where(mask, total / np.maximum(weight, 1e-6), 0.0)
    return mean
