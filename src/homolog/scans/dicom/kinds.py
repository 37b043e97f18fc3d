"""What a DICOM file holds: a slice of a scan, another picture, labels, or no picture.

DICOM carries far more than scans: contours, reports, photographs, pictures of screens.
Whatever holds pixels would become a training case if the header were not read. File
names mean nothing here; where an anonymiser took the class away, the modality decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from homolog.scans.problems import Problem
from homolog.words import counted

_STORAGE = "1.2.840.10008.5.1.4.1.1."
# Parts of _STORAGE, the longest beginning wins: objects that hold no picture.
_NO_PICTURE = {
    "4.2": "MR spectra", "9": "a waveform (ECG, audio)",
    "11": "a presentation state", "66": "raw data",
    "66.1": "a spatial registration", "66.2": "spatial fiducials",
    "66.3": "a deformable registration", "66.4": "a DICOM segmentation",
    "66.5": "a surface segmentation", "66.6": "fibre tracts",
    "66.7": "a DICOM segmentation", "67": "a table of real-world values",
    "68": "a surface scan", "78": "ophthalmic measurements",
    "79": "ophthalmic measurements", "80": "ophthalmic measurements",
    "88": "a structured report", "90": "an assessment", "104": "a document",
    "104.1": "a PDF document", "104.2": "a clinical document (CDA)",
    "104.3": "a 3D model", "104.4": "a 3D model", "104.5": "a 3D model",
    "129": "a PET curve", "131": "a display layout", "200": "a procedure record",
    "201": "a procedure record", "481.2": "an RT dose grid",
    "481.3": "an RT structure set (contours)", "481.4": "an RT treatment record",
    "481.5": "an RT plan", "481.6": "an RT treatment record",
    "481.7": "an RT treatment record", "481.8": "an RT plan",
    "481.9": "an RT treatment record",
}  # fmt: skip
_NO_PICTURE_UIDS = {
    "1.2.840.10008.1.3.10": "a DICOMDIR index",
    "1.3.12.2.1107.5.9.1": "Siemens data that are no image",
}
# Objects that hold a picture of something else than the inside of a body.
_OTHER_PICTURES = {
    "77.1": "a photograph", "77.1.1": "an endoscopic picture",
    "77.1.1.1": "an endoscopic video", "77.1.2": "a microscopic picture",
    "77.1.2.1": "a microscopic video", "77.1.3": "a microscopic picture",
    "77.1.4": "a photograph", "77.1.4.1": "a video",
    "77.1.5": "an ophthalmic photograph", "77.1.5.4": "an ophthalmic tomogram (OCT)",
    "77.1.6": "a whole-slide microscopic image", "77.1.7": "a photograph of the skin",
    "81": "a thickness map of the eye", "82": "a map of the cornea",
    "481.1": "an RT image (portal or simulator picture)",
}  # fmt: skip
# The same by modality, for objects whose class was taken away.
_NO_PICTURE_MODALITIES = {
    "RTSTRUCT": "an RT structure set (contours)", "RTDOSE": "an RT dose grid",
    "RTPLAN": "an RT plan", "RTRECORD": "an RT treatment record",
    "SEG": "a DICOM segmentation", "REG": "a spatial registration",
    "SR": "a structured report", "PR": "a presentation state",
    "KO": "a selection of key images", "ECG": "a waveform (ECG, audio)",
    "FID": "spatial fiducials", "PLAN": "a plan",
}  # fmt: skip
_OTHER_MODALITIES = {
    "SM": "a whole-slide microscopic image", "GM": "a microscopic picture",
    "XC": "a photograph", "ES": "an endoscopic picture",
    "OP": "an ophthalmic photograph", "OPT": "an ophthalmic tomogram (OCT)",
    "OPM": "a map of the eye", "DOC": "a document",
    "RTIMAGE": "an RT image (portal or simulator picture)",
    "DMS": "a photograph of the skin",
}  # fmt: skip

_CAPTURES = "7"
# Classes whose frames state their positions one by one, in functional groups.
_ENHANCED = {
    "2.1", "2.2", "4.1", "4.3", "4.4", "6.2", "13.1.1", "13.1.2", "13.1.3", "13.1.4",
    "13.1.5", "14.1", "14.2", "30", "128.1", "130",
}  # fmt: skip
# Pictures that lie nowhere: a beam or a probe made them, not a stack of slices.
_FLAT_CLASSES = ("1", "3", "6", "12")
_XRAY_MODALITIES = {"CR", "DX", "MG", "IO", "PX", "RG", "XA", "RF"}
_FLAT_MODALITIES = {*_XRAY_MODALITIES, "US", "NM"}
# Their frames are moments.
_FILM_CLASSES = ("3", "6", "12")
_FILM_MODALITIES = {"US", "XA", "RF", "DX", "CR"}
_SCREEN_WORDS = {
    "SCREEN SAVE", "SCREENSAVE", "SCREENSHOT", "SCREEN SHOT", "SCREEN CAPTURE",
    "SCREEN_CAPTURE", "CSA REPORT", "DOSE_INFO", "DOSE INFO", "DOSE REPORT",
}  # fmt: skip

# What to do about files whose slices are packed in a way that is not read here.
_CONVERT = "convert it to NIfTI first (dcm2niix does)"


@dataclass(frozen=True)
class DicomFile:
    """One file's tags (see ``header``), or those of one frame of it.

    Attributes:
        path: The file.
        tags: Name -> text as stored, blanks stripped.
        has_pixels: Whether pixel data were met.
        damage: What is wrong with the file itself, if anything.
        frames: What each frame of an enhanced file says of itself.
        frame: Which frame of the file this is; None for the file as a whole.
    """

    path: Path
    tags: Mapping[str, str] = field(default_factory=dict)
    has_pixels: bool = False
    damage: Problem | None = None
    frames: tuple[Mapping[str, str], ...] = ()
    frame: int | None = None

    def text(self, name: str) -> str:
        """A tag's text, "" when absent."""
        return self.tags.get(name, "")

    def numbers(self, name: str, count: int) -> tuple[float, ...] | None:
        """A tag's numbers; None unless exactly ``count`` finite ones can be read."""
        try:
            found = tuple(float(v) for v in self.text(name).split("\\"))
        except ValueError:
            return None
        if len(found) != count or not all(math.isfinite(v) for v in found):
            return None
        return found

    def whole(self, name: str, default: int) -> int:
        """A tag's whole number."""
        try:
            return int(self.text(name))
        except ValueError:
            return default

    def each_frame(self) -> list[DicomFile]:
        """The frames, each as if it were a file of one picture."""
        return [
            DicomFile(
                self.path,
                {
                    **self.tags, "frames": "1", **own,
                    "sop_uid": f"{self.text('sop_uid')}#{number}",
                },
                self.has_pixels, self.damage, (), number,
            )
            for number, own in enumerate(self.frames)
        ]  # fmt: skip

    @cached_property
    def other_object(self) -> str:
        """What the file holds instead of an image, "" for images."""
        return other_object(self)


