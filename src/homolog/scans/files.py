"""Scans and label maps, from and to files.

Everything comes out as (C, D, H, W) with an affine in z, y, x and LPS; SimpleITK's
x, y, z order ends here. NIfTI headers and bits are read by nifti_header and nifti_data,
NRRD and MetaImage by text_headers and text_voxels, for the reasons told there; every
other format is decoded by SimpleITK, in a process of its own (decoder), after its
completeness was checked.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine
from homolog.scans import decoder
from homolog.scans.dicom import (
    Series,
    joined_slices,
    open_series,
    scans_in,
    series_header,
    series_of,
)
from homolog.scans.dicom_tags import DicomFile
from homolog.scans.header import (
    ScanHeader,
    blank_header,
    decoded_header,
    kind_of,
    nifti_scan_header,
    scan_stem,
    scan_suffix,
)
from homolog.scans.nifti import (
    FAR_MM,
    build_header,
    iter_nifti,
    nifti_affine,
    read_nifti,
    read_nifti_header,
    scale_values,
    stream,
    write_nifti_bytes,
)
from homolog.scans.pictures import (
    check_picture,
    grey_alpha_size,
    grey_of_colour,
    read_grey_alpha,
)
from homolog.scans.problems import Problem, Unsound
from homolog.scans.text_formats import (
    VoxelPlan,
    iter_voxels,
    meta_problems,
    nrrd_problems,
    plan_voxels,
    read_meta_text,
    read_nrrd_text,
    read_voxels,
)
from homolog.scans.volume import (
    LabelMap,
    ValueStats,
    Volume,
    judged_modality,
    labels_of,
    smallest_integers,
)
from homolog.writing import write_safely

# Which bytes a volume becomes, by suffix; always complete or not there.


WRITE_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")


def write_image(
    path: Path,
    data: NDArray[Any],
    affine: Affine,
    meta: Mapping[str, Any],
    *,
    by_itk: Callable[[Path, NDArray[Any], Affine], None],
    read_back: Callable[[Path], NDArray[Any]],
) -> None:
    """Write one image file.

    Args:
        path: Its suffix chooses the format.
        data: (C, D, H, W).
        affine: Voxel -> mm.
        meta: May hold ``nifti_forms`` and ``forms_affine``: the transforms of the file
            the data came from, used as long as ``affine`` is still theirs.
        by_itk: Writes NRRD and MetaImage.
        read_back: Reads those, as (D, H, W) or (D, H, W, C).

    Raises:
        UnusableInput: Suffix or number type that cannot be written.
        JobError: The file does not read back.
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
            lambda aside: by_itk(aside, data, affine),
            lambda aside: np.array_equal(read_back(aside), expected, equal_nan=nan),
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


def _crc(path: Path) -> int:
    crc = 0
    try:
        for piece in stream(path):
            crc = zlib.crc32(piece, crc)
    except Unsound:
        return -1
    return crc


def read_header(path: Path | str) -> ScanHeader:
    """What a scan is, without its values; faults the header shows are in ``problems``.

    Args:
        path: A scan file, a DICOM folder (its best series is taken and a remark says
            which), or one series of a folder.

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
        return nifti_scan_header(path, raw, affine, problems)
    if kind == "dicom":
        series, others = open_series(path, _decode)
        return series_header(path, series, others, _measure)
    if kind == "image2d":
        check_picture(path)
        return decoded_header(path, kind, _picture_information(path), [])
    text = read_nrrd_text(path) if kind == "nrrd" else read_meta_text(path)
    plan = plan_voxels(text)
    problems = nrrd_problems(text) if kind == "nrrd" else meta_problems(text)
    if any(p.fatal for p in problems):
        return blank_header(path, kind, problems)
    told = _itk_information(path)
    _check_agreement(plan, told)
    return decoded_header(path, kind, told, problems)


def _picture_information(path: Path) -> tuple[Affine, tuple[int, ...], str, int]:
    alpha = grey_alpha_size(path)
    if alpha is None:
        return _itk_information(path)
    width, height, deep = alpha
    return Affine.identity(), (width, height), f"uint{8 * deep}", 2


def _check_agreement(
    plan: VoxelPlan, told: tuple[Affine, tuple[int, ...], str, int]
) -> None:
    """Raise where SimpleITK understands a header in another way than we do."""
    _, sizes, dtype, channels = told
    ours = [n for n in plan.sizes if n > 1]
    if channels == 1 and plan.channels == 1:
        same = ours == [n for n in sizes if n > 1] and dtype == plan.dtype.name
    else:
        same = math.prod(ours) == math.prod(sizes) * channels
    if not same and not dtype.startswith("complex"):
        text = (
            f"its header can be read in two ways: {'x'.join(map(str, ours))} "
            f"{plan.dtype.name}, or {'x'.join(map(str, sizes))} {dtype}."
        )
        raise Unsound("unreadable", text, plan.path)


def dicom_scans(folder: Path) -> tuple[list[Path], list[DicomFile]]:
    """A path for each DICOM scan lying in a folder, and its other DICOM objects."""
    return scans_in(folder, _decode)


def dicom_series(folder: Path) -> tuple[list[Series], list[DicomFile]]:
    """The series lying directly in a folder, the best first; other DICOM objects."""
    return series_of(folder, _decode)


def read_scan(path: Path | str) -> Volume:
    """A scan as stored: not reoriented, values scaled as its header says.

    The modality is DICOM's word; otherwise what values and names say.

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
    if header.kind in ("nrrd", "metaimage"):
        yield from iter_voxels(_plan(header.path, header.kind))
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


