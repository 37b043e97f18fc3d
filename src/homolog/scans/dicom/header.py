"""The header of one DICOM file, as pydicom parses it: the few tags needed, no pixels.

pydicom walks the elements (whatever their encoding, nesting and private parts); here
the wanted ones are kept as text. Values are taken as they are stored, unvalidated,
since files of real scanners break the rules for values more often than not. What lies
behind the header is looked at only as far as tells a whole file from a cut one.

Frames of an enhanced file have tags of their own, from its functional groups.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from homolog.scans.dicom.kinds import DicomFile
from homolog.scans.paths import starts_like_dicom
from homolog.scans.problems import Problem, Unsound

_NAMES = {
    0x00080008: "image_type", 0x00080016: "sop_class", 0x00080018: "sop_uid",
    0x00080032: "acquisition_time", 0x00080033: "content_time",
    0x00080060: "modality", 0x00080064: "conversion", 0x0008103E: "description",
    0x00089007: "image_type", 0x00089208: "component",
    0x00100020: "patient", 0x00180022: "scan_options", 0x00180024: "sequence_name",
    0x00180050: "thickness", 0x00180060: "kvp", 0x00180080: "repetition_time",
    0x00180081: "echo_time", 0x00180082: "inversion_time", 0x00180086: "echo_number",
    0x00180088: "step", 0x00181060: "trigger_time", 0x00181120: "tilt",
    0x00181164: "imager_spacing", 0x00181210: "kernel", 0x00181314: "flip_angle",
    0x00182010: "film", 0x00189074: "acquisition_time", 0x00189079: "inversion_time",
    0x00189082: "echo_time", 0x00189087: "b_value", 0x00189089: "direction",
    0x00190010: "csa_creator", 0x0019100A: "mosaic_tiles", 0x0019100C: "b_value",
    0x0020000D: "study", 0x0020000E: "series", 0x00200012: "acquisition",
    0x00200013: "instance", 0x00200032: "position", 0x00200037: "orientation",
    0x00200052: "frame_of_reference", 0x00200100: "temporal",
    0x00209056: "stack", 0x00209128: "temporal", 0x00209153: "trigger_time",
    0x00209156: "acquisition", 0x00209157: "dimensions",
    0x00209301: "position", 0x00209302: "orientation",
    0x0020930D: "temporal_offset",
    0x00280002: "samples", 0x00280004: "photometric", 0x00280008: "frames",
    0x00280010: "rows", 0x00280011: "columns", 0x00280030: "spacing",
    0x00280100: "bits", 0x00280103: "signed", 0x00281053: "slope",
    0x00281052: "intercept", 0x0043102F: "component",
    0x00541300: "reference_time",
}  # fmt: skip
# Numbers that are not stored as text.
_BINARY = {
    0x00189079: "d", 0x00189082: "d", 0x00189087: "d", 0x00189089: "d",
    0x0019100A: "H", 0x00209128: "I", 0x00209153: "d", 0x00209156: "H",
    0x00209157: "I", 0x00209301: "d", 0x00209302: "d", 0x0020930D: "d",
    0x00280002: "H", 0x00280010: "H", 0x00280011: "H", 0x00280100: "H",
    0x00280103: "H", 0x0043102F: "h",
}  # fmt: skip
# Sequences of the functional groups whose first item says something of use.
_GROUPS = {
    0x00209113, 0x00209116, 0x00209111, 0x00209310, 0x0020930E, 0x0020930F,
    0x00289110, 0x00289145, 0x00189226, 0x00189329, 0x00189751, 0x00189504,
    0x00189114, 0x00189117, 0x00189118, 0x00189112, 0x00189115, 0x00189076,
}  # fmt: skip
_SHARED, _PER_FRAME = 0x52009229, 0x52009230
# Where an ultrasound picture states its size: one item per part of the screen.
_REGIONS = 0x00186011
_REGION_TAGS = {0x00186024: "H", 0x00186026: "H", 0x0018602C: "d", 0x0018602E: "d"}
_CENTIMETRES = 3
_CHARSET = 0x00080005
_PIXELS = {0x7FE00008, 0x7FE00009, 0x7FE00010}
_WANTED = [*_NAMES, _SHARED, _PER_FRAME, _REGIONS]
_OPEN = 0xFFFFFFFF
_ITEM, _SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"

_IMPLICIT, _BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
_EXPLICIT, _DEFLATED = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"

# One at a time changes which warnings are shown.
_quiet = threading.Lock()

# No text read here is longer; a longer one is damage, and is not taken into memory.
_TEXT_MOST = 1 << 16
# Functional groups of a file of ten thousand frames are smaller.
_GROUPS_MOST = 1 << 28
# Bytes fetched at once: nearly every header is shorter.
_WINDOW = 1 << 16
# What lies before the pixels of a deflated file, and after them, at most.
_HEADER_MOST, _REST_MOST = 1 << 26, 1 << 24
# Packed pixels that claim to be more than this and more than _RATIO_MOST times the
# file are no picture but a trap for the memory: lossless codecs reach 3, JPEG 100.
_LARGE, _RATIO_MOST = 1 << 28, 1000


def read_dicom_file(path: Path) -> DicomFile:
    """Tags of one file, up to its pixels; damage is recorded, not raised.

    Raises:
        Unsound: ``empty``, or ``unreadable`` when it is no DICOM file at all.
    """
    size = path.stat().st_size
    if not size:
        raise Unsound("empty", "the file has 0 bytes.", path)
    with path.open("rb") as file:
        start = file.read(_WINDOW)
        if not starts_like_dicom(path, start[:132]):
            raise Unsound("unreadable", "no DICOM mark (DICM) in the file.", path)
        reader = _Reader(file, start, size)
        try:
            reader.run()
        except (_CutError, EOFError, struct.error):
            text = "the DICOM file ends before its data do."
            reader.damage = Problem("truncated", text)
        except RecursionError:
            text = "the DICOM file is damaged (its sequences are nested too deeply)."
            reader.damage = Problem("corrupt", text)
        except (zlib.error, _DamageError, OSError, ValueError, KeyError) as error:
            said = " ".join(str(error).split())[:200]
            reader.damage = Problem("corrupt", f"the DICOM file is damaged ({said}).")
    return DicomFile(path, reader.tags, reader.has_pixels, reader.damage, reader.frames)


class _CutError(Exception):
    pass


class _DamageError(Exception):
    pass


class _Inflating:
    """A deflated file as one that can be read forwards: nothing is kept but the end."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed = packed
        self._inflater = zlib.decompressobj(-15)
        self._kept = bytearray()
        self._start = self._at = 0

    @property
    def _end(self) -> int:
        return self._start + len(self._kept)

    def reaches(self, end: int) -> bool:
        """Unpack so far; whether there is so much."""
        while self._end < end and not self._inflater.eof:
            packed = self._inflater.unconsumed_tail or self._packed.read(_WINDOW)
            piece = self._inflater.decompress(packed, _WINDOW)
            if not packed and not piece:
                raise _CutError
            self._kept += piece
            drop = min(self._at, self._end - _WINDOW) - self._start
            if drop > 0:
                del self._kept[:drop]
                self._start += drop
        return end <= self._end

    def holds(self, end: int) -> bool:
        """As ``reaches``, where what lies before is not wanted."""
        self._at = max(self._at, end)
        return self.reaches(end)

    def read(self, count: int = -1) -> bytes:
        """Up to so many bytes."""
        if not 0 <= count <= _HEADER_MOST or self._at > _HEADER_MOST:
            raise _DamageError("its header is too large")
        self.reaches(self._at + count)
        first = self._at - self._start
        found = bytes(self._kept[first : first + count])
        self._at += len(found)
        return found

    def seek(self, place: int, whence: int = 0) -> int:
        """Go on elsewhere, not far back."""
        if whence or place < self._start:
            raise _DamageError("its parts refer to each other")
        if place > _HEADER_MOST:
            raise _DamageError("its header is too large")
        self._at = place
        self.reaches(place)
        return place

    def tell(self) -> int:
        """The place of the next byte."""
        return self._at