def other_object(file: DicomFile) -> str:
    """What a file holds instead of a picture, "" for pictures."""
    uid = file.text("sop_class")
    if uid in _NO_PICTURE_UIDS:
        return _NO_PICTURE_UIDS[uid]
    kind = _by_class(uid, _NO_PICTURE)
    if not uid:
        kind = _NO_PICTURE_MODALITIES.get(_modality(file), "")
    if kind:
        return kind
    return "" if file.has_pixels or file.damage else "no pixels"


def not_a_scan(file: DicomFile) -> Problem | None:
    """Why a picture must not be taken for a scan; None when it may be one."""
    uid = file.text("sop_class")
    kind = _by_class(uid, _OTHER_PICTURES)
    if not uid:
        kind = _OTHER_MODALITIES.get(_modality(file), "")
    if kind:
        return Problem("not_an_image", f"holds {kind}, not a scan.")
    for check in (_capture, _mosaic, _many_frames):
        problem = check(file)
        if problem is not None:
            return problem
    return None


def is_capture(file: DicomFile) -> bool:
    """Whether the file is of the class of secondary captures."""
    uid = file.text("sop_class")
    if not uid:  # only this class has the tag
        return bool(file.text("conversion"))
    return _by_class(uid, {_CAPTURES: "capture"}) != ""


