"""Label maps as DICOM segmentations, for archives and viewers that take no other."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine
from homolog.label_names import Colour, colours_of
from homolog.scans.dicom.header import read_dicom_file
from homolog.scans.dicom.kinds import DicomFile
from homolog.scans.dicom.labels import DicomLabels, read_dicom_labels
from homolog.scans.volume import LabelMap
from homolog.writing import write_safely

# The suffix by which the results are known.
SUFFIX = ".seg.dcm"
# Words for a disease in a name: then it is no organ.
_ABNORMAL = {
    "tumour": "Neoplasm", "tumor": "Neoplasm", "neoplasm": "Neoplasm",
    "gtv": "Neoplasm", "glioma": "Neoplasm", "lesion": "Lesion", "cyst": "Cyst",
    "nodule": "Nodule", "mass": "Mass", "metastasis": "Metastasis", "edema": "Edema",
    "oedema": "Edema", "necrosis": "Necrosis",
}  # fmt: skip
# Names that people use for what SNOMED calls otherwise.
_OTHER_WORDS = {
    "oesophagus": "esophagus", "gall bladder": "gallbladder", "bladder":
    "urinary bladder", "left ventricle": "left ventricle of heart", "right ventricle":
    "right ventricle of heart", "left atrium": "left atrium of heart", "right atrium":
    "right atrium of heart", "vena cava": "inferior vena cava", "adrenal":
    "adrenal gland", "spine": "vertebral column", "cord": "spinal cord",
}  # fmt: skip


def write_segmentation(
    labels: LabelMap,
    path: Path,
    slices: Sequence[DicomFile],
    colours: Mapping[int, Colour] | None = None,
) -> None:
    """Write a label map as a DICOM segmentation of the series it belongs to.

    The file appears only when complete, and read back with the same values and place.

    Args:
        labels: On the grid of the series (or any grid in its frame of reference).
        path: The file.
        slices: Of the series; they give patient, study and references.
        colours: Label value -> red, green, blue, 0..1; others are chosen.

    Raises:
        UnusableInput: There are no slices, or the grid is not at right angles.
        JobError: The file does not read back.
    """
    if not slices:
        raise UnusableInput(
            f"{path}: a DICOM segmentation belongs to a DICOM series, and the scan is "
            "none; write another format."
        )
    if labels.affine.shear > 1e-3:
        raise UnusableInput(
            f"{path}: a DICOM segmentation needs slices at right angles; --straighten "
            "makes them so."
        )

    def write(aside: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values in the series that break a rule
            _made(labels, slices, colours or {}).save_as(aside)

    write_safely(path, write, lambda aside: _reads_back(aside, labels))


def _made(
    labels: LabelMap,
    slices: Sequence[DicomFile],
    colours: Mapping[int, Colour],
) -> Any:
    """The data set of a segmentation."""
    import highdicom as hd
    from pydicom import dcmread
    from pydicom.uid import generate_uid

    files = dict.fromkeys(s.path for s in slices)
    read = [dcmread(f, stop_before_pixels=True) for f in files]
    sources = _whole(read, labels.affine.spacing_mm[0])
    present = [int(v) for v in np.unique(labels.data) if v > 0]
    values = sorted({*present, *(v for v in labels.names if v > 0)})
    if not values:
        raise UnusableInput("a DICOM segmentation needs at least one class.")
    numbers = {value: i for i, value in enumerate(values, start=1)}
    packed = np.zeros(int(labels.data.max(initial=0)) + 1, np.uint16)
    for value in present:
        packed[value] = numbers[value]
    data = packed[np.maximum(labels.data, 0)]
    volume = hd.Volume(
        data if len(values) > 255 else data.astype(np.uint8),
        _matrix(labels.affine),
        "PATIENT",
        sources[0].FrameOfReferenceUID,
    )
    names = {v: labels.names.get(v, str(v)) for v in values}
    chosen = {**colours_of(names), **colours}
    described = [_description(numbers[v], names[v], chosen[v]) for v in values]
    return hd.seg.Segmentation(
        source_images=sources,
        pixel_array=volume,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=generate_uid(),
        series_number=900,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="napari-homolog",
        manufacturer_model_name="homolog",
        software_versions=_version(),
        device_serial_number="0",
        content_label="SEGMENTATION",
        series_description="Segmentation by homolog",
    )


def _whole(sources: list[Any], step: float) -> list[Any]:
    """The images with the few things filled that highdicom cannot do without.

    Args:
        sources: Data sets without pixels.
        step: The distance of slices by their positions, in mm.
    """
    from pydicom.uid import generate_uid

    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for one in sources:
        told = getattr(one, "file_meta", {})
        _fill(one, "SOPClassUID", told.get("MediaStorageSOPClassUID") or _kind(one))
        own = told.get("MediaStorageSOPInstanceUID") or generate_uid()
        _fill(one, "SOPInstanceUID", own)
        _fill(one, "StudyInstanceUID", study)
        _fill(one, "SeriesInstanceUID", series)
        _fill(one, "FrameOfReferenceUID", frame)
        for group in one.get("SharedFunctionalGroupsSequence", ()):
            for measures in group.get("PixelMeasuresSequence", ()):
                if "SpacingBetweenSlices" in measures:
                    measures.SpacingBetweenSlices = step
        for name in ("StudyID", "AccessionNumber", "PatientBirthDate", "PatientSex"):
            if name not in one:
                setattr(one, name, "")
        for name in ("PatientID", "PatientName", "StudyDate", "StudyTime"):
            if name not in one:
                setattr(one, name, "")
        if "ReferringPhysicianName" not in one:
            one.ReferringPhysicianName = ""
    return sources


def _fill(one: Any, name: str, value: Any) -> None:
    """Set what a data set lacks; some that removed names removed this, too."""
    if not one.get(name):
        setattr(one, name, value)


def _kind(one: Any) -> Any:
    """The kind of image that a data set is, by its modality."""
    from pydicom import uid

    kinds = {
        "CT": uid.CTImageStorage, "MR": uid.MRImageStorage,
        "PT": uid.PositronEmissionTomographyImageStorage,
    }  # fmt: skip
    return kinds.get(str(one.get("Modality", "")), uid.SecondaryCaptureImageStorage)


def _matrix(affine: Affine) -> Any:
    """Our affine (-> z, y, x) as highdicom's (-> x, y, z)."""
    matrix = affine.matrix.copy()
    matrix[:3] = matrix[2::-1]
    return matrix


