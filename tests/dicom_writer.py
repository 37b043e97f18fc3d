"""Minimal DICOM files of any kind, written by hand: tags, sequences, odd lengths.

SimpleITK writes a place and a spacing into every file, so that what lacks them, and
what is damaged, must be written here.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = {
    "CR": "1", "DX": "1.1", "MG": "1.2", "CT": "2", "enhanced CT": "2.1",
    "US film": "3.1", "MR": "4", "enhanced MR": "4.1", "spectra": "4.2", "US": "6.1",
    "capture": "7", "capture film": "7.2", "waveform": "9.1.1", "state": "11.1",
    "XA": "12.1", "NM": "20", "raw": "66", "registration": "66.1",
    "segmentation": "66.4", "endoscopy video": "77.1.1.1", "photograph": "77.1.4",
    "video": "77.1.4.1", "fundus": "77.1.5.1", "OCT": "77.1.5.4", "slide": "77.1.6",
    "report": "88.11", "PDF": "104.1", "PET": "128", "RT image": "481.1",
    "dose": "481.2", "structures": "481.3", "plan": "481.5",
}  # fmt: skip
PLAIN, DEFLATED = (
    "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99",
)  # fmt: skip
JPEG = "1.2.840.10008.1.2.4.90"
_LONG = {"OB", "OW", "SQ", "UN", "UT", "OF"}

Value = tuple[str, Any]
Tags = dict[int, Value]


def element(tag: int, kind: str, value: Any, length: int | None = None) -> bytes:
    """One explicit little-endian element; ``length`` overrides the true one."""
    raw = _raw(kind, value)
    start = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + kind.encode()
    size = len(raw) if length is None else length
    if kind in _LONG:
        return start + b"\0\0" + struct.pack("<I", size) + raw
    return start + struct.pack("<H", size & 0xFFFF) + raw


def _raw(kind: str, value: Any) -> bytes:
    if kind == "SQ":
        items = [b"".join(element(t, *v) for t, v in item.items()) for item in value]
        return b"".join(
            struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in items
        )
    if isinstance(value, bytes):
        raw = value
    elif kind == "US":
        raw = struct.pack("<H", value)
    elif kind == "FD":
        raw = struct.pack("<d", value)
    else:
        raw = str(value).encode("latin-1")
    return raw + (b"\0" if kind in ("UI", "OB") else b" ") * (len(raw) % 2)


def file_of(elements: bytes, syntax: str = PLAIN, kind: str = "") -> bytes:
    """A whole file around its elements."""
    if syntax == DEFLATED:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        elements = packer.compress(elements) + packer.flush()
    meta = element(0x00020002, "UI", kind) + element(0x00020010, "UI", syntax)
    return bytes(128) + b"DICM" + meta + elements


def tags_of(
    kind: str = "CT",
    modality: str | None = None,
    *,
    z: float = 0.0,
    placed: bool = True,
    pixels: np.ndarray | None = None,
    more: Mapping[int, Value | None] | None = None,
) -> Tags:
    """Tags of one image of a class (a key of CLASSES, or ""); None in more removes."""
    data = picture(z) if pixels is None else pixels
    frames = data.shape[0] if data.ndim == 3 else 1
    tags: Tags = {
        0x00080008: ("CS", "ORIGINAL\\PRIMARY\\AXIAL"),
        0x00080018: ("UI", f"1.2.3.4.{int(z * 1000)}.{kind.encode().hex()[:8]}"),
        0x00080060: ("CS", kind if modality is None else modality),
        0x00100020: ("LO", "P7"),
        0x00180050: ("DS", "2"),
        0x0020000D: ("UI", "1.2.3"),
        0x0020000E: ("UI", "1.2.3.4"),
        0x00280002: ("US", 1),
        0x00280004: ("CS", "MONOCHROME2"),
        0x00280010: ("US", data.shape[-2]),
        0x00280011: ("US", data.shape[-1]),
        0x00280100: ("US", data.dtype.itemsize * 8),
        0x00280101: ("US", data.dtype.itemsize * 8),
        0x00280102: ("US", data.dtype.itemsize * 8 - 1),
        0x00280103: ("US", int(data.dtype.kind == "i")),
        0x7FE00010: ("OW", data.astype(data.dtype.newbyteorder("<")).tobytes()),
    }
    if kind:
        tags[0x00080016] = ("UI", "1.2.840.10008.5.1.4.1.1." + CLASSES[kind])
    if frames > 1:
        tags[0x00280008] = ("IS", frames)
    if placed:
        tags[0x00200032] = ("DS", f"-10\\-20\\{z:g}")
        tags[0x00200037] = ("DS", "1\\0\\0\\0\\1\\0")
        tags[0x00280030] = ("DS", "0.75\\0.5")
    for tag, value in (more or {}).items():
        if value is None:
            tags.pop(tag, None)
        else:
            tags[tag] = value
    return tags


def picture(seed: float = 0.0, shape: tuple[int, ...] = (12, 14)) -> np.ndarray:
    """Noise, different for each seed."""
    rng = np.random.default_rng(int(seed * 1000) + 50_000)
    return rng.integers(-900, 900, shape).astype(np.int16)


def write(path: Path, tags: Tags, syntax: str = PLAIN) -> Path:
    """Write one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = b"".join(element(tag, *tags[tag]) for tag in sorted(tags))
    kind = tags.get(0x00080016, ("UI", ""))[1]
    path.write_bytes(file_of(body, syntax, kind))
    return path


