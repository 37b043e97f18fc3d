"""The tags of one DICOM file: what kind of object it is, where its slice lies.

A small reader of its own: it distinguishes a cut-off file from a foreign one and
contours from images, which GDCM does not, and needs a fraction of a millisecond per
file. Of a file it reads the header and no more: pixels are decoded elsewhere, by
SimpleITK, and only once the file is known to hold what its header promises.

DICOM carries far more than scans: contours, reports, photographs, pictures of screens.
Whatever holds pixels would become a training case if the header were not read. File
names mean nothing here; where an anonymiser took the class away, the modality decides.
"""

from __future__ import annotations

import contextlib
import math
import struct
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Protocol

from homolog.scans.problems import Problem, Unsound
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
    text = (
        f"{kind} of {counted(frames, 'frame')}: where its frames lie is not "
        f"read here; {_CONVERT}."
    )
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


_NAMES = {
    0x00080008: "image_type", 0x00080016: "sop_class", 0x00080018: "sop_uid",
    0x00080060: "modality", 0x00080064: "conversion", 0x0008103E: "description",
    0x00100020: "patient", 0x00180022: "scan_options", 0x00180050: "thickness",
    0x00180088: "step", 0x00181164: "imager_spacing", 0x00182010: "film",
    0x00190010: "csa_creator", 0x0019100A: "mosaic_tiles",
    0x0020000D: "study", 0x0020000E: "series", 0x00200012: "acquisition",
    0x00200013: "instance", 0x00200032: "position", 0x00200037: "orientation",
    0x00280002: "samples", 0x00280004: "photometric", 0x00280008: "frames",
    0x00280010: "rows", 0x00280011: "columns", 0x00280030: "spacing",
    0x00280100: "bits", 0x00281053: "slope", 0x00281052: "intercept",
}  # fmt: skip
_SHORTS = {"samples", "rows", "columns", "bits", "mosaic_tiles"}
# Sequences whose presence means that each frame states its own position.
_FUNCTIONAL_GROUPS = {0x52009229, 0x52009230}
# Where an ultrasound picture states its size: one item per part of the screen.
_REGIONS = 0x00186011
_REGION_TAGS = {0x00186024: "H", 0x00186026: "H", 0x0018602C: "d", 0x0018602E: "d"}
_CENTIMETRES = 3
_PIXELS = {0x7FE00008, 0x7FE00009, 0x7FE00010}
_LONG_VR = {
    b"OB",
    b"OW",
    b"OF",
    b"OD",
    b"OL",
    b"OV",
    b"SQ",
    b"UT",
    b"UN",
    b"UC",
    b"UR",
    b"UV",
    b"SV",
}
_LITTLE, _BIG = struct.Struct("<HH2sHI"), struct.Struct(">HH2sHI")
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_OPEN = 0xFFFFFFFF

# No tag read here is longer; a longer one is damage, and is not taken into memory.
_TEXT_MOST = 1 << 16
# Sequences within sequences, at most.
_DEPTH_MOST = 64
# Bytes fetched at once.
_WINDOW = 1 << 16
# What lies before the pixels of a deflated file, and after them, at most.
_HEADER_MOST, _REST_MOST = 1 << 26, 1 << 24
# Packed pixels that claim to be more than this and more than _RATIO_MOST times the
# file are no picture but a trap for the memory: lossless codecs reach 3, JPEG 100.
_LARGE, _RATIO_MOST = 1 << 28, 1000


@dataclass(frozen=True)
class DicomFile:
    """One file's tags.

    Attributes:
        path: The file.
        tags: Name (see _NAMES) -> text as stored, blanks stripped.
        has_pixels: Whether pixel data were met.
        damage: What is wrong with the file itself, if anything.
    """

    path: Path
    tags: dict[str, str] = field(default_factory=dict)
    has_pixels: bool = False
    damage: Problem | None = None

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

    @cached_property
    def other_object(self) -> str:
        """What the file holds instead of an image, "" for images."""
        return other_object(self)


def looks_like_dicom(path: Path) -> bool:
    """Whether the file carries DICOM's mark (or claims to by its name)."""
    if not path.is_file():
        return False  # a pipe or device, which may never give a byte
    with path.open("rb") as file:
        return _starts_like_dicom(path, file.read(132))


def _starts_like_dicom(path: Path, start: bytes) -> bool:
    if start[128:132] == b"DICM":
        return True
    named = path.suffix.lower() in (".dcm", ".dicom", ".ima")
    return named and start[:2] == b"\x08\x00" and start[3:4] == b"\x00"


