"""Points of the chest that simple thresholds find in a CT: lung tips and carina.

They serve as homologous points of patients of whom nothing was labelled. How each is
found, on axes z, y, x of LPS, thinned to about 1.5 x 1.5 x 2 mm:

1. Inner air: below -400 HU and not joined, within its axial slice, to the slice's edge.
2. Airway: from the head downwards, a patch of inner air below -800 HU of 60 to 700 mm2
   within 40 mm of the body's middle is followed from slice to slice by overlap. Where
   it has gone on for 20 mm and falls into two patches that lie beside each other (at
   least 8 mm from middle to middle) and both go on for 6 mm, it splits.
3. ``carina``: half-way between these two patches in the first slice that shows them.
4. Lungs: inner air without the airway above the split, opened by one voxel; parts of
   at least 300 ml and a mean of -950 to -500 HU. Right and left of the body's middle
   are the patient's right (smaller x) and left lung; each needs 300 ml.
5. ``lung_apex_*``, ``lung_base_*``: centre of the highest and of the lowest slice in
   which that lung covers at least 100 mm2. Where that is the scan's first or last
   slice, or holds more than a quarter of the lung's largest section (a scan padded
   with empty slices), the lung is cut off and there is no such point.

The body's middle is the median x of all that is above -500 HU. Emphysema, effusions and
collapsed lungs make these points wrong; they are no gold standard.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine, Triple
from homolog.scans.volume import Points, Volume, closest_canonical
from homolog.store.preprocess import BODY_HU

NAMES = (
    "lung_apex_right", "lung_apex_left", "lung_base_right", "lung_base_left", "carina",
)  # fmt: skip
Mask = NDArray[np.bool_]

_STEP_MM = (2.0, 1.5, 1.5)
_AIR_HU, _AIRWAY_HU = -400.0, -800.0
_PATCH_MM2 = (60.0, 700.0)
_BRANCH_MM2 = 25.0
_OFF_MIDDLE_MM, _BESIDE_MM = 40.0, 8.0
_TRUNK_MM, _BRANCH_MM = 20.0, 6.0
_LUNG_MM3, _LUNG_HU = 300_000.0, (-950.0, -500.0)
_TIP_MM2, _TIP_SHARE = 100.0, 0.25


@dataclass(frozen=True, eq=False)
class _Chest:
    """A thinned CT with what is found in it first."""

    hu: NDArray[np.float32]
    affine: Affine
    air: Mask  # inner air
    middle: float  # voxel x of the body's middle

    @property
    def area(self) -> float:
        """mm2 of a voxel in its slice."""
        _, y, x = self.affine.spacing_mm
        return y * x


def ct_points(volume: Volume) -> dict[str, Triple | None]:
    """NAMES -> world mm (z, y, x), or None where the CT does not show the point.

    Args:
        volume: A CT in HU, as stored in its file.

    Raises:
        UnusableInput: It is no CT.
    """
    if volume.modality != "CT":
        raise UnusableInput(
            f"points of the chest are found in CT, but {volume.name!r} is "
            f"{volume.modality}."
        )
    found: dict[str, Triple | None] = dict.fromkeys(NAMES)
    chest = _chest(volume)
    if chest is None:
        return found
    airway, split = _airway(chest)
    if split is not None:
        found["carina"] = _world(chest, split)
    for side, lung in zip(("right", "left"), _lungs(chest, airway), strict=True):
        if lung is None:
            continue
        area = lung.sum(axis=(1, 2)) * chest.area
        covered = np.flatnonzero(area >= _TIP_MM2)
        if not covered.size:
            continue
        for name, z in (("apex", covered[-1]), ("base", covered[0])):
            if 0 < z < len(lung) - 1 and area[z] <= _TIP_SHARE * area.max():
                y, x = np.argwhere(lung[z]).mean(axis=0)
                found[f"lung_{name}_{side}"] = _world(chest, (float(z), y, x))
    return found


def as_points(found: dict[str, Triple | None]) -> Points:
    """Those that were found, in their order."""
    known = {name: mm for name, mm in found.items() if mm is not None}
    return Points(np.array(list(known.values())).reshape(-1, 3), tuple(known))


def _chest(volume: Volume) -> _Chest | None:
    from scipy import ndimage

    scan = closest_canonical(volume)
    spacing = scan.affine.spacing_mm
    steps = [
        max(1, round(wanted / own))
        for wanted, own in zip(_STEP_MM, spacing, strict=True)
    ]
    hu = scan.data[0, :: steps[0], :: steps[1], :: steps[2]].astype(np.float32)
    affine = scan.affine @ Affine.scale([float(s) for s in steps])
    body = hu > BODY_HU
    if not body.any():
        return None
    low = hu < _AIR_HU
    cross = ndimage.generate_binary_structure(2, 1)[None]
    frame = np.zeros(hu.shape[1:], bool)
    frame[[0, -1]] = frame[:, [0, -1]] = True
    outer = ndimage.binary_propagation(low & frame, structure=cross, mask=low)
    middle = float(np.median(np.nonzero(body)[2]))
    return _Chest(hu, affine, low & ~outer, middle)


def _airway(chest: _Chest) -> tuple[Mask, tuple[float, float, float] | None]:
    """What the trachea fills, and where (z, y, x) it splits, if it does."""
    air = chest.air & (chest.hu < _AIRWAY_HU)
    seen = np.zeros_like(air)
    longest = np.zeros_like(air)
    for z in range(len(air) - 1, 0, -1):
        for patch in _patches(air[z] & ~seen[z], chest, _PATCH_MM2[0]):
            x = float(np.nonzero(patch)[1].mean())
            off = abs(x - chest.middle) * chest.affine.spacing_mm[2]
            if off > _OFF_MIDDLE_MM or patch.sum() * chest.area > _PATCH_MM2[1]:
                continue
            trunk, split = _followed(air, z, patch, chest)
            seen |= trunk
            if split is not None:
                return trunk, split
            if trunk.sum() > longest.sum():
                longest = trunk
    return longest, None


def _followed(
    air: Mask, z: int, patch: Mask, chest: _Chest
) -> tuple[Mask, tuple[float, float, float] | None]:
    """A patch followed downwards: the trunk, and where it splits."""
    thickness = chest.affine.spacing_mm[0]
    trunk = np.zeros_like(air)
    trunk[z] = patch
    for below in range(z - 1, -1, -1):
        parts = [
            p for p in _patches(air[below], chest, _BRANCH_MM2) if (p & patch).any()
        ]
        if (z - below) * thickness >= _TRUNK_MM and len(parts) == 2:
            middles = [np.argwhere(p).mean(axis=0) for p in parts]
            beside = abs(middles[0][1] - middles[1][1]) * chest.affine.spacing_mm[2]
            if beside >= _BESIDE_MM and all(
                _goes_on(air, below, p, chest) for p in parts
            ):
                y, x = (middles[0] + middles[1]) / 2
                return trunk, (float(below), float(y), float(x))
        if not parts:
            break
        patch = max(parts, key=lambda p: int((p & patch).sum()))
        # A carina widens the trunk, a lung that it leaks into far more so.
        if patch.sum() * chest.area > 2 * _PATCH_MM2[1]:
            break
        trunk[below] = patch
    return trunk, None


def _goes_on(air: Mask, z: int, patch: Mask, chest: _Chest) -> bool:
    steps = max(1, round(_BRANCH_MM / chest.affine.spacing_mm[0]))
    for below in range(z - 1, max(z - steps, 0) - 1, -1):
        parts = [p for p in _patches(air[below], chest, 0.0) if (p & patch).any()]
        if not parts:
            return False
        patch = max(parts, key=lambda p: int(p.sum()))
    return True


def _patches(plane: Mask, chest: _Chest, least_mm2: float) -> list[Mask]:
    """Connected parts (h, w) of a slice of at least that area."""
    from scipy import ndimage

    labels, _ = ndimage.label(plane)
    sizes = np.bincount(labels.ravel())
    kept = np.flatnonzero(sizes * chest.area >= least_mm2)
    return [labels == value for value in kept if value > 0]


def _lungs(chest: _Chest, airway: Mask) -> tuple[Mask | None, Mask | None]:
    """The patient's right and left lung, None where there is none."""
    from scipy import ndimage

    around = ndimage.binary_dilation(airway, iterations=2)
    air = ndimage.binary_opening(chest.air & ~around)
    labels, count = ndimage.label(air)
    volume = float(np.prod(chest.affine.spacing_mm))
    lungs = np.zeros_like(air)
    index = np.arange(1, count + 1)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:] * volume
    for value in index[sizes >= _LUNG_MM3]:
        part = labels == value
        if _LUNG_HU[0] <= float(chest.hu[part].mean()) <= _LUNG_HU[1]:
            lungs |= part
    right = np.arange(lungs.shape[2]) < chest.middle  # LPS: x runs to the left
    sides = (lungs & right, lungs & ~right)
    first, second = (s if s.sum() * volume >= _LUNG_MM3 else None for s in sides)
    return first, second


def _world(chest: _Chest, index: tuple[float, float, float]) -> Triple:
    z, y, x = (float(v) for v in chest.affine.apply(index))
    return z, y, x