def is_flat(file: DicomFile) -> bool:
    """Whether it is one of the pictures that need no place: X-ray, ultrasound."""
    if is_capture(file):
        return _modality(file) in _XRAY_MODALITIES
    uid = file.text("sop_class")
    if any(_is_class(uid, part) for part in _FLAT_CLASSES):
        return True
    return _modality(file) in _FLAT_MODALITIES


def holds_segments(file: DicomFile) -> bool:
    """Whether it is a DICOM segmentation (SEG)."""
    uid = file.text("sop_class")
    return uid in (_STORAGE + "66.4", _STORAGE + "66.7") or (
        not uid and _modality(file) == "SEG"
    )


def holds_contours(file: DicomFile) -> bool:
    """Whether it is an RT structure set."""
    uid = file.text("sop_class")
    return uid == _STORAGE + "481.3" or (not uid and _modality(file) == "RTSTRUCT")


def is_placed(file: DicomFile) -> bool:
    """Whether the header states position and orientation."""
    return (
        file.numbers("position", 3) is not None
        and file.numbers("orientation", 6) is not None
    )


def _capture(file: DicomFile) -> Problem | None:
    words = {w.strip().upper() for w in file.text("image_type").split("\\")}
    screen = words & _SCREEN_WORDS
    if screen:
        text = f"a picture of a screen ({min(screen)}), not a scan."
        return Problem("capture", text)
    if not is_capture(file):
        return None
    frames = file.whole("frames", 1)
    if frames > 1:
        text = f"a secondary capture of {frames} frames, not a scan."
        return Problem("capture", text)
    placed = is_placed(file) and file.numbers("spacing", 2) is not None
    measured = any(file.numbers(n, 2) for n in ("spacing", "imager_spacing", "film"))
    if placed or (is_flat(file) and measured):
        return None  # volumes and X-rays that a program wrote anew
    text = (
        "a secondary capture (a picture of a screen or paper) without position or "
        "pixel spacing, not a scan."
    )
    return Problem("capture", text)


def _mosaic(file: DicomFile) -> Problem | None:
    words = {w.strip().upper() for w in file.text("image_type").split("\\")}
    siemens = file.text("csa_creator").upper().startswith("SIEMENS MR HEADER")
    tiles = file.whole("mosaic_tiles", 0) if siemens else 0
    if "MOSAIC" not in words and tiles < 2:
        return None
    count = f"{tiles} slices" if tiles > 1 else "slices"
    size = f"{file.whole('rows', 0)} x {file.whole('columns', 0)}"
    text = f"a Siemens mosaic: {count} tiled into one {size} picture; {_CONVERT}."
    return Problem("mosaic", text)


def _many_frames(file: DicomFile) -> Problem | None:
    if file.frame is not None:
        return None  # it states its own place
    frames, uid = file.whole("frames", 1), file.text("sop_class")
    enhanced = uid in {_STORAGE + part for part in _ENHANCED}
    film = not uid and _modality(file) in _FILM_MODALITIES
    film |= any(_is_class(uid, part) for part in _FILM_CLASSES) and not enhanced
    inside = enhanced or (not film and file.text("functional_groups") != "")
    if frames <= 1 and not inside:
        return None
    if film:
        return Problem("4d", f"a film of {frames} frames, not one scan.")
    kind = "an enhanced file" if inside else "a file"
    text = f"{kind} of {counted(frames, 'frame')} that does not say where they lie."
    return Problem("multi_frame", text)


def _modality(file: DicomFile) -> str:
    return file.text("modality").strip().upper()


def _is_class(uid: str, part: str) -> bool:
    whole = _STORAGE + part
    return uid == whole or uid.startswith(whole + ".")


def _by_class(uid: str, table: dict[str, str]) -> str:
    """A table's entry for the longest beginning of a class."""
    if not uid.startswith(_STORAGE):
        return ""
    parts = uid[len(_STORAGE) :].split(".")
    for count in range(len(parts), 0, -1):
        kind = table.get(".".join(parts[:count]))
        if kind:
            return kind
    return ""
