"""What can be wrong with a scan: a short code and one sentence.

Codes are stable words for programs (a store's ``rejected.json``, tests); texts are for
people. ``fatal`` problems keep a scan out of the store, the others are remarks.
"""

from __future__ import annotations

import errno
import math
from dataclasses import dataclass
from pathlib import Path

from homolog.errors import JobError, UnusableInput
from homolog.memory import free_bytes
from homolog.words import human_bytes

# A larger cosine between two axes than float rounding and ITK's own tolerance explain.
SHEAR_LIMIT = 5e-4
# Characters of an unexpected error that are shown.
_TEXT_MOST = 300
# Errors of the system that only writing meets.
_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

CODES: dict[str, str] = {
    "missing": "the file, or one it needs, is not there",
    "empty": "no bytes or no voxels",
    "unreadable": "not what its name says, or damaged beyond reading",
    "unsupported": "a known format or number type that is not read here",
    "truncated": "the file ends before its data do",
    "too_large": "more voxels than the free memory holds",
    "corrupt": "a checksum does not match, or compressed data do not decode",
    "nonfinite": "NaN or infinity among the stored values",
    "spacing": "voxel size missing, zero, negative or contradictory",
    "affine": "voxel axes are not independent or not finite",
    "sheared": "voxel axes are not at right angles",
    "4d": "several volumes over time, echo or direction",
    "complex": "complex numbers",
    "colour": "true colour",
    "vector": "several numbers per voxel",
    "constant": "the same value everywhere",
    "not_an_image": "DICOM object without a scan (contours, reports, photographs)",
    "capture": "a secondary capture: a picture of a screen or paper, not a scan",
    "no_place": "a DICOM slice that does not say where it lies or how it is turned",
    "mosaic": "many slices tiled into one picture (Siemens)",
    "multi_frame": "many slices in one DICOM file, which does not say where they lie",
    "missing_slice": "a DICOM series with a gap",
    "uneven_slices": "a DICOM series with uneven steps",
    "duplicate_slice": "two DICOM slices at the same place",
    "mixed_series": "a folder or series that holds several scans",
    "localiser": "a localiser (scout) of another scan",
    "label_unreadable": "the label file cannot be used",
    "label_shape": "label grid of another size than the image",
    "label_affine": "label grid lies elsewhere than the image",
    "label_values": "label values are not whole numbers",
    "label_names": "labels that cannot be brought together with those of other files",
    "channel_grid": "a channel that lies on another grid than the first of its case",
    "duplicate": "the same scan came before",
    "manifest": "a line of a manifest that cannot be used",
    # remarks
    "contours": "contours that lie in no slice of their scan, left out",
    "overlap": "segments that overlap; a voxel went to the smallest of its segments",
    "nan_filled": "NaN or infinite values that were filled, as asked",
    "turned": "a picture that was turned upright, as its EXIF tag says",
    "misnamed": "the content is of another format than the name says; read by content",
    "label_map": "values of a mask or label map; no scan to learn from",
    "orientation_varies": "slices turned a little against each other; mean taken",
    "part": "one of several volumes of a series (echo, time, type, b-value)",
    "steps_vary": "slices a little off their even places; the mean is taken",
    "straightened": "resampled once to a straight, even grid, as was asked",
    "secondary": "slices rewritten by a program, not as the scanner wrote them",
    "oblique": "rotated against the body axes; sound",
    "spacing_unknown": "no voxel size in this kind of file; 1 mm taken",
    "orientation_unknown": "the header does not say where left and right are",
    "forms_disagree": "the NIfTI header describes two different places",
    "units": "lengths were not in millimetres; converted",
    "grey_as_colour": "colour file with equal channels; read as grey",
    "modality_doubt": "the values do not fit the modality the header names",
    "inverted": "bright and dark are swapped (MONOCHROME1)",
    "trailing": "bytes after the end of the data",
}


@dataclass(frozen=True)
class Problem:
    """One finding about one scan.

    Attributes:
        code: A key of CODES.
        text: One sentence for people, without the file's name.
        fatal: Whether the scan must not be used.
    """

    code: str
    text: str
    fatal: bool = True

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"unknown problem code {self.code!r}.")


class Unsound(UnusableInput):
    """A scan that cannot be used, with the code of the reason."""

    def __init__(self, code: str, text: str, path: object = "") -> None:
        self.problem = Problem(code, text)
        super().__init__(f"{path}: {text}" if str(path) else text)


def problem_of(error: Exception) -> Problem:
    """Whatever went wrong with one file, as that file's finding.

    Every loop over files of others catches ``Exception`` and comes here, so a fault
    that nobody thought of costs its own file and no other. A stop by the user is no
    ``Exception`` and passes.
    """
    if isinstance(error, Unsound):
        return error.problem
    if isinstance(error, MemoryError):
        return Problem("unreadable", "it does not fit into memory.")
    if isinstance(error, RecursionError):
        return Problem("unreadable", "its parts are nested too deeply.")
    if isinstance(error, OSError):
        done = "written" if error.errno in _WRITING else "read"
        return Problem("unreadable", f"cannot be {done}: {error.strerror or error}.")
    text = " ".join(str(error).split())[:_TEXT_MOST] or "no reason given"
    if not isinstance(error, UnusableInput | JobError):
        text = f"cannot be used ({type(error).__name__}: {text})."
    return Problem("unreadable", text)


def sentence_of(error: Exception) -> str:
    """As ``problem_of``, with the file's name where the error holds it."""
    expected = isinstance(error, UnusableInput | JobError)
    return str(error) if expected else problem_of(error).text


def shear_text(cosine: float) -> str:
    """The sentence for axes that are not at right angles."""
    degrees = math.degrees(math.acos(min(cosine, 1.0)))
    return f"voxel axes meet at {degrees:.1f} degrees, not at right angles."


def frames_text(frames: int) -> str:
    """The sentence for a scan with a fourth axis."""
    return f"4D: {frames} volumes (time, echo or direction), not one."


def filled_text(count: int, of: int, value: float) -> str:
    """What was done to values that are no numbers, without a full stop."""
    return f"{count} values ({100.0 * count / of:.2g} %) were no numbers, now {value:g}"


# Smaller arrays are made without a look at the free memory.
_SMALL = 1 << 26


def check_room(nbytes: int, path: Path) -> None:
    """Refuse an array that the free memory cannot hold.

    Raises:
        Unsound: ``too_large``.
    """
    if nbytes <= _SMALL:
        return
    free = free_bytes()
    if free and nbytes > free:
        text = f"its voxels need {human_bytes(nbytes)} of memory, {human_bytes(free)} "
        raise Unsound("too_large", f"{text}are free.", path)
