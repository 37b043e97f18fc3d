"""Where the slices of a stack lie: order, steps, gaps, tilt; by their positions alone.

``SpacingBetweenSlices`` is not used: scanners and programs write a gap, a negative
number or the thickness there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Affine
from homolog.scans.dicom.kinds import DicomFile
from homolog.scans.problems import SHEAR_LIMIT, Problem
from homolog.words import counted

# Shares of the usual step. Positions are written rounded: what is off by less is not
# told; what is off by more than the second is not on a grid.
_TOLD, _REFUSED = 0.01, 0.1
# A step of so many times the usual one is a gap or another slice distance.
_GAP = 1.5
# So many wide steps in a row, or such a share of all, are no lost slices.
_LOST_IN_A_ROW, _LOST_SHARE = 3, 0.25
SAME_PLACE_MM = 1e-3
# Direction cosines differ by no more when only their last digits were rounded.
_ROUNDING = 1e-4
# Slices moved within their plane by more of a pixel than this are told, or refused.
_MOVED_TOLD, _MOVED_REFUSED = 0.1, 0.5
STRAIGHTEN = "--straighten resamples it once to a straight, even grid"


def stack_directions(
    group: Sequence[DicomFile],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Directions of a row and of a column of a stack, x, y, z.

    Slices that are turned a little against each other (rounded differently, or a
    patient who moved) have their median, made a pair at right angles again.
    """
    all_ = np.array([f.numbers("orientation", 6) for f in group], dtype=np.float64)
    row, column = all_[0, :3], all_[0, 3:]
    if np.ptp(all_, axis=0).max() <= _ROUNDING:
        return row, column
    middle = np.median(all_, axis=0)
    length = float(np.linalg.norm(middle[:3]))
    if length == 0:
        return row, column
    row = middle[:3] / length
    column = middle[3:] - np.dot(middle[3:], row) * row
    length = float(np.linalg.norm(column))
    return (row, column / length) if length > 0 else (row, middle[3:])


def positions_of(group: Sequence[DicomFile]) -> NDArray[np.float64]:
    """(N, 3) positions x, y, z in mm; slices that do not tell lie at the origin."""
    return np.array([f.numbers("position", 3) or (0, 0, 0) for f in group], float)


def places_of(group: Sequence[DicomFile]) -> NDArray[np.float64]:
    """Each slice's place along the normal, in mm."""
    where: NDArray[np.float64] = positions_of(group) @ np.cross(
        *stack_directions(group)
    )
    return where


def usual_step(places: NDArray[np.float64]) -> float:
    """The distance of neighbours in mm, whatever copies and gaps there are; or 0."""
    steps = np.diff(np.sort(places))
    steps = steps[steps >= SAME_PLACE_MM]
    if len(steps) == 0:
        return 0.0
    steps = steps[steps > 0.05 * steps.max()]  # not the rounding of one place
    return float(np.median(steps)) if len(steps) > 2 else float(steps.min())


def same_place_mm(places: NDArray[np.float64]) -> float:
    """Slices nearer to each other than this lie at one place."""
    return max(SAME_PLACE_MM, _TOLD * usual_step(places))


def turned_problems(group: Sequence[DicomFile]) -> list[Problem]:
    """A remark where the slices of a stack are not parallel to the last digit."""
    row, column = stack_directions(group)
    all_ = np.array([f.numbers("orientation", 6) for f in group], dtype=np.float64)
    if np.ptp(all_, axis=0).max() <= _ROUNDING:
        return []
    normals = np.cross(all_[:, :3], all_[:, 3:])
    away = np.linalg.norm(np.cross(normals, np.cross(row, column)), axis=1).max()
    degrees = math.degrees(math.asin(min(float(away), 1.0)))
    text = f"slices are turned by up to {degrees:.2g} degrees; the mean is taken."
    return [Problem("orientation_varies", text, False)]


def depth_mm(file: DicomFile) -> float | None:
    """How thick one slice is; None where it does not tell."""
    for name in ("thickness", "step"):
        told = file.numbers(name, 1)
        if told and told[0] != 0:
            return abs(told[0])
    return None


def step_problems(places: NDArray[np.float64]) -> list[Problem]:
    """Gaps and uneven steps among sorted places (mm); needs three different ones."""
    near = same_place_mm(places)
    apart = np.concatenate([[True], np.diff(places) >= near])
    places = places[apart]
    steps = np.diff(places)
    if len(steps) < 2:
        return []
    usual = usual_step(places)
    wide = steps / usual > _GAP
    if wide.any() and _are_lost(steps / usual, wide):
        missing = int(np.maximum(np.rint(steps[wide] / usual) - 1, 1).sum())
        text = (
            f"about {missing} of {len(places) + missing} slices missing "
            f"(first gap {steps[wide][0]:g} mm after {places[:-1][wide][0]:g}; "
            f"step {usual:g} mm)."
        )
        return [Problem("missing_slice", text)]
    even = places[0] + np.arange(len(places)) * (places[-1] - places[0]) / len(steps)
    off = float(np.abs(places - even).max()) / usual
    off = max(off, float(np.abs(steps / usual - 1.0).max()) / 2)
    if off > _REFUSED / 2:
        return [Problem("uneven_slices", f"{_uneven_text(steps)}; {STRAIGHTEN}.")]
    if off > _TOLD:
        text = f"slice steps vary from {steps.min():g} to {steps.max():g} mm"
        return [Problem("steps_vary", f"{text}; the mean is taken.", False)]
    return []


