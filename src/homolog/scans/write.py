"""Volumes and label maps to files: complete and read back, or not there at all."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine
from homolog.label_names import Colour
from homolog.scans.formats import slicer
from homolog.scans.nifti import build_header, stream, write_nifti_bytes
from homolog.scans.paths import scan_suffix
from homolog.scans.problems import Unsound
from homolog.scans.text_formats import plan_voxels, read_text_header, read_voxels
from homolog.scans.volume import LabelMap, Volume, smallest_integers
from homolog.writing import write_safely

WRITE_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")


def write_volume(volume: Volume, path: Path | str) -> None:
    """Write a volume as ``.nii``, ``.nii.gz``, ``.nrrd`` or ``.mha``, by suffix.

    The file appears only when complete and read back. A volume that came from NIfTI and
    still has its affine gets its own header transforms back, bit for bit.

    Raises:
        UnusableInput: Suffix or number type that cannot be written.
        JobError: The file does not read back.
    """
    _write(Path(path), np.asarray(volume.data), volume.affine, volume.meta)


def write_labels(
    labels: LabelMap,
    path: Path | str,
    colours: Mapping[int, Colour] | None = None,
) -> None:
    """Write a label map, in the smallest number type that holds its values.

    Args:
        labels: The label map.
        path: As for ``write_volume``; ``NAME.seg.nrrd`` is a segmentation of 3D Slicer,
            with names and colours in the file.
        colours: Label value -> red, green, blue, 0..1, for such a file; others are
            chosen.

    Raises:
        UnusableInput: Suffix that cannot be written.
        JobError: The file does not read back.
    """
    if holds_names(Path(path)):
        _write_segments(labels, Path(path), colours or {})
        return
    data = smallest_integers(labels.data)
    _write(Path(path), data[None], labels.affine, labels.meta)


def holds_names(path: Path) -> bool:
    """Whether the names of labels go into a file of this name, not beside it."""
    return path.name.lower().endswith(slicer.SUFFIX)


def _write_segments(
    labels: LabelMap, path: Path, colours: Mapping[int, Colour]
) -> None:
    """Write a segmentation of 3D Slicer; values above 0 are its segments.

    Named values are listed even when absent: Slicer shows an empty segment.
    """
    data = smallest_integers(np.maximum(labels.data, 0))
    present = {int(v) for v in np.unique(data)}
    values = sorted(v for v in present | set(labels.names) if v > 0)
    fields = slicer.fields_of(values, labels.names, colours, labels.shape)
    wanted = slicer.segments_in({key.lower(): text for key, text in fields.items()})

    def arrived(aside: Path) -> bool:
        same = np.array_equal(_written(aside), data)
        return same and slicer.segments_of(aside) == wanted

    write_safely(
        path,
        lambda aside: _itk_write(aside, data[None], labels.affine, fields),
        arrived,
    )


def _write(
    path: Path, data: NDArray[Any], affine: Affine, meta: Mapping[str, Any]
) -> None:
    """Write one image file.

    Args:
        path: Its suffix chooses the format.
        data: (C, D, H, W).
        affine: Voxel -> mm.
        meta: May hold ``nifti_forms`` and ``forms_affine``: the transforms of the file
            the data came from, used as long as ``affine`` is still theirs.
    """
    suffix = scan_suffix(path)
    if suffix not in WRITE_SUFFIXES:
        known = ", ".join(WRITE_SUFFIXES)
        raise UnusableInput(f"{path}: can write {known}, not {suffix or 'no suffix'}.")
    if data.dtype.kind not in "iufb" or data.size == 0:
        kind = f"{data.dtype} of shape {data.shape}"
        raise UnusableInput(f"{path}: cannot write {kind}.")
    data = data.astype(_writable(data.dtype), copy=False)
    if suffix in (".nrrd", ".mha"):
        expected = np.moveaxis(data, 0, -1) if data.shape[0] > 1 else data[0]
        nan = data.dtype.kind == "f"
        write_safely(
            path,
            lambda aside: _itk_write(aside, data, affine),
            lambda aside: np.array_equal(_written(aside), expected, equal_nan=nan),
        )
        return
    forms = meta.get("nifti_forms")
    if forms and not _same_place(affine, meta.get("forms_affine")):
        forms = None
    header = build_header(data, affine, forms)
    crcs: list[int] = []
    write_safely(
        path,
        lambda aside: crcs.append(
            write_nifti_bytes(aside, header, data, gzip=suffix == ".nii.gz")
        ),
        lambda aside: _crc(aside) == crcs[-1],
    )


def _writable(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype.kind == "f":
        return np.dtype(np.float64 if dtype.itemsize >= 8 else np.float32)
    return dtype.newbyteorder("=")


def _same_place(affine: Affine, written: Any) -> bool:
    return written is not None and np.allclose(
        affine.matrix, written, rtol=0, atol=1e-6
    )


def _itk_write(
    path: Path,
    data: NDArray[Any],
    affine: Affine,
    fields: Mapping[str, str] | None = None,
) -> None:
    from homolog.scans import itk_decoder

    itk_decoder.write(
        path, data, list(affine.spacing_mm[::-1]), list(affine.origin_mm[::-1]),
        affine.direction[::-1, ::-1].ravel().tolist(), fields,
    )  # fmt: skip


def _written(path: Path) -> NDArray[Any]:
    """What was just written, as (D, H, W) or (D, H, W, C)."""
    plan = plan_voxels(read_text_header(path))
    return read_voxels(plan).reshape(plan.sizes[::-1])


def _crc(path: Path) -> int:
    crc = 0
    try:
        for piece in stream(path):
            crc = zlib.crc32(piece, crc)
    except Unsound:
        return -1
    return crc
