"""Which box of the scan the views of a sample need: tight, clipped, shared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from homolog.geometry.affine import Affine, Array, Index
from homolog.views.plan import GroupPlan, Scan
from homolog.views.specs import is_partner
from homolog.views.view import Anchor, Elsewhere, Matched, Same, ViewSpec, Within

_MARGIN = 1  # voxels around the outermost places: interpolation reaches to the next


@dataclass(frozen=True)
class Share:
    """Groups whose views are read together.

    Attributes:
        groups: Their names.
        per_view: One box for each view (they lie far apart) instead of one for all.
        labels: Whether the label map is read too.
        boxes: Names of boxes that stand in for it.
        depths: Whether the depths within labels are read too.
        partner: Whether they lie in the other patient's scan.
    """

    groups: tuple[str, ...]
    per_view: bool
    labels: bool
    partner: bool = False
    depths: bool = False
    boxes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Box:
    """What to read of a scan.

    Attributes:
        start: First voxel.
        size: Voxels of the scan, inside it and at least one per axis.
        pool: Voxels averaged into one along each axis (odd): a view with much larger
            voxels than the scan's would otherwise skip what lies between its own.
    """

    start: Index
    size: Index
    pool: Index


def share_blocks(specs: Mapping[str, ViewSpec]) -> tuple[Share, ...]:
    """Which groups share a box; follows from the specs alone.

    Groups at the anchor, or within one that is, overlap: they share one box if their
    voxels are of one size; so do those at one matched place, and a group with those
    that show the same. Every other group has a box of its own, and views at independent
    places one each.
    """
    keys: dict[tuple[object, ...], list[str]] = {}
    for name, spec in specs.items():
        shown = spec.place.group if isinstance(spec.place, Same) else name
        root = specs[shown].place
        while isinstance(root, Within):
            root = specs[root.group].place
        key: tuple[object, ...] = (shown,)
        if isinstance(root, Anchor | Matched):
            key = (root, spec.spacing_mm)
        keys.setdefault(key, []).append(name)
    return tuple(
        Share(
            groups=tuple(names),
            per_view=isinstance(specs[names[0]].place, Elsewhere),
            labels=any(specs[name].labels for name in names),
            partner=is_partner(specs, names[0]),
            depths=any(specs[name].depths for name in names),
            boxes=next((specs[n].boxes for n in names if specs[n].boxes), ()),
        )
        for names in keys.values()
    )


def boxes_of(
    share: Share,
    plans: Mapping[str, GroupPlan],
    specs: Mapping[str, ViewSpec],
    scan: Scan,
) -> list[Box]:
    """The boxes of one sample: one, or one per view."""
    # with one box per view, further groups of the share show the same as the first
    groups = share.groups[:1] if share.per_view else share.groups
    reaches = [_reach(plans[name], specs[name].size, scan) for name in groups]
    low, high, step = (np.concatenate(part) for part in zip(*reaches, strict=True))
    if share.per_view:
        return [_box(*rows, scan.shape) for rows in zip(low, high, step, strict=True)]
    return [_box(low.min(0), high.max(0), step.min(0), scan.shape)]


def block_affine(box: Box, scan: Scan) -> Affine:
    """Block voxel -> world mm; pooled voxels lie at the middle of what they average."""
    return scan.affine.crop(box.start).coarsen(box.pool)


def _reach(plan: GroupPlan, size: Index, scan: Scan) -> tuple[Array, Array, Array]:
    """Lowest and highest scan voxel each view touches, and its step; each (V, 3).

    Exact, since a B-spline stays within the range of its control points.
    """
    inverse = np.linalg.inv(scan.affine.matrix[:3, :3])
    linear = inverse @ plan.affine[:, :3, :3]
    apart = plan.affine[:, :3, 3] - scan.affine.matrix[:3, 3]
    half = (np.array(size) - 1) / 2
    centre = apart @ inverse.T + linear @ half
    reach = np.abs(linear) @ half
    low, high = centre - reach, centre + reach
    if plan.displacement_mm is not None:
        field = np.einsum("ij,vjpqr->vipqr", inverse, plan.displacement_mm)
        low = low + field.min((2, 3, 4))
        high = high + field.max((2, 3, 4))
    return low, high, np.abs(linear).max(-1)


def _box(low: Array, high: Array, step: Array, shape: Index) -> Box:
    last = np.array(shape) - 1
    pool = np.maximum((np.floor(step + 1e-6).astype(int) - 1) // 2 * 2 + 1, 1)
    margin = _MARGIN * pool
    start = np.clip(np.floor(low).astype(int) - margin, 0, last)
    stop = np.clip(np.ceil(high).astype(int) + margin, 0, last) + 1
    return Box(_index(start), _index(stop - start), _index(pool))


def _index(values: Sequence[int] | Array) -> Index:
    d, h, w = (int(v) for v in values)
    return d, h, w