class _Reader:
    """Walks the elements of one file."""

    def __init__(self, file: BinaryIO, start: bytes, size: int) -> None:
        self.file = file
        self.size = size
        self.tags: dict[str, str] = {}
        self.frames: tuple[Mapping[str, str], ...] = ()
        self.has_pixels = False
        self.damage: Problem | None = None
        self.packed = False
        self._start = start
        self._charset = b""
        self._implicit, self._little = False, True
        self._groups: dict[int, list[Any]] = {}

    def run(self) -> None:
        at, syntax = self._meta()
        self.packed = syntax not in ("", _IMPLICIT, _EXPLICIT, _BIG_ENDIAN)
        if syntax == _DEFLATED:
            self.file.seek(at)
            source: Any = _Inflating(self.file)
            self._elements(source, None)
        else:
            self._encoding(syntax, self._start[at : at + 6])
            window = io.BytesIO(self._start)
            window.seek(at)
            if not self._elements(window, len(self._start)):
                self.tags, self._groups = self._first_tags(), {}
                self.file.seek(at)
                self._elements(self.file, self.size)
        self._take_groups()

    def _first_tags(self) -> dict[str, str]:
        """What the part before the data set says; a DICOMDIR has its class there."""
        kept = self.tags.get("meta_class", "")
        return {"meta_class": kept, "sop_class": kept} if kept else {}

    def _meta(self) -> tuple[int, str]:
        """Read group 2: where the data set begins, and how it is written."""
        from pydicom.filereader import data_element_generator

        window = io.BytesIO(self._start)
        window.seek(132 if self._start[128:132] == b"DICM" else 0)
        at, syntax = window.tell(), ""
        for one in data_element_generator(
            window, False, True, stop_when=lambda tag, *_: tag >> 16 != 2
        ):
            raw = getattr(one, "value", None)
            at = window.tell()
            if not isinstance(raw, bytes):
                continue
            if len(raw) < getattr(one, "length", 0):
                raise _CutError
            value = raw[:_TEXT_MOST].decode("latin-1").strip("\0 ")
            if one.tag == 0x00020010:
                syntax = value
            elif one.tag == 0x00020002:
                self.tags["sop_class"] = self.tags["meta_class"] = value
        return at, syntax

    def _encoding(self, syntax: str, start: bytes) -> None:
        """How elements are written: what the file says, unless it plainly lies."""
        typed = start[4:6].isalpha() and start[4:6].isupper()
        self._little = syntax != _BIG_ENDIAN and start[:2] != b"\x00\x08"
        self._implicit = len(start) == 6 and not typed

    def _elements(self, source: Any, size: int | None) -> bool:
        """Take the wanted elements up to the pixels; False where the window ends.

        Args:
            source: A file, the beginning of one, or one that is being unpacked.
            size: Its bytes; None where that is not known.
        """
        from pydicom.filereader import data_element_generator

        tell: Callable[[], int] = source.tell
        end: int | None = tell()
        pixels: list[int] = []

        def stop(tag: int, _: str | None, length: int) -> bool:
            nonlocal end
            if tag in _PIXELS:
                pixels[:] = [tell(), length]
                return True
            end = None if length == _OPEN else tell() + length
            return False

        partial = source is not self.file and size is not None and size < self.size
        try:
            for one in data_element_generator(
                source, self._implicit, self._little, stop,
                defer_size=_TEXT_MOST, specific_tags=_WANTED,
            ):  # fmt: skip
                self._take(one, source)
        except (EOFError, OSError, struct.error, _CutError) as error:
            if partial:
                return False
            if isinstance(error, OSError) and error.errno:
                raise  # of the disk
            raise _CutError from None
        if pixels:
            self.has_pixels = True
            self._check_pixels(source, *pixels)
            return True
        if partial:
            return False
        self._check_end(source, end, size)
        return True

    def _check_end(self, source: Any, end: int | None, size: int | None) -> None:
        """Raise where the last element is longer than what is left."""
        if size is None:
            if end is not None and not source.holds(end):
                raise _CutError
            return
        if end is None:  # a sequence up to its end mark
            self.file.seek(max(size - 8, 0))
            if self.file.read(4) not in (_SEQUENCE_END, b"\xff\xfe\xe0\xdd"):
                raise _CutError
        elif end != size:
            raise _CutError

    def _take(self, one: Any, source: Any) -> None:
        """Keep the value of an element that has a name here."""
        tag = int(one.tag)
        if tag == _CHARSET:
            self._charset = one.value if isinstance(one.value, bytes) else b""
            return
        if tag in (_SHARED, _PER_FRAME, _REGIONS):
            if tag != _REGIONS:
                self.tags["functional_groups"] = "yes"
            self._groups[tag] = self._items(one, source)
            return
        name = _NAMES.get(tag)
        if name is None:
            return
        length = getattr(one, "length", 0)
        if length not in (0, _OPEN) and length > _TEXT_MOST:
            raise _DamageError(f"tag {tag:08x} says it has {length} bytes")
        if isinstance(one.value, bytes):
            if len(one.value) < length:
                raise _CutError
            value = self._value(tag, one.value)
            self.tags[name] = value or self.tags.get(name, "")

    def _items(self, one: Any, source: Any) -> list[Any]:
        """The items of a sequence, parsed if they are not yet."""
        from pydicom.filereader import read_sequence

        if not hasattr(one, "value_tell"):
            return list(one.value)
        raw = one.value
        if raw is None:
            if one.length > _GROUPS_MOST:
                raise _DamageError(f"a sequence says it has {one.length} bytes")
            back = source.tell()
            source.seek(one.value_tell)
            raw = source.read(one.length)
            source.seek(back)
        if len(raw) < one.length:
            raise _CutError
        with _quiet, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is damaged is told below
            return list(
                read_sequence(
                    io.BytesIO(raw), self._implicit, self._little, len(raw), "iso8859"
                )
            )

    def _value(self, tag: int, raw: bytes) -> str:
        code = _BINARY.get(tag)
        if code is not None and raw and len(raw) % struct.calcsize(code) == 0:
            many = f"{'<' if self._little else '>'}{len(raw) // struct.calcsize(code)}"
            return "\\".join(f"{v:.10g}" for v in struct.unpack(many + code, raw))
        text = raw.decode("latin-1").strip("\0 ")
        if self._charset and not text.isascii():
            return _decoded(raw, self._charset) or text
        return text

    def _take_groups(self) -> None:
        """Tags of the frames, and the scale of an ultrasound picture."""
        shared: dict[str, str] = {}
        for item in self._groups.get(_SHARED, [])[:1]:
            self._flatten(item, shared)
        frames = []
        for item in self._groups.get(_PER_FRAME, []):
            own = dict(shared)
            self._flatten(item, own)
            frames.append(own)
        if len(frames) == int(self.tags.get("frames", "1") or 1):
            self.frames = tuple(frames)
        if _REGIONS in self._groups:
            self._take_regions(self._groups[_REGIONS])

    def _flatten(self, item: Any, into: dict[str, str], depth: int = 0) -> None:
        """Tags of an item and of the first items of its known sequences."""
        for tag in item.keys():
            number = int(tag)
            name = _NAMES.get(number)
            if name is not None:
                value = item.get_item(tag).value
                if isinstance(value, bytes) and len(value) <= _TEXT_MOST:
                    into[name] = self._value(number, value)
            elif number in _GROUPS and depth < 4:
                for inner in self._items(item.get_item(tag), None)[:1]:
                    self._flatten(inner, into, depth + 1)

    def _take_regions(self, items: Iterable[Any]) -> None:
        """Millimetres per pixel of an ultrasound picture that has one scale only."""
        regions: list[tuple[float, float] | None] = []
        order = "<" if self._little else ">"
        for item in items:
            found: dict[int, float] = {}
            for tag, code in _REGION_TAGS.items():
                raw = item.get_item(tag).value if tag in item else b""
                if isinstance(raw, bytes) and len(raw) == struct.calcsize(code):
                    found[tag] = struct.unpack(order + code, raw)[0]
            x, y, dx, dy = (found.get(tag, 0) for tag in _REGION_TAGS)
            scaled = x == y == _CENTIMETRES and dx > 0 and dy > 0
            regions.append((10.0 * dy, 10.0 * dx) if scaled else None)
        if regions and regions[0] and len(set(regions)) == 1:
            self.tags["region_spacing"] = "\\".join(map(str, regions[0]))

    def _check_pixels(self, source: Any, at: int, length: int) -> None:
        """Look whether the pixels are there, without reading them.

        Args:
            source: As in ``_elements``.
            at: Where the pixels begin, in it.
            length: Their length as the file states it.
        """
        size = self._promised()
        if self.packed and size > _LARGE and size > _RATIO_MOST * self.size:
            text = f"{size} bytes of pixels promised in a file of {self.size}"
            raise _DamageError(text)
        if length == _OPEN:
            self._skip_fragments(at)
            return
        deflated = source if isinstance(source, _Inflating) else None
        if deflated is not None and length > size + _REST_MOST:
            raise _DamageError("it unpacks to far more than its header says")
        if not (deflated.holds(at + length) if deflated else at + length <= self.size):
            raise _CutError
        subsampled = self.tags.get("photometric", "").startswith("YBR")
        if length < size and not subsampled:
            text = f"{size} bytes of pixels expected, {length} found."
            self.damage = Problem("truncated", text)
        rest = at + max(length, size) + _REST_MOST
        if deflated is not None and deflated.holds(rest):
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
        """Walk over packed pixels to their end mark."""
        for mark, end in _fragments(self.file, at):
            if mark == _SEQUENCE_END:
                return
            if mark != _ITEM or end > self.size:
                break
        raise _CutError


def _fragments(file: BinaryIO, at: int) -> Iterator[tuple[bytes, int]]:
    """Mark and end of each part of packed pixels, as far as the file goes."""
    while True:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            return
        at += 8 + struct.unpack_from("<I", head, 4)[0]
        yield head[:4], at


def _decoded(raw: bytes, charset: bytes) -> str:
    """Text in a character set of its own; "" where that is not known."""
    from pydicom.charset import convert_encodings, decode_bytes

    names = charset.decode("latin-1").strip("\0 ").split("\\")
    try:
        text: str = decode_bytes(raw, convert_encodings(names), set("\\"))
        return text.strip("\0 ")
    except (LookupError, UnicodeError, ValueError):
        return ""
