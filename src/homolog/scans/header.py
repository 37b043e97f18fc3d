"""What is known of a scan before its values are read, and the kinds of scan files."""

from __future__ import annotations

import math
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine, Index
from homolog.scans.dicom_tags import looks_like_dicom
from homolog.scans.nifti import NiftiHeader, read_start
from homolog.scans.pictures import PICTURE_SUFFIXES
from homolog.scans.problems import SHEAR_LIMIT, Problem, Unsound, shear_text
from homolog.scans.volume import modality_of_name

_KINDS = {
    ".nii.gz": "nifti", ".nii": "nifti", ".hdr": "nifti", ".img": "nifti",
    ".hdr.gz": "nifti", ".img.gz": "nifti",
    ".nrrd": "nrrd", ".nhdr": "nrrd", ".mha": "metaimage", ".mhd": "metaimage",
    ".dcm": "dicom", ".dicom": "dicom", ".ima": "dicom",
    **dict.fromkeys(PICTURE_SUFFIXES, "image2d"),
}  # fmt: skip
_KNOWN_BUT_NOT_READ = {
    ".mgz": "FreeSurfer MGZ", ".mgh": "FreeSurfer MGH", ".mnc": "MINC",
    ".par": "Philips PAR/REC", ".ecat": "ECAT", ".v": "ECAT", ".head": "AFNI",
    ".mif": "MRtrix", ".mif.gz": "MRtrix", ".vmr": "BrainVoyager", ".gipl": "GIPL",
    ".vtk": "VTK", ".dcm.gz": "packed DICOM",
}  # fmt: skip
SCAN_SUFFIXES: tuple[str, ...] = tuple(_KINDS)

_SERIES_MARK = "series="
SPECIAL = "a pipe, device or socket, not a file."


@dataclass(frozen=True, eq=False)
class ScanHeader:
    """A scan without its values.

    Attributes:
        path: File, DICOM folder, or one series of it (see ``series_path``).
        shape: (D, H, W).
        channels: Numbers per voxel as stored; 3 or 4 for colour.
        frames: Length of the time (echo, direction) axis, 1 for a single volume.
        affine: Voxel -> mm; the identity where ``problems`` say it cannot be known.
        dtype: Number type of the values, e.g. ``"int16"``.
        modality: One of MODALITIES, as far as header and name tell.
        kind: ``nifti, analyze, nrrd, metaimage, dicom`` or ``image2d``.
        meta: What must survive until saving, and what the index wants to know:
            ``nifti_forms``, ``forms_affine``, ``subject``, ``series``, ``files``;
            ``placed`` is False where the affine says nothing.
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
    def is_2d(self) -> bool:
        """Whether the scan is a single picture."""
        return self.shape[0] == 1 and self.frames == 1

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


def kind_of(path: Path) -> str:
    """Which reader a path needs.

    Raises:
        Unsound: ``missing``, ``unsupported``, or ``unreadable`` for no scan at all.
    """
    if is_series_path(path) or path.is_dir():
        return "dicom"
    if is_special(path):
        raise Unsound("unreadable", SPECIAL, path)
    if not path.is_file():
        raise Unsound("missing", "no such file or folder.", path)
    suffix = scan_suffix(path)
    if suffix in _KINDS:
        return _KINDS[suffix]
    if suffix in _KNOWN_BUT_NOT_READ:
        name = _KNOWN_BUT_NOT_READ[suffix]
        text = f"{name} files are not read here.{_frames_of_mgh(path)}"
        raise Unsound("unsupported", text, path)
    if looks_like_dicom(path):
        return "dicom"
    raise Unsound("unreadable", "not a scan in a format that is read here.", path)


def _frames_of_mgh(path: Path) -> str:
    """The other reason an MGH file could not be taken, were the format read."""
    if scan_suffix(path) not in (".mgz", ".mgh"):
        return ""
    start = read_start(path, 20)
    if len(start) < 20:
        return ""
    frames = int(struct.unpack(">5i", start)[4])
    return f" This one is 4D ({frames} volumes) besides." if frames > 1 else ""


def there(path: Path) -> bool:
    """Whether there is such a file, folder or series; no name is too odd to ask."""
    try:
        return path.exists() or is_series_path(path)
    except (OSError, ValueError):  # too long for a name, a null byte
        return False


def is_scan_path(path: Path | str) -> bool:
    """Whether a path names something readable here: file, DICOM folder or series."""
    path = Path(path)
    try:
        if path.is_dir():
            return any(_is_slice(p) for p in path.iterdir())
        kind_of(path)
    except (Unsound, OSError):
        return False
    return True


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


def _is_slice(path: Path) -> bool:
    try:
        return path.is_file() and looks_like_dicom(path)
    except OSError:
        return False


def refuse_special(path: Path) -> None:
    """Raise UnusableInput for a pipe, a device or a socket."""
    if is_special(path):
        raise UnusableInput(f"{path}: {SPECIAL}")


def is_known_suffix(path: Path) -> bool:
    """Whether the name claims a scan, of a kind that is read here or not."""
    suffix = scan_suffix(path)
    return suffix in _KINDS or suffix in _KNOWN_BUT_NOT_READ


def series_path(folder: Path, key: str) -> Path:
    """The path that stands for one series of a DICOM folder holding several."""
    return folder / f"{_SERIES_MARK}{key}"


def is_series_path(path: Path) -> bool:
    """Whether a path was made by series_path."""
    return (
        path.name.startswith(_SERIES_MARK)
        and not path.exists()
        and path.parent.is_dir()
    )


def split_series(path: Path) -> tuple[Path, str]:
    """Folder and series key; the key is "" for a plain folder."""
    if is_series_path(path):
        return path.parent, path.name[len(_SERIES_MARK) :]
    return path, ""


def nifti_scan_header(
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


def frames_text(frames: int) -> str:
    """The sentence for a scan with a fourth axis."""
    return f"4D: {frames} volumes (time, echo or direction), not one."


def blank_header(path: Path, kind: str, problems: list[Problem]) -> ScanHeader:
    """For a header too faulty to be measured."""
    unknown = Affine.identity()
    return ScanHeader(
        path, (0, 0, 0), 1, 1, unknown, "", "OTHER", kind, {}, tuple(problems)
    )


def decoded_header(
    path: Path,
    kind: str,
    information: tuple[Affine, tuple[int, ...], str, int],
    problems: list[Problem],
) -> ScanHeader:
    """The header of a file that SimpleITK decodes.

    Args:
        path: The file.
        kind: ``nrrd, metaimage`` or ``image2d``.
        information: Affine, sizes (x, y, z, t), number type, channels.
        problems: What the text header showed.
    """
    affine, sizes, dtype, channels = information
    problems = list(problems)
    if kind == "image2d":
        affine = Affine.identity()  # dots per inch of a screen are no size in a body
        text = "no voxel size in this kind of file; 1 mm taken."
        problems.append(Problem("spacing_unknown", text, False))
    elif channels > 1:
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