def series(
    folder: Path,
    count: int = 6,
    kind: str = "CT",
    *,
    uid: str = "1.2.3.4",
    each: Sequence[Mapping[int, Value | None]] = (),
    **more: Any,
) -> list[Path]:
    """A stack 2 mm apart; ``each`` are further tags slice by slice."""
    extra = more.pop("more", {})
    paths = []
    for i in range(count):
        own = each[i] if i < len(each) else {}
        own = {0x0020000E: ("UI", uid), **extra, **own}
        pixels = picture(2.0 * i + sum(uid.encode()) / 8)
        tags = tags_of(kind, z=2.0 * i, pixels=pixels, more=own, **more)
        tags[0x00080018] = ("UI", f"{uid}.{i + 1}")
        paths.append(write(folder / f"{uid}-{i:03d}.dcm", tags))
    return paths


# ---- by pydicom and highdicom --------------------------------------------------------


def enhanced(
    path: Path,
    frames: Sequence[Mapping[str, Any]],
    pixels: np.ndarray,
    *,
    spacing: tuple[float, float, float] = (3.0, 0.75, 0.5),
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    uid: str = "1.2.9",
    syntax: str = PLAIN,
    undefined_length: bool = True,
) -> Path:
    """An enhanced MR file, written by pydicom.

    Args:
        path: The file.
        frames: What each frame says: position (x, y, z), and where wanted echo,
            b_value, kind (its frame type), time, slope, stack.
        pixels: (frames, rows, columns).
        spacing: Slice distance, row distance, column distance.
        orientation: Directions of a row and of a column.
        uid: Of the series.
        syntax: Transfer syntax; pixels are stored plainly.
        undefined_length: How its sequences end.
    """
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.uid import EnhancedMRImageStorage

    def item(**values: Any) -> Dataset:
        made = Dataset()
        for name, value in values.items():
            setattr(made, name, value)
        return made

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    meta.MediaStorageSOPInstanceUID = f"{uid}.1"
    meta.TransferSyntaxUID = syntax
    whole = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    whole.update(
        item(
            SOPClassUID=EnhancedMRImageStorage, SOPInstanceUID=f"{uid}.1",
            StudyInstanceUID="1.2.3", SeriesInstanceUID=uid, Modality="MR",
            PatientID="P7", PatientName="", PatientBirthDate="", PatientSex="",
            StudyID="", StudyDate="", StudyTime="", AccessionNumber="",
            ReferringPhysicianName="", SeriesNumber=1, InstanceNumber=1,
            SeriesDescription="made up", FrameOfReferenceUID="1.2.3.9",
            ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
            SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2",
            NumberOfFrames=len(frames), Rows=pixels.shape[1], Columns=pixels.shape[2],
            BitsAllocated=16, BitsStored=16, HighBit=15, PixelRepresentation=1,
            PixelData=pixels.astype("<i2").tobytes(),
        )
    )  # fmt: skip
    measures = item(
        PixelSpacing=list(spacing[1:]), SliceThickness=spacing[0],
        SpacingBetweenSlices=-99.0,
    )  # fmt: skip
    plane = item(ImageOrientationPatient=list(orientation))
    shared = item(PixelMeasuresSequence=[measures], PlaneOrientationSequence=[plane])
    whole.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for number, told in enumerate(frames):
        content = item(InStackPositionNumber=number + 1, StackID=told.get("stack", "1"))
        if "time" in told:
            content.TemporalPositionIndex = told["time"]
        one = item(
            PlanePositionSequence=[item(ImagePositionPatient=list(told["position"]))],
            FrameContentSequence=[content],
            PixelValueTransformationSequence=[
                item(RescaleSlope=told.get("slope", 1), RescaleIntercept=0)
            ],
        )
        if "echo" in told:
            one.MREchoSequence = [item(EffectiveEchoTime=float(told["echo"]))]
        if "b_value" in told:
            one.MRDiffusionSequence = [item(DiffusionBValue=float(told["b_value"]))]
        if "kind" in told:
            kind = ["ORIGINAL", "PRIMARY", "VOLUME", told["kind"]]
            one.MRImageFrameTypeSequence = [item(FrameType=kind)]
        groups.append(one)
    whole.PerFrameFunctionalGroupsSequence = groups
    for name in ("SharedFunctionalGroups", "PerFrameFunctionalGroups"):
        whole[f"{name}Sequence"].is_undefined_length = undefined_length
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.save_as(path, enforce_file_format=True)
    return path


