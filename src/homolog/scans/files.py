"""Scan files: what kind a path is, its header, its values.

Everything comes out as (C, D, H, W) with an affine in z, y, x and LPS; SimpleITK's
x, y, z order ends here. Headers and bits of NIfTI, NRRD and MetaImage are read by our
own ``nifti`` and ``text_formats``, for the reasons given there; DICOM and pictures are
decoded by SimpleITK in a process of its own (``decoder``), once the file is known to be
complete: by its header (``dicom.header``), or by the checks of ``formats.pictures``.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine, Index
from homolog.scans import decoder
from homolog.scans.dicom.gathering import (
    is_index,
    is_series_path,
    is_zip,
    open_series,
    scans_in,
    series_of,
    series_path,
    split_series,
)
from homolog.scans.dicom.header import looks_like_dicom, read_dicom_file
from homolog.scans.dicom.kinds import DicomFile
from homolog.scans.dicom.labels import (
    DicomLabels,
    image_of_labels,
    read_dicom_labels,
    referenced_series,
)
from homolog.scans.dicom.slices import read_slice, read_slices, slice_information
from homolog.scans.dicom.stacks import Series
from homolog.scans.dicom.straighten import StraightGrid
from homolog.scans.formats.mgh import mgh_values, read_mgh
from homolog.scans.formats.pictures import picture_values, read_picture
from homolog.scans.formats.slicer import SEGMENTS, one_map, segments_in, segments_of
from homolog.scans.formats.zarrs import is_zarr, iter_zarr, read_zarr, zarr_values
from homolog.scans.nifti import (
    FAR_MM,
    NiftiHeader,
    iter_nifti,
    nifti_affine,
    read_nifti,
    read_nifti_header,
    scale_values,
)
from homolog.scans.problems import SHEAR_LIMIT, Problem, Unsound, problem_of, shear_text
from homolog.scans.text_formats import (
    VoxelPlan,
    geometry_problems,
    iter_voxels,
    plan_voxels,
    read_text_header,
    read_voxels,
)
from homolog.scans.volume import (
    PICTURE_SUFFIXES,
    LabelMap,
    ValueStats,
    Volume,
    judged_modality,
    labels_of,
    modality_of_dicom,
    modality_of_name,
)
from homolog.words import counted, times

_KINDS = {
    ".nii.gz": "nifti", ".nii": "nifti", ".hdr": "nifti", ".img": "nifti",
    ".hdr.gz": "nifti", ".img.gz": "nifti", ".mgz": "mgh", ".mgh": "mgh",
    ".nrrd": "nrrd", ".nhdr": "nrrd", ".mha": "metaimage", ".mhd": "metaimage",
    ".dcm": "dicom", ".dicom": "dicom", ".ima": "dicom", ".zarr": "zarr",
    **dict.fromkeys(PICTURE_SUFFIXES, "image2d"),
}  # fmt: skip
_KNOWN_BUT_NOT_READ = {
    ".mnc": "MINC", ".par": "Philips PAR/REC", ".ecat": "ECAT", ".v": "ECAT",
    ".head": "AFNI",
    ".mif": "MRtrix", ".mif.gz": "MRtrix", ".vmr": "BrainVoyager", ".gipl": "GIPL",
    ".vtk": "VTK", ".dcm.gz": "packed DICOM",
}  # fmt: skip
SPECIAL = "a pipe, device or socket, not a file."
# What anonymisers leave in place of a patient.
_NOBODY = {"", "0", "anon", "anonymous", "anonymized", "anonymised", "unknown", "none"}


@dataclass(frozen=True, eq=False)
class ScanHeader:
    """A scan without its values.

    Attributes:
        path: File, DICOM folder, or one series of it (see ``series_path``).
        shape: (D, H, W).
        channels: Numbers per voxel as stored; 3 or 4 for colour.
        frames: Length of the time (echo, direction) axis, 1 for a single volume.
        affine: Voxel -> mm; the identity where ``problems`` show that it is unknown.
        dtype: Number type of the values, e.g. ``"int16"``.
        modality: One of MODALITIES, as far as header and name show.
        kind: ``nifti, analyze, nrrd, metaimage, dicom, mgh, zarr, image2d``, or
            ``tiff``: a TIFF that states the size of its pixels.
        meta: What must survive until saving, and what the index wants to know:
            ``nifti_forms``, ``forms_affine``, ``subject``, ``series``, ``files``,
            ``segments``;
            ``placed`` is False where the affine is unknown.
        problems: Everything the header alone shows, fatal or not.
    """

    path: Path
    shape: Index
    channels: int
    frames: int
    affine: Affine
    dtype: str
    modality: str
    kind: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    @property
    def sized(self) -> bool:
        """Whether its voxels have a known size."""
        return all(p.code != "spacing_unknown" for p in self.problems)

    def refuse(self) -> None:
        """Raise the first fatal problem, if there is one."""
        for problem in self.problems:
            if problem.fatal:
                raise Unsound(problem.code, problem.text, self.path)


def scan_suffix(path: Path) -> str:
    """The suffix in lower case, ``.nii.gz`` as one."""
    name = path.name.lower()
    if name.endswith(".gz"):
        return "." + ".".join(name.split(".")[-2:])
    return path.suffix.lower()


def scan_stem(path: Path) -> str:
    """The name without a scan's suffix; names of folders and of DICOM files whole."""
    suffix = scan_suffix(path)
    if suffix in _KINDS:
        return path.name[: -len(suffix)]
    return path.name


