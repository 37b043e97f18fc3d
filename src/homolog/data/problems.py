"""What can be wrong with a scan, said once: a short code and one sentence.

Codes are stable words for programs (a store's ``rejected.json``, tests); texts are for
people. ``fatal`` problems keep a scan out of the store, the others are remarks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from homolog.errors import UnusableInput

# A larger cosine between two axes than float rounding and ITK's own tolerance explain.
SHEAR_LIMIT = 5e-4

CODES: dict[str, str] = {
    "missing": "the file, or one it needs, is not there",
    "empty": "no bytes or no voxels",
    "unreadable": "not what its name says, or damaged beyond reading",
    "unsupported": "a known format or number type that is not read here",
    "truncated": "the file ends before its data do",
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
    "not_an_image": "DICOM object without a scan (contours, reports, plans)",
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
    "duplicate": "the same scan came before",
    "manifest": "a line of a manifest that cannot be used",
    # remarks
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


def shear_text(cosine: float) -> str:
    """The sentence for axes that are not at right angles."""
    degrees = math.degrees(math.acos(min(cosine, 1.0)))
    return f"voxel axes meet at {degrees:.1f} degrees, not at right angles."