def contours(path: Path, series_uid: str, drawn: Mapping[str, Sequence[Any]]) -> Path:
    """An RT structure set, written by pydicom.

    Args:
        path: The file.
        series_uid: Of the images it refers to.
        drawn: Name of a structure -> its closed contours, (N, 3) x, y, z in mm.
    """
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.uid import RTStructureSetStorage

    def item(**values: Any) -> Dataset:
        made = Dataset()
        for name, value in values.items():
            setattr(made, name, value)
        return made

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = RTStructureSetStorage
    meta.MediaStorageSOPInstanceUID = "1.2.8"
    meta.TransferSyntaxUID = PLAIN
    whole = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    series_ = item(SeriesInstanceUID=series_uid)
    study = item(RTReferencedSeriesSequence=[series_])
    whole.update(
        item(
            SOPClassUID=RTStructureSetStorage, SOPInstanceUID="1.2.8",
            Modality="RTSTRUCT", PatientID="P7", SeriesInstanceUID="1.2.8.1",
            ReferencedFrameOfReferenceSequence=[
                item(RTReferencedStudySequence=[study])
            ],
            StructureSetROISequence=[
                item(ROINumber=10 + i, ROIName=name) for i, name in enumerate(drawn)
            ],
            ROIContourSequence=[
                item(
                    ReferencedROINumber=10 + i, ROIDisplayColor=[255, 10 * i, 0],
                    ContourSequence=[
                        item(
                            ContourGeometricType="CLOSED_PLANAR",
                            NumberOfContourPoints=len(points),
                            ContourData=[f"{v:.6f}" for v in np.ravel(points)],
                        )
                        for points in outlines
                    ],
                )
                for i, outlines in enumerate(drawn.values())
            ],
        )
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.save_as(path, enforce_file_format=True)
    return path