def is_known_suffix(path: Path) -> bool:
    """Whether the name claims a scan, of a kind that is read here or not."""
    suffix = scan_suffix(path)
    return suffix in _KINDS or suffix in _KNOWN_BUT_NOT_READ


def kind_of(path: Path) -> str:
    """Which reader a path needs.

    Raises:
        Unsound: ``missing``, ``unsupported``, or ``unreadable`` for no scan at all.
    """
    if is_series_path(path):
        return "dicom"
    if path.is_dir():
        return "zarr" if is_zarr(path) else "dicom"
    if is_special(path):
        raise Unsound("unreadable", SPECIAL, path)
    if not path.is_file():
        raise Unsound("missing", "no such file or folder.", path)
    suffix = scan_suffix(path)
    if suffix in _KINDS:
        return _KINDS[suffix]
    if suffix in _KNOWN_BUT_NOT_READ:
        name = _KNOWN_BUT_NOT_READ[suffix]
        raise Unsound("unsupported", f"{name} files are not read here.", path)
    if looks_like_dicom(path) or is_zip(path):
        return "dicom"
    raise Unsound("unreadable", "not a scan in a format that is read here.", path)


def is_scan_path(path: Path | str) -> bool:
    """Whether a path names something readable here: file, DICOM folder or series."""
    path = Path(path)
    try:
        if path.is_dir():
            return is_zarr(path) or any(_is_slice(p) for p in path.iterdir())
        kind_of(path)
    except (Unsound, OSError):
        return False
    return True


def _is_slice(path: Path) -> bool:
    try:
        return path.is_file() and looks_like_dicom(path)
    except OSError:
        return False


def there(path: Path) -> bool:
    """Whether there is such a file, folder or series; no name is too odd."""
    try:
        return path.exists() or is_series_path(path)
    except (OSError, ValueError):  # too long for a name, a null byte
        return False


def real_path(path: Path) -> Path:
    """Where a path leads; itself where its links go round in a circle."""
    return Path(os.path.realpath(path))