def read_dicom_file(path: Path) -> DicomFile:
    """Tags of one file, up to its pixels; damage is recorded, not raised.

    Raises:
        Unsound: ``empty``, or ``unreadable`` when it is no DICOM file at all.
    """
    size = path.stat().st_size
    if not size:
        raise Unsound("empty", "the file has 0 bytes.", path)
    with path.open("rb") as file:
        plain = _Plain(file, size)
        if not _starts_like_dicom(path, plain.at(0, 132)):
            raise Unsound("unreadable", "no DICOM mark (DICM) in the file.", path)
        reader = _Reader(plain, size)
        try:
            reader.run()
        except (_CutError, struct.error):
            text = "the DICOM file ends before its data do."
            reader.damage = Problem("truncated", text)
        except (zlib.error, _DamageError) as error:
            text = f"the DICOM file is damaged ({error})."
            reader.damage = Problem("corrupt", text)
    return DicomFile(path, reader.tags, reader.has_pixels, reader.damage)


class _CutError(Exception):
    pass


class _DamageError(Exception):
    pass


class _Bytes(Protocol):
    """Bytes that are fetched when they are needed."""

    def at(self, start: int, count: int) -> bytes:
        """Up to ``count`` bytes; fewer at the end."""

    def reaches(self, end: int) -> bool:
        """Whether there are at least ``end`` bytes."""


