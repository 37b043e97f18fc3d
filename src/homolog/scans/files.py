"""Scan files: header and values, whatever the format.

Everything comes out as (C, D, H, W) with an affine in z, y, x and LPS; SimpleITK's
x, y, z order ends here. Headers and bits of NIfTI, NRRD and MetaImage are read by our
own ``nifti`` and ``text_formats``, for the reasons given there; every other format is
known by name alone and loaded when a file of it is met (``formats``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Affine
from homolog.scans import decoder
from homolog.scans.formats import (
    SEGMENTS,
    ScanHeader,
    format_of,
    slicer_format,
    zarr_format,
)
from homolog.scans.nifti import (
    FAR_MM,
    NiftiHeader,
    iter_nifti,
    nifti_affine,
    read_nifti,
    read_nifti_header,
    scale_values,
)
from homolog.scans.paths import kind_of, scan_stem
from homolog.scans.problems import (
    SHEAR_LIMIT,
    Problem,
    Unsound,
    frames_text,
    shear_text,
)
from homolog.scans.text_formats import (
    VoxelPlan,
    geometry_problems,
    iter_voxels,
    plan_voxels,
    read_text_header,
    read_voxels,
)
from homolog.scans.volume import (
    LabelMap,
    ValueStats,
    Volume,
    judged_modality,
    labels_of,
    modality_of_name,
)
from homolog.words import times

# How the fields of 3D Slicer's segmentations begin.
_SEGMENT = "segment"


def read_header(path: Path | str) -> ScanHeader:
    """What a scan is, without its values; faults the header shows are in ``problems``.

    Args:
        path: A scan file, a DICOM folder (its best series is taken and a remark names
            it), or one series of a folder.

    Raises:
        Unsound: No header can be read at all.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind == "nifti":
        raw = read_nifti_header(path)
        affine, problems = nifti_affine(raw)
        if raw.version == 0 and affine is not None:
            affine = _itk_information(path)[0]  # Analyze: only ITK's habits place it
        return _nifti_header(path, raw, affine, problems)
    if kind not in ("nrrd", "metaimage"):
        return format_of(kind).header(path)
    text = read_text_header(path)
    plan = plan_voxels(text)
    problems = geometry_problems(text)
    if any(p.fatal for p in problems):
        return _blank_header(path, kind, problems)
    information = _itk_information(path)
    _check_agreement(plan, information)
    header = _decoded_header(path, kind, information, problems)
    if any(key.lower().startswith(_SEGMENT) for key in text.pairs):
        return slicer_format().as_labels(header, text.pairs)
    return header


def _nifti_header(
    path: Path, header: NiftiHeader, affine: Affine | None, problems: list[Problem]
) -> ScanHeader:
    """A NIfTI (or Analyze) header in our terms, with the faults it shows."""
    problems = list(problems)
    if header.dtype.kind == "c":
        text = "complex numbers, not one real number per voxel."
        problems.append(Problem("complex", text))
    elif header.type_code in (128, 2304):
        problems.append(Problem("colour", "true colour, not one number per voxel."))
    elif header.channels > 1:
        text = f"{header.channels} numbers per voxel, not one."
        problems.append(Problem("vector", text))
    if header.frames > 1:
        problems.append(Problem("4d", frames_text(header.frames)))
    if affine is not None and affine.shear > SHEAR_LIMIT:
        problems.append(Problem("sheared", shear_text(affine.shear)))
    meta: dict[str, Any] = {}
    if affine is not None and header.version:
        meta = {"nifti_forms": header.forms, "forms_affine": affine.to_list()}
    return ScanHeader(
        path, header.shape, header.channels, header.frames,
        affine or Affine.identity(),
        "float32" if header.scaled else header.dtype.newbyteorder("=").name,
        modality_of_name(scan_stem(path), path.parent.name),
        "nifti" if header.version else "analyze", meta, tuple(problems),
    )  # fmt: skip


def _decoded_header(
    path: Path,
    kind: str,
    information: tuple[Affine, tuple[int, ...], str, int],
    problems: list[Problem],
) -> ScanHeader:
    """The header of a file that SimpleITK decodes.

    Args:
        path: The file.
        kind: ``nrrd`` or ``metaimage``.
        information: Affine, sizes (x, y, z, t), number type, channels.
        problems: What the text header showed.
    """
    affine, sizes, dtype, channels = information
    problems = list(problems)
    if channels > 1:
        problems.append(Problem("vector", f"{channels} numbers per voxel, not one."))
    if dtype.startswith("complex"):
        text = "complex numbers, not one real number per voxel."
        problems.append(Problem("complex", text))
    if affine.shear > SHEAR_LIMIT:
        problems.append(Problem("sheared", shear_text(affine.shear)))
    sizes = (*sizes, *(1,) * (4 - len(sizes)))
    frames = math.prod(sizes[3:])
    if frames > 1:
        problems.append(Problem("4d", frames_text(frames)))
    names = (scan_stem(path), path.parent.name, path.parent.parent.name)
    return ScanHeader(
        path, (sizes[2], sizes[1], sizes[0]), channels, frames, affine, dtype,
        modality_of_name(*names), kind, {}, tuple(problems),
    )  # fmt: skip


def _blank_header(path: Path, kind: str, problems: list[Problem]) -> ScanHeader:
    """For a header too faulty to be measured."""
    unknown = Affine.identity()
    return ScanHeader(
        path, (0, 0, 0), 1, 1, unknown, "", "OTHER", kind, {}, tuple(problems)
    )


