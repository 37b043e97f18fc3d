"""Where a NIfTI header puts its voxels, and whether that can be believed.

Where a header's two transforms differ, the sform counts, as in nibabel, FSL and SPM.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from homolog.data.nifti_header import NiftiHeader
from homolog.data.problems import Problem
from homolog.geometry.affine import Affine

FAR_MM = 1e12  # beyond this no number of a place is one
# Millimetres per unit of length in xyzt_units; 0 means "not said", taken as mm.
_UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


@np.errstate(all="ignore")
def nifti_affine(header: NiftiHeader) -> tuple[Affine | None, list[Problem]]:
    """Voxel (z, y, x) -> mm (z, y, x), LPS, and what is wrong or remarkable with it."""
    problems = _spacing_problems(header)
    if any(p.fatal for p in problems):
        return None, problems
    unit_mm = _UNITS_MM.get(int(header.forms["units"]) & 7, 1.0)
    if unit_mm != 1.0:
        word = "metres" if unit_mm > 1 else "micrometres"
        problems.append(Problem("units", f"lengths in {word}, converted to mm.", False))
    q = qform(header)
    s = np.array(header.forms["srow"], dtype=np.float64).reshape(3, 4)
    if header.forms["sform_code"] > 0:
        matrix = s
        problems += _disagreement(header, q, s)
    elif q is not None:
        matrix = q
    else:
        # What ITK takes; the standard, nibabel and SPM each say something else.
        matrix = np.diag([-1.0, -1.0, 1.0]) @ np.eye(3, 4) * [*_spacing(header), 1.0]
        text = "the header has no orientation (qform and sform codes 0)."
        problems.append(Problem("orientation_unknown", text, False))
    if not np.abs(matrix * unit_mm).max() < FAR_MM:  # NaN too
        text = "its voxels have no place that can be told in numbers."
        return None, [*problems, Problem("affine", text)]
    if abs(np.linalg.det(matrix[:, :3])) < 1e-12:
        text = "the voxel axes in the header are not three independent directions."
        return None, [*problems, Problem("affine", text)]
    return lps_from_ras(matrix * unit_mm), problems


def lps_from_ras(matrix: NDArray[np.float64]) -> Affine:
    """(3, 4) voxel x, y, z -> RAS mm, as an Affine in z, y, x and LPS."""
    lps = np.diag([-1.0, -1.0, 1.0]) @ matrix
    out = np.eye(4)
    out[:3, :3] = lps[::-1, 2::-1]
    out[:3, 3] = lps[::-1, 3]
    return Affine(out)


def ras_from_lps(affine: Affine) -> NDArray[np.float64]:
    """Inverse of lps_from_ras."""
    m = affine.matrix
    xyz = np.column_stack([m[2::-1, 2::-1], m[2::-1, 3]])
    ras: NDArray[np.float64] = np.diag([-1.0, -1.0, 1.0]) @ xyz
    return ras


def _spacing(header: NiftiHeader) -> NDArray[np.float64]:
    """Voxel size x, y, z; axes of a single voxel may lack one and get 1."""
    sizes = np.array(header.pixdim[1:4], dtype=np.float64)
    single = np.array([header.dim[i] == 1 for i in (1, 2, 3)])
    return np.where(single & ~(sizes > 0), 1.0, sizes)


def _spacing_problems(header: NiftiHeader) -> list[Problem]:
    sizes = _spacing(header)
    said = " x ".join(f"{v:g}" for v in header.pixdim[1:4])
    if not np.isfinite(sizes).all() or not (sizes > 0).all():
        return [
            Problem("spacing", f"voxel size must be positive, the header says {said}.")
        ]
    if header.forms["sform_code"] <= 0:
        return []
    srow = np.array(header.forms["srow"], dtype=np.float64).reshape(3, 4)
    lengths = np.linalg.norm(srow[:, :3], axis=0)
    if not np.isfinite(lengths).all() or not (lengths > 0).all():
        text = "the sform gives a voxel axis no length."
        return [Problem("spacing", text)]
    if (np.abs(lengths / sizes - 1.0) > 0.01).any():
        other = " x ".join(f"{v:g}" for v in lengths)
        text = f"contradictory voxel sizes: pixdim says {said}, the sform {other}."
        return [Problem("spacing", text)]
    return []


def _disagreement(
    header: NiftiHeader, q: NDArray[np.float64] | None, s: NDArray[np.float64]
) -> list[Problem]:
    if q is None or not np.isfinite(q).all():
        return []
    last = np.array([n - 1.0 for n in header.dim[1:4]])
    corners = np.stack([np.zeros(3), last])
    gap = corners @ (q - s)[:, :3].T + (q - s)[:, 3]
    if np.abs(gap).max() <= 0.1 * _spacing(header).min():
        return []
    text = "qform and sform place the scan differently; the sform is used."
    return [Problem("forms_disagree", text, False)]


def qform(header: NiftiHeader) -> NDArray[np.float64] | None:
    """(3, 4) voxel x, y, z -> RAS mm from the quaternion; None when its code is 0."""
    if header.forms["qform_code"] <= 0:
        return None
    b, c, d = (float(v) for v in header.forms["quatern"])
    square = b * b + c * c + d * d
    rest = 1.0 - square
    if rest < 1e-7:  # a half turn, up to float rounding: as the standard's own code
        a, scale = 0.0, 1.0 / np.sqrt(square)
        b, c, d = b * scale, c * scale, d * scale
    else:
        a = float(np.sqrt(rest))
    rotation = np.array([
        [a*a + b*b - c*c - d*d, 2*b*c - 2*a*d, 2*b*d + 2*a*c],
        [2*b*c + 2*a*d, a*a + c*c - b*b - d*d, 2*c*d - 2*a*b],
        [2*b*d - 2*a*c, 2*c*d + 2*a*b, a*a + d*d - b*b - c*c],
    ])  # fmt: skip
    rotation[:, 2] *= -1.0 if header.pixdim[0] < 0 else 1.0
    return np.column_stack([rotation * _spacing(header), header.forms["qoffset"]])
