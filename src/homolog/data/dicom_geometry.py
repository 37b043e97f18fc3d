"""Where the slices of a DICOM series lie, from their positions alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from homolog.data.dicom_file import DicomFile
from homolog.data.problems import SHEAR_LIMIT, Problem, shear_text
from homolog.geometry.affine import Affine

# Steps may differ by this share of the usual step (positions are written rounded).
_STEP_TOLERANCE = 0.1
SAME_PLACE_MM = 1e-3
# Direction cosines differ by no more when only their last digits were rounded.
_ROUNDING = 1e-4


def sorted_by_place(
    group: Sequence[DicomFile],
) -> tuple[list[DicomFile], NDArray[np.float64]]:
    """Files in order along the slice normal, and each one's place on it in mm."""
    row, column = stack_directions(group)
    normal = np.cross(row, column)
    where = np.array(
        [np.dot(f.numbers("position", 3) or (0, 0, 0), normal) for f in group]
    )
    order = np.lexsort((np.arange(len(group)), where))
    return [group[i] for i in order], where[order]


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
    """Distance to the next slice as one slice tells it; None where it does not.

    Some scanners write a negative one, for the direction they went.
    """
    for name in ("step", "thickness"):
        told = file.numbers(name, 1)
        if told and told[0] != 0:
            return abs(told[0])
    return None


def step_problems(places: NDArray[np.float64]) -> list[Problem]:
    """Gaps and uneven steps among sorted places (mm); needs three different ones."""
    steps = np.diff(places)
    steps = steps[steps >= SAME_PLACE_MM]
    if len(steps) < 2:
        return []
    usual = float(np.median(steps)) if len(steps) > 2 else float(steps.min())
    ratio = steps / usual
    gaps = ratio > 1.5
    if gaps.any():
        missing = int(np.maximum(np.rint(ratio[gaps]) - 1, 1).sum())
        at = float(places[:-1][np.diff(places) >= SAME_PLACE_MM][gaps][0])
        text = (
            f"about {missing} of {len(places) + missing} slices missing "
            f"(first gap {steps[gaps][0]:g} mm after {at:g}; step {usual:g} mm)."
        )
        return [Problem("missing_slice", text)]
    if (np.abs(ratio - 1.0) > _STEP_TOLERANCE).any():
        text = f"slice steps vary from {steps.min():g} to {steps.max():g} mm."
        return [Problem("uneven_slices", text)]
    return []


def stack_affine(
    files: Sequence[DicomFile], spacing: Sequence[float]
) -> tuple[Affine | None, list[Problem]]:
    """Voxel -> mm of sorted slices; a stack that leans (gantry tilt) is sheared.

    Args:
        files: In slice order, each with position and orientation.
        spacing: Distance of rows, distance of columns, in mm.
    """
    row, column = stack_directions(files)
    start = np.array(files[0].numbers("position", 3))
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
        end = np.array(files[-1].numbers("position", 3))
        step = (end - start) / (len(files) - 1)
        reach = float(np.linalg.norm(step))
        if reach > 0:
            slant = float(np.linalg.norm(np.cross(step / reach, normal / length)))
            if slant > 5 * SHEAR_LIMIT:
                problems.append(Problem("sheared", shear_text(min(slant, 1.0))))
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