def _itk_information(path: Path) -> tuple[Affine, tuple[int, ...], str, int]:
    """Affine, sizes (x, y, z, t), number type and channels, from the header alone."""
    header = decoder.information(path)
    spacing, origin, direction = np.ones(3), np.zeros(3), np.eye(3)
    k = min(len(header["size"]), 3)
    spacing[:k] = header["spacing"][:k]
    origin[:k] = header["origin"][:k]
    direction[:k, :k] = np.array(header["direction"])[:k, :k]
    place = np.concatenate([spacing, origin, direction.ravel()])
    far = not np.isfinite(place).all() or not np.abs(place).max() < FAR_MM
    if far or not (np.linalg.norm(direction, axis=0) > 1e-9).all():
        text = "its voxels have no place that can be told in numbers."
        raise Unsound("affine", text, path)
    return (
        Affine.of(spacing[::-1].tolist(), origin[::-1].tolist(), direction[::-1, ::-1]),
        tuple(header["size"]), header["dtype"], header["channels"],
    )  # fmt: skip


def _check_agreement(
    plan: VoxelPlan, information: tuple[Affine, tuple[int, ...], str, int]
) -> None:
    """Raise where SimpleITK understands a header in another way than we do."""
    _, sizes, dtype, channels = information
    ours = [n for n in plan.sizes if n > 1]
    if channels == 1 and plan.channels == 1:
        same = ours == [n for n in sizes if n > 1] and dtype == plan.dtype.name
    else:
        same = math.prod(ours) == math.prod(sizes) * channels
    if not same and not dtype.startswith("complex"):
        text = (
            f"its header can be read in two ways: {times(ours)} "
            f"{plan.dtype.name}, or {times(sizes)} {dtype}."
        )
        raise Unsound("unreadable", text, plan.path)


def read_scan(path: Path | str) -> Volume:
    """A scan as stored: not reoriented, values scaled as its header states.

    The modality is DICOM's; otherwise that of values and names.

    Raises:
        Unsound: The scan has a fatal problem that its header or its length shows
            (4D, complex, colour, sheared, truncated ...); NaN is not looked for here.
    """
    volume = _read(path)
    if volume.meta["kind"] != "dicom" or volume.modality == "OTHER":
        modality = judged_modality(volume.data, volume.modality)  # as in a store
        return replace(volume, modality=modality)
    return volume


def read_labels(path: Path | str, names: Mapping[int, str] | None = None) -> LabelMap:
    """A label map; whole numbers stored as floating point are accepted.

    A picture whose only value besides 0 is 255 is a mask and becomes 0 and 1.

    Args:
        path: The label file.
        names: Label value -> name.

    Raises:
        Unsound: As read_scan, or ``label_values`` when values are not whole numbers.
    """
    return labels_of(_read(path), names or {}, path)


def iter_values(
    header: ScanHeader, remarks: list[Problem] | None = None
) -> Iterator[NDArray[Any]]:
    """All values in file order, flat pieces, without holding a NIfTI file in memory.

    Args:
        header: What read_header returned.
        remarks: Gains what is remarkable about the values' storage.

    Raises:
        Unsound: ``truncated``, ``corrupt``, ``colour`` or ``unreadable``, where met.
    """
    if header.kind in ("nifti", "analyze"):
        raw = read_nifti_header(header.path)
        for piece in iter_nifti(raw):
            yield scale_values(raw, piece)
        return
    if header.kind in ("nrrd", "metaimage") and SEGMENTS not in header.meta:
        yield from iter_voxels(_plan(header.path))
        return
    if header.kind == "zarr" and header.channels == header.frames == 1:
        yield from zarr_format().pieces(header.path)
        return
    values, found = _values(header)
    if remarks is not None:
        remarks += found
    yield values.ravel()


def scan_hash(path: Path | str) -> str:
    """Sixteen hex digits of values and geometry; the same in every file format.

    A DICOM series has the same hash whatever its files are called.
    """
    header = read_header(path)
    stats = ValueStats()
    for piece in iter_values(header):
        stats.update(piece)
    return stats.content_hash(header.affine, header.shape)


def _read(path: Path | str) -> Volume:
    """A scan whose modality is that of its header and names."""
    header = read_header(path)
    header.refuse()
    data, remarks = _values(header)
    meta = {
        **header.meta,
        "source": str(header.path),
        "kind": header.kind,
        "sized": header.sized,
        "oriented": header.kind != "image2d"
        and header.meta.get("placed", True)
        and not any(p.code == "orientation_unknown" for p in header.problems),
        "remarks": tuple(p.text for p in (*header.problems, *remarks)),
    }
    name = scan_stem(header.path)
    return Volume(data[None], header.affine, name, header.modality, meta)


def _values(header: ScanHeader) -> tuple[NDArray[Any], list[Problem]]:
    """(D, H, W) values and remarks made on the way."""
    path = header.path
    if header.kind in ("nifti", "analyze"):
        return read_nifti(read_nifti_header(path))[0, 0], []
    if header.kind not in ("nrrd", "metaimage"):
        array, remarks = format_of(header.kind).values(header)
    elif SEGMENTS in header.meta:
        array, remarks = slicer_format().values(header)
    else:
        array, remarks = read_voxels(_plan(path)), []
    if array.size != math.prod(header.shape):  # packed voxels have a size of their own
        text = f"its voxels are {times(array.shape)}, its header says "
        raise Unsound("corrupt", f"{text}{times(header.shape)}.", path)
    return array.reshape(header.shape), remarks


def _plan(path: Path) -> VoxelPlan:
    """Where an NRRD or MetaImage file has its voxels; its whole header is checked."""
    return plan_voxels(read_text_header(path))