class _Plain:
    """A file as it is, through a window."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self._start, self._window = 0, b""

    def at(self, start: int, count: int) -> bytes:
        offset = start - self._start
        if offset < 0 or offset + count > len(self._window):
            self._file.seek(start)
            self._start, offset = start, 0
            self._window = self._file.read(max(count, _WINDOW))
        return self._window[offset : offset + count]

    def reaches(self, end: int) -> bool:
        return end <= self._size


class _Inflated:
    """A deflated file: its beginning is kept, the rest unpacked, counted, dropped."""

    def __init__(self, packed: _Bytes, start: int) -> None:
        self._inflater = zlib.decompressobj(-15)
        self._head = bytearray()
        self._packed, self._next = packed, start
        self._count = 0
        self.keep = True

    def at(self, start: int, count: int) -> bytes:
        self.reaches(start + count)
        if start + count > len(self._head) < self._count:
            raise _DamageError("its header is too large")
        return bytes(self._head[start : start + count])

    def reaches(self, end: int) -> bool:
        while self._count < end and not self._inflater.eof:
            packed = self._inflater.unconsumed_tail
            if not packed:
                packed = self._packed.at(self._next, _WINDOW)
                self._next += len(packed)
            piece = self._inflater.decompress(packed, 1 << 20)
            if not packed and not piece:
                raise _CutError
            self._count += len(piece)
            if self.keep and len(self._head) < _HEADER_MOST:
                self._head += piece
        return end <= self._count


class _Reader:
    """Walks the elements of one file."""

    def __init__(self, data: _Bytes, size: int) -> None:
        self.data = data
        self.size = size
        self.tags: dict[str, str] = {}
        self.has_pixels = False
        self.damage: Problem | None = None
        self.explicit = True
        self.order = "<"
        self.packed = False
        self._regions: list[tuple[float, float] | None] = []

    def run(self) -> None:
        at = 132 if self.data.at(128, 4) == b"DICM" else 0
        at, syntax = self._meta(at)
        self.packed = syntax not in (
            "", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2",
        )  # fmt: skip
        if syntax == "1.2.840.10008.1.2":
            self.explicit = False
        elif syntax == "1.2.840.10008.1.2.2":
            self.order = ">"
        elif syntax == "1.2.840.10008.1.2.1.99":
            self.data, at = _Inflated(self.data, at), 0
        elif not syntax:
            self.explicit = self.data.at(at + 4, 2).isalpha()
        while self.data.reaches(at + 1):
            tag, _, length, at = self._element(at)
            if tag in _PIXELS:
                self.has_pixels = True
                self._pixels(at, length)
                return
            if tag in _FUNCTIONAL_GROUPS:
                self.tags["functional_groups"] = "yes"
            if tag == _REGIONS:
                with contextlib.suppress(struct.error, _CutError, _DamageError):
                    self._read_regions(at, length)
            if length == _OPEN:
                at = self._skip_sequence(at)
                continue
            if isinstance(self.data, _Inflated) and at + length > _HEADER_MOST:
                raise _DamageError("its header is too large")
            if not self.data.reaches(at + length):
                raise _CutError
            name = _NAMES.get(tag)
            if name and length > _TEXT_MOST:
                raise _DamageError(f"tag {tag:08x} says it has {length} bytes")
            if name:
                value = self._value(name, self.data.at(at, length))
                self.tags[name] = value or self.tags.get(name, "")
            at += length

    def _meta(self, at: int) -> tuple[int, str]:
        syntax = ""
        while self.data.at(at, 2) == b"\x02\x00":
            tag, _, length, at = self._element(at)
            if not self.data.reaches(at + length):
                raise _CutError
            value = self.data.at(at, min(length, _TEXT_MOST))
            if tag == 0x00020010:
                syntax = value.decode("latin-1").strip("\0 ")
            elif tag == 0x00020002:  # a DICOMDIR states its class nowhere else
                self.tags["sop_class"] = value.decode("latin-1").strip("\0 ")
            at += length
        return at, syntax

    def _element(self, at: int) -> tuple[int, bytes, int, int]:
        head = self.data.at(at, 12)
        if len(head) < 12:  # the last mark of a sequence has 8 bytes
            head = head + bytes(12 - len(head)) if len(head) >= 8 else b""
        layout = _BIG if self.order == ">" else _LITTLE
        group, element, vr, short, long = layout.unpack(head)
        tag = group << 16 | element
        if group == 0xFFFE or not self.explicit:
            return tag, b"", struct.unpack_from(self.order + "I", head, 4)[0], at + 8
        if vr in _LONG_VR:
            return tag, vr, long, at + 12
        if not vr.isalpha():
            raise _DamageError(f"no value type at byte {at}")
        return tag, vr, short, at + 8

    def _value(self, name: str, raw: bytes) -> str:
        if name in _SHORTS and len(raw) == 2:
            return str(struct.unpack(self.order + "H", raw)[0])
        return raw.decode("latin-1").strip("\0 ")

    def _skip_sequence(self, at: int, depth: int = 0) -> int:
        if depth > _DEPTH_MOST:
            raise _DamageError("its sequences are nested too deeply")
        while True:
            tag, _, length, at = self._element(at)
            if tag == _SEQUENCE_END:
                return at
            if tag != _ITEM:
                raise _DamageError(f"no sequence item at byte {at}")
            at = self._skip_item(at, depth) if length == _OPEN else at + length

    def _skip_item(self, at: int, depth: int) -> int:
        while True:
            tag, _, length, at = self._element(at)
            if tag == _ITEM_END:
                return at
            if length == _OPEN:
                at = self._skip_sequence(at, depth + 1)
            else:
                at += length

    def _read_regions(self, at: int, length: int) -> None:
        """Millimetres per pixel of an ultrasound picture that has one scale only."""
        end = at + length if length != _OPEN else math.inf
        while at < end:
            tag, _, size, at = self._element(at)
            if tag != _ITEM:
                break
            stop = at + size if size != _OPEN else math.inf
            found: dict[int, float] = {}
            while at < stop:
                tag, _, size, at = self._element(at)
                if tag == _ITEM_END:
                    break
                if tag in _REGION_TAGS and size == struct.calcsize(_REGION_TAGS[tag]):
                    code = self.order + _REGION_TAGS[tag]
                    found[tag] = struct.unpack(code, self.data.at(at, size))[0]
                at = self._skip_sequence(at) if size == _OPEN else at + size
            x, y, dx, dy = (found.get(tag, 0) for tag in _REGION_TAGS)
            scaled = x == y == _CENTIMETRES and dx > 0 and dy > 0
            self._regions.append((10.0 * dy, 10.0 * dx) if scaled else None)
        if self._regions and self._regions[0] and len(set(self._regions)) == 1:
            self.tags["region_spacing"] = "\\".join(map(str, self._regions[0]))

    def _pixels(self, at: int, length: int) -> None:
        size = self._promised()
        if self.packed and size > _LARGE and size > _RATIO_MOST * self.size:
            text = f"{size} bytes of pixels promised in a file of {self.size}"
            raise _DamageError(text)
        if length == _OPEN:
            self._skip_fragments(at)
            return
        if isinstance(self.data, _Inflated):
            self.data.keep = False
            if length > size + _REST_MOST:
                raise _DamageError("it unpacks to far more than its header says")
        if not self.data.reaches(at + length):
            raise _CutError
        subsampled = self.tags.get("photometric", "").startswith("YBR")
        if length < size and not subsampled:
            text = f"{size} bytes of pixels expected, {length} found."
            self.damage = Problem("truncated", text)
        rest = at + max(length, size) + _REST_MOST
        if isinstance(self.data, _Inflated) and self.data.reaches(rest):
            raise _DamageError("it unpacks to far more than its header says")

    def _promised(self) -> int:
        """Bytes of pixels by the header."""
        size = 1
        for name, least in (
            ("rows", 0), ("columns", 0), ("bits", 0), ("samples", 1), ("frames", 1),
        ):  # fmt: skip
            said = self.tags.get(name) or str(least)
            if not said.isascii() or not said.isdigit() or len(said) > 9:
                raise _DamageError(f"its number of {name} is {said[:20]!r}")
            size *= int(said)
        return size // 8

    def _skip_fragments(self, at: int) -> None:
        while True:
            tag, _, length, at = self._element(at)
            if tag == _SEQUENCE_END:
                return
            at += length
            if tag != _ITEM or not self.data.reaches(at):
                raise _CutError