def write_volume(volume: Volume, path: Path | str) -> None:
    """Write a volume as ``.nii``, ``.nii.gz``, ``.nrrd`` or ``.mha``, by suffix.

    The file appears only when complete and read back. A volume that came from NIfTI and
    still has its affine gets its own header transforms back, bit for bit.

    Raises:
        UnusableInput: Suffix or number type that cannot be written.
        JobError: The file does not read back.
    """
    write_image(
        Path(path), np.asarray(volume.data), volume.affine, volume.meta,
        by_itk=_itk_write, read_back=_written,
    )  # fmt: skip


def write_labels(labels: LabelMap, path: Path | str) -> None:
    """Write a label map, in the smallest number type that holds its values.

    Raises:
        UnusableInput: Suffix that cannot be written.
        JobError: The file does not read back.
    """
    data = smallest_integers(labels.data)
    write_image(
        Path(path), data[None], labels.affine, labels.meta,
        by_itk=_itk_write, read_back=_written,
    )  # fmt: skip


def _read(path: Path | str) -> Volume:
    """A scan whose modality is what its header and names say."""
    header = read_header(path)
    header.refuse()
    data, remarks = _values(header)
    meta = {
        **header.meta,
        "source": str(header.path),
        "kind": header.kind,
        "remarks": tuple(p.text for p in (*header.problems, *remarks)),
    }
    name = scan_stem(header.path)
    return Volume(data[None], header.affine, name, header.modality, meta)


def _values(header: ScanHeader) -> tuple[NDArray[Any], list[Problem]]:
    """(D, H, W) values and remarks made on the way."""
    path = header.path
    if header.kind in ("nifti", "analyze"):
        return read_nifti(read_nifti_header(path))[0, 0], []
    if header.kind == "dicom":
        files = [Path(f) for f in header.meta["files"]]
        slices = decoder.pixels_of(files)
        return joined_slices([s.reshape(-1, *s.shape[-2:]) for s in slices]), []
    if header.kind in ("nrrd", "metaimage"):
        return read_voxels(_plan(path, header.kind)).reshape(header.shape), []
    array = read_grey_alpha(path, _itk_array)
    if array is None:
        array = _itk_array(path)
    remarks = []
    if header.channels > 1:
        array, remark = grey_of_colour(array, path)
        remarks.append(remark)
    return array.reshape(header.shape), remarks


def _itk_information(path: Path) -> tuple[Affine, tuple[int, ...], str, int]:
    """Affine, sizes (x, y, z, t), number type and channels, from the header alone."""
    told = decoder.information(path)
    spacing, origin, direction = np.ones(3), np.zeros(3), np.eye(3)
    k = min(len(told["size"]), 3)
    spacing[:k] = told["spacing"][:k]
    origin[:k] = told["origin"][:k]
    direction[:k, :k] = np.array(told["direction"])[:k, :k]
    place = np.concatenate([spacing, origin, direction.ravel()])
    far = not np.isfinite(place).all() or not np.abs(place).max() < FAR_MM
    if far or not (np.linalg.norm(direction, axis=0) > 1e-9).all():
        text = "its voxels have no place that can be told in numbers."
        raise Unsound("affine", text, path)
    return (
        Affine.of(spacing[::-1].tolist(), origin[::-1].tolist(), direction[::-1, ::-1]),
        tuple(told["size"]), told["dtype"], told["channels"],
    )  # fmt: skip


def _measure(path: Path) -> tuple[str, int]:
    """Number type and channels of one DICOM file; its place is told by its tags."""
    told = decoder.information(path)
    return told["dtype"], told["channels"]


def _decode(path: Path) -> NDArray[Any]:
    """One DICOM file as (frames, H, W)."""
    array = _itk_array(path)
    return array.reshape(-1, *array.shape[-2:])


def _itk_array(path: Path) -> NDArray[Any]:
    return decoder.pixels(path)


def _plan(path: Path, kind: str) -> VoxelPlan:
    """Where an NRRD or MetaImage file has its voxels; all of its header judged."""
    return plan_voxels(read_nrrd_text(path) if kind == "nrrd" else read_meta_text(path))


def _itk_write(path: Path, data: NDArray[Any], affine: Affine) -> None:
    from homolog.scans import itk_decoder

    itk_decoder.write(
        path, data, list(affine.spacing_mm[::-1]), list(affine.origin_mm[::-1]),
        affine.direction[::-1, ::-1].ravel().tolist(),
    )  # fmt: skip


def _written(path: Path) -> NDArray[Any]:
    """What was just written, as (D, H, W) or (D, H, W, C)."""
    plan = _plan(path, kind_of(path))
    return read_voxels(plan).reshape(plan.sizes[::-1])