def _version() -> str:
    try:
        return version("napari-homolog")
    except PackageNotFoundError:
        return "unknown"


def _description(number: int, name: str, colour: Colour) -> Any:
    import highdicom as hd
    from highdicom.color import CIELabColor

    category, kind, side = coded(name)
    red, green, blue = (round(255 * v) for v in colour)
    described = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="homolog", version=_version(), family=_family()
        ),
        display_color=CIELabColor.from_rgb(red, green, blue),
    )
    if side is not None:
        item = described.SegmentedPropertyTypeCodeSequence[0]
        item.SegmentedPropertyTypeModifierCodeSequence = [hd.sr.CodedConcept(*side[:3])]
    return described


def _family() -> Any:
    from pydicom.sr.codedict import codes

    return codes.DCM.ArtificialIntelligence


def coded(name: str) -> tuple[Any, Any, Any]:
    """Category, type and side of what a name means, as codes of SNOMED CT.

    Names that are not known are called tissue; the name itself stays in the file.

    Args:
        name: Of a class, such as ``left kidney`` or ``liver_tumour``.
    """
    from pydicom.sr.codedict import codes

    words = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    words = re.sub(r"[^a-z0-9]+", " ", words.lower()).strip()
    for word in words.split():
        if word in _ABNORMAL:
            kind = getattr(codes.SCT, _ABNORMAL[word], codes.SCT.Neoplasm)
            return codes.SCT.MorphologicallyAbnormalStructure, kind, None
    side = None
    found = _anatomy(words)
    for word, code in (("left", codes.SCT.Left), ("right", codes.SCT.Right)):
        if found is None and word in words.split():
            rest = " ".join(w for w in words.split() if w != word)
            found, side = _anatomy(rest), code
    if found is None:
        return codes.SCT.Tissue, codes.SCT.Tissue, None
    return codes.SCT.AnatomicalStructure, getattr(codes.SCT, found), side


def _anatomy(words: str) -> str | None:
    """The keyword of pydicom's dictionary for a name."""
    known = _keywords()
    for one in (words, _OTHER_WORDS.get(words, ""), words.removesuffix("s")):
        keyword = known.get(one.replace(" ", ""))
        if one and keyword:
            return keyword
    return None


@lru_cache(maxsize=1)
def _keywords() -> dict[str, str]:
    from pydicom.sr.codedict import codes

    return {keyword.lower(): keyword for keyword in codes.SCT.dir()}


def _reads_back(path: Path, labels: LabelMap) -> bool:
    """Whether a file holds the same classes at the same places."""
    try:
        file = read_dicom_file(path)
        found = read_dicom_labels(path, _no_slice)
    except Exception:  # noqa: BLE001 - then it is not what was meant
        return False
    if file.damage is not None or found is None:
        return False
    return _volumes(found, labels) and _placed(found, labels)


def _no_slice(_: DicomFile) -> Any:
    raise UnusableInput("a segmentation needs no images to be read.")


def _volumes(found: DicomLabels, labels: LabelMap) -> bool:
    counts = np.unique(labels.data[labels.data > 0], return_counts=True)[1]
    data, _ = found.values()
    return np.array_equal(counts, np.unique(data[data > 0], return_counts=True)[1])


def _placed(found: DicomLabels, labels: LabelMap) -> bool:
    """Whether the first voxel of both lies at one place, to a thousandth of a mm."""
    data, _ = found.values()
    theirs, ours = np.argwhere(data > 0), np.argwhere(labels.data > 0)
    if len(theirs) == 0:
        return len(ours) == 0
    a, b = found.affine.apply(theirs.mean(0)), labels.affine.apply(ours.mean(0))
    return bool(np.abs(a - b).max() < 1e-3)