def is_special(path: Path) -> bool:
    """Whether a path is a pipe, a device or a socket: opening it may wait for ever."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def refuse_special(path: Path) -> None:
    """Raise UnusableInput for a pipe, a device or a socket."""
    if is_special(path):
        raise UnusableInput(f"{path}: {SPECIAL}")


def dicom_scans(
    folder: Path, *, straighten: bool = False
) -> tuple[list[Path], list[DicomFile]]:
    """A path for each DICOM scan lying in a folder, and its other DICOM objects.

    Args:
        folder: A folder, or a zip, DICOMDIR or file of several volumes.
        straighten: Scans that lean or are uneven go by a path that resamples them.
    """
    return scans_in(folder, read_slice, straighten=straighten)


def holds_several(path: Path) -> bool:
    """Whether one file holds several DICOM scans: a zip, a DICOMDIR, many volumes."""
    if is_series_path(path) or not path.is_file() or is_special(path):
        return False
    if is_zip(path) or is_index(path):
        return True
    try:
        plain = kind_of(path) != "dicom" or not read_dicom_file(path).frames
        return not plain and len(dicom_scans(path)[0]) > 1
    except (Unsound, OSError):
        return False


def straight_path(path: Path) -> Path:
    """The path by which a DICOM scan is read on a straight and even grid.

    The path itself where it needs none, or is no DICOM.
    """
    try:
        if kind_of(path) != "dicom":
            return path
        series, _ = open_series(path, read_slice)
    except (Unsound, OSError):
        return path
    place = split_series(path)[0]
    return series_path(place, series.key, straight=True) if series.mendable else path


def dicom_series(folder: Path) -> tuple[list[Series], list[DicomFile]]:
    """The series lying directly in a folder, the best first; other DICOM objects."""
    return series_of(folder, read_slice)


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
    if kind == "dicom":
        return _dicom_header(path)
    if kind in ("mgh", "zarr", "image2d"):
        return _stated_header(path, kind)
    text = read_text_header(path)
    plan = plan_voxels(text)
    problems = geometry_problems(text)
    if any(p.fatal for p in problems):
        return _blank_header(path, kind, problems)
    information = _itk_information(path)
    _check_agreement(plan, information)
    header = _decoded_header(path, kind, information, problems)
    return _of_segments(header) if segments_in(text.pairs) else header


def _dicom_header(path: Path) -> ScanHeader:
    """The header of a series, or of labels kept as DICOM."""
    one = not is_series_path(path) and looks_like_dicom(path)
    labels = read_dicom_labels(path, read_slice) if one else None
    if labels is None:
        series, others = open_series(path, read_slice)
        return _series_header(path, series, others)
    many = counted(len(labels.names), "class")
    text = f"labels of {many}, kept as DICOM; not a scan."
    problems = (Problem("label_map", text, False), *labels.problems)
    return ScanHeader(
        path, labels.shape, 1, 1, labels.affine, "uint16", "OTHER", "dicom",
        {SEGMENTS: True, "labels": labels}, problems,
    )  # fmt: skip


def image_of_dicom_labels(path: Path, *, straighten: bool = False) -> Path | None:
    """The path of the DICOM scan that a segmentation or contours were drawn on.

    None where it is not near the file. As in ``dicom_scans``, also for ``straighten``.
    """
    uids = referenced_series(path)
    found = image_of_labels(path, uids, read_slice, straighten=straighten)
    return None if found is None else found[0]


def names_in_dicom(path: Path) -> dict[int, str]:
    """What the values of labels kept as DICOM are called; empty for other files."""
    try:
        if not path.is_file() or kind_of(path) != "dicom":
            return {}
        labels = read_dicom_labels(path, read_slice)
    except (Unsound, OSError):
        return {}
    return {} if labels is None else dict(labels.names)


def _of_segments(header: ScanHeader) -> ScanHeader:
    """The header of a 3D Slicer segmentation: its layers become one label map."""
    rest = tuple(p for p in header.problems if p.code != "vector")
    return replace(header, channels=1, problems=rest, meta={SEGMENTS: True})


def _stated_header(path: Path, kind: str) -> ScanHeader:
    """The header of a FreeSurfer volume, a zarr or a picture, by their own readers."""
    read = {"mgh": read_mgh, "zarr": read_zarr, "image2d": read_picture}[kind]
    stated = read(path)
    problems = list(stated.problems)
    if kind != "image2d" and stated.channels > 1:
        text = f"{stated.channels} numbers per voxel, not one."
        problems.append(Problem("vector", text))
    if stated.dtype.startswith("complex"):
        text = "complex numbers, not one real number per voxel."
        problems.append(Problem("complex", text))
    if stated.frames > 1:
        problems.append(Problem("4d", _frames_text(stated.frames)))
    if stated.affine.shear > SHEAR_LIMIT:
        problems.append(Problem("sheared", shear_text(stated.affine.shear)))
    names = (scan_stem(path), path.parent.name, path.parent.parent.name)
    return ScanHeader(
        path, stated.shape, stated.channels, stated.frames, stated.affine,
        stated.dtype, modality_of_name(*names), stated.kind, {}, tuple(problems),
    )  # fmt: skip


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
        problems.append(Problem("4d", _frames_text(header.frames)))
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


def _series_header(path: Path, series: Series, others: list[Series]) -> ScanHeader:
    """The header of one series.

    Args:
        path: The requested path.
        series: What open_series chose.
        others: The series beside it; named in a remark when the path left the choice.
    """
    first = series.files[0]
    problems = list(series.problems)
    affine = series.affine or Affine.identity()
    dtype, channels = "int16", first.whole("samples", 1)
    if not any(p.fatal for p in problems):  # what is refused is not decoded
        try:
            dtype, channels = slice_information(series)
        except Exception as error:  # noqa: BLE001 - this series' fault only
            problems.append(problem_of(error))
        if channels > 1:
            problems.append(Problem("colour", "true colour, not one number per pixel."))
    if first.text("photometric") == "MONOCHROME1":
        text = "MONOCHROME1: bright and dark are swapped."
        problems.append(Problem("inverted", text, False))
    if others and not is_series_path(path):
        rest = "; ".join(s.title for s in others[:4])
        text = f"{len(others) + 1} series here: {series.title} taken, left: {rest}."
        problems.append(Problem("mixed_series", text, False))
    patient = first.text("patient")
    named = patient if patient.lower().rstrip("0123456789_ ") not in _NOBODY else ""
    if patient.isdigit() and patient.strip("0"):
        named = patient
    meta: dict[str, Any] = {
        "subject": named,
        "series": series.key,
        "files": tuple(map(str, series.paths)),
        "slices": series.files,
        "straight": series.straight,
        "description": series.description,
        "part": series.part,
    }
    if series.affine is None or any(p.code == "no_place" for p in problems):
        meta["placed"] = False
    return ScanHeader(
        path, series.shape, channels, 1, affine, dtype,
        modality_of_dicom(first.text("modality")), "dicom", meta, tuple(problems),
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
        problems.append(Problem("4d", _frames_text(frames)))
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


def _frames_text(frames: int) -> str:
    """The sentence for a scan with a fourth axis."""
    return f"4D: {frames} volumes (time, echo or direction), not one."


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
        yield from iter_zarr(header.path)
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
        "remarks": tuple(p.text for p in (*header.problems, *remarks)),
    }
    name = scan_stem(header.path)
    return Volume(data[None], header.affine, name, header.modality, meta)


def _values(header: ScanHeader) -> tuple[NDArray[Any], list[Problem]]:
    """(D, H, W) values and remarks made on the way."""
    path = header.path
    if header.kind in ("nifti", "analyze"):
        return read_nifti(read_nifti_header(path))[0, 0], []
    if header.kind == "dicom" and "labels" in header.meta:
        labels: DicomLabels = header.meta["labels"]
        return labels.values()
    if header.kind == "dicom":
        values = read_slices(header.meta["slices"])
        grid: StraightGrid | None = header.meta.get("straight")
        return (values if grid is None else grid.resampled(values)), []
    if SEGMENTS in header.meta:
        segments = segments_of(path)
        whole = read_voxels(_plan(path)).reshape(*header.shape, -1)
        if whole.shape[-1] > 1 or any(s.value != s.stored for s in segments):
            return one_map(whole, segments)
        return whole[..., 0], []
    if header.kind in ("nrrd", "metaimage"):
        return read_voxels(_plan(path)).reshape(header.shape), []
    if header.kind == "mgh":
        return mgh_values(path), []
    if header.kind == "zarr":
        return zarr_values(path), []
    array, remarks = picture_values(path, header.channels)
    return array.reshape(header.shape), remarks


def _plan(path: Path) -> VoxelPlan:
    """Where an NRRD or MetaImage file has its voxels; its whole header is checked."""
    return plan_voxels(read_text_header(path))
