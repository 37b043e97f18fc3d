"""What a path names: which kind of scan, by its name and its first bytes; no more.

Also the paths that name a part: one series of a folder of DICOM files.
"""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

from homolog.errors import UnusableInput
from homolog.scans.problems import Unsound
from homolog.scans.volume import PICTURE_SUFFIXES

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
_ZARR_MARKS = (".zgroup", ".zarray", "zarr.json")
_DICOM_SUFFIXES = ("", ".dcm", ".dicom", ".ima")
_SERIES_MARK, _STRAIGHT_MARK = "series=", "+straight"
# Files in a zip that are asked for DICOM's mark before it is left.
_ASKED = 40


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
            return is_zarr(path) or any(is_slice(p) for p in path.iterdir())
        kind_of(path)
    except (Unsound, OSError):
        return False
    return True


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


def is_zarr(folder: Path) -> bool:
    """Whether a folder is a zarr group or array."""
    try:
        return any((folder / mark).is_file() for mark in _ZARR_MARKS)
    except OSError:
        return False


# ---- DICOM ---------------------------------------------------------------------------


def looks_like_dicom(path: Path) -> bool:
    """Whether the file carries DICOM's mark (or claims to by its name)."""
    if not path.is_file():
        return False  # a pipe or device, which may never give a byte
    with path.open("rb") as file:
        return starts_like_dicom(path, file.read(132))


def is_slice(path: Path) -> bool:
    """As ``looks_like_dicom``; False where the file cannot be read."""
    try:
        return looks_like_dicom(path)
    except OSError:
        return False


def starts_like_dicom(path: Path, start: bytes) -> bool:
    """The same by a file's first 132 bytes."""
    if start[128:132] == b"DICM":
        return True
    named = path.suffix.lower() in (".dcm", ".dicom", ".ima")
    little, big = b"\x08\x00", b"\x00\x08"
    first = start[:2] in (little, b"\x02\x00") and start[3:4] == b"\0"
    return named and (first or (start[:2] == big and start[2:3] == b"\0"))


def is_zip(path: Path) -> bool:
    """Whether a file is a zip that holds DICOM files."""
    if path.suffix.lower() != ".zip" or not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as packed:
            for info in [i for i in packed.infolist() if may_be_dicom(i)][:_ASKED]:
                with packed.open(info) as file:
                    if file.read(132)[128:] == b"DICM":
                        return True
    except (OSError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile):
        return False
    return False


def may_be_dicom(info: zipfile.ZipInfo) -> bool:
    """Whether a file in a zip may be a slice, by its name."""
    name = Path(info.filename).name
    hidden = name.startswith((".", "_")) or "__MACOSX" in info.filename
    encrypted = info.flag_bits & 1
    return not (info.is_dir() or hidden or encrypted) and claims_dicom(
        Path(name.replace(".", "") if name[:1].isdigit() else name)
    )


def series_path(folder: Path, key: str, *, straight: bool = False) -> Path:
    """The path that stands for one series of a DICOM folder holding several.

    Args:
        folder: Folder, zip, DICOMDIR or file of several volumes.
        key: Of the series.
        straight: Its slices are resampled to a straight and even grid when read.
    """
    return folder / f"{_SERIES_MARK}{key}{_STRAIGHT_MARK if straight else ''}"


def is_series_path(path: Path) -> bool:
    """Whether a path was made by series_path."""
    return (
        path.name.startswith(_SERIES_MARK)
        and not _exists(path)
        and (path.parent.is_dir() or path.parent.is_file())
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def split_series(path: Path) -> tuple[Path, str]:
    """Folder and series key; the key is "" for a plain folder."""
    if is_series_path(path):
        key = path.name[len(_SERIES_MARK) :]
        return path.parent, key.removesuffix(_STRAIGHT_MARK)
    return path, ""


def is_straight(path: Path) -> bool:
    """Whether a path asks for slices on a straight and even grid."""
    return is_series_path(path) and path.name.endswith(_STRAIGHT_MARK)


def claims_dicom(path: Path) -> bool:
    """Whether a file that cannot be opened would have been a slice, by its name."""
    return path.suffix.lower() in _DICOM_SUFFIXES