def _are_lost(ratio: NDArray[np.float64], wide: NDArray[np.bool_]) -> bool:
    """Whether wide steps are places of lost slices, not another slice distance."""
    whole = np.abs(ratio[wide] - np.rint(ratio[wide])) <= _REFUSED * ratio[wide]
    ends = np.flatnonzero(np.diff(np.concatenate([[0], wide.astype(int), [0]])))
    longest = int((ends[1::2] - ends[::2]).max())
    few = longest < _LOST_IN_A_ROW and wide.mean() <= _LOST_SHARE
    others = np.abs(ratio[~wide] - 1.0).max() <= _REFUSED if (~wide).any() else False
    return bool(whole.all() and others and (few or ratio[wide].max() > 4))


def _uneven_text(steps: NDArray[np.float64]) -> str:
    """The sentence for another slice distance, with how often each occurs."""
    kinds, counts = np.unique(np.round(steps, 2), return_counts=True)
    if len(kinds) <= 3:
        parts = [
            f"{kind:g} mm ({counted(int(count), 'step')})"
            for kind, count in zip(kinds, counts, strict=True)
        ]
        return f"the slice distance varies: {', '.join(parts)}"
    return f"slice steps vary from {steps.min():g} to {steps.max():g} mm"


def stack_affine(
    files: Sequence[DicomFile], spacing: Sequence[float]
) -> tuple[Affine | None, list[Problem]]:
    """Voxel -> mm of sorted slices; a stack that leans (gantry tilt) is sheared.

    Args:
        files: In slice order, each with position and orientation.
        spacing: Distance of rows, distance of columns, in mm.
    """
    row, column = stack_directions(files)
    positions = positions_of(files)
    start = positions[0]
    normal = np.cross(row, column)
    length = float(np.linalg.norm(normal))
    lengths = [float(np.linalg.norm(v)) for v in (row, column)]
    if not np.isfinite(length) or abs(length - 1.0) > 1e-2 or max(lengths) > 1.01:
        return None, [
            Problem(
                "affine",
                "the image orientation is no pair of unit directions at right angles.",
            )
        ]
    problems = []
    if len(files) > 1:
        step = (positions[-1] - start) / (len(files) - 1)
        reach = float(np.linalg.norm(step))
        if reach > 0:
            slant = float(np.linalg.norm(np.cross(step / reach, normal / length)))
            if slant > 5 * SHEAR_LIMIT:
                problems.append(Problem("sheared", _tilt_text(files[0], slant)))
            else:
                step = normal / length * reach  # positions are rounded, the normal less
    else:
        step = normal / length * (depth_mm(files[0]) or 1.0)
    matrix = np.eye(4)
    columns = (step, column * spacing[0], row * spacing[1])
    matrix[:3, :3] = np.column_stack([np.asarray(c)[::-1] for c in columns])
    matrix[:3, 3] = start[::-1]
    if abs(np.linalg.det(matrix)) < 1e-12:
        return None, [*problems, Problem("affine", "all slices lie at one place.")]
    return Affine(matrix), problems


def _tilt_text(file: DicomFile, slant: float) -> str:
    """The sentence for a stack that leans."""
    degrees = math.degrees(math.asin(min(slant, 1.0)))
    told = file.numbers("tilt", 1)
    why = " (gantry tilt)" if told and abs(abs(told[0]) - degrees) < 1 else ""
    return (
        f"its slices lean by {degrees:.1f} degrees against the line through their "
        f"corners{why or ', as with a tilted gantry'}; {STRAIGHTEN}."
    )


def moved_problems(files: Sequence[DicomFile], affine: Affine) -> list[Problem]:
    """Slices that lie beside the line through the first and the last."""
    if len(files) < 3:
        return []
    index = affine.inverse().apply(positions_of(files)[:, ::-1])
    away = float(np.abs(index[:, 1:]).max())
    if away <= _MOVED_TOLD:
        return []
    if away <= _MOVED_REFUSED:
        text = f"slices are moved sideways by up to {away:.2g} pixels; not corrected."
        return [Problem("steps_vary", text, False)]
    text = f"slices are moved sideways against each other by up to {away:.2g} pixels"
    return [Problem("uneven_slices", f"{text}; {STRAIGHTEN}.")]
