"""Formats by name: what each gives of a scan, and the file that reads it.

A format is a module with ``header`` and ``values``. It is loaded when a file of it is
met: who reads a NIfTI needs none of them. NIfTI, NRRD and MetaImage are read by
``homolog.scans.files`` itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from numpy.typing import NDArray

from homolog.geometry.affine import Affine, Index
from homolog.scans.problems import Problem, Unsound

# Kind as in ``ScanHeader`` -> its module.
_MODULES = {
    "dicom": "homolog.scans.dicom.format",
    "mgh": "homolog.scans.formats.mgh",
    "zarr": "homolog.scans.formats.zarrs",
    "image2d": "homolog.scans.formats.pictures",
    "tiff": "homolog.scans.formats.pictures",
}
# In ``ScanHeader.meta`` of labels whose file names its classes.
SEGMENTS = "segments"


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


class Format(Protocol):
    """What the module of a format offers."""

    def header(self, path: Path) -> ScanHeader:
        """What a scan is, without its values; its faults are in ``problems``.

        Raises:
            Unsound: No header can be read at all.
        """

    def values(self, header: ScanHeader) -> tuple[NDArray[Any], list[Problem]]:
        """(D, H, W) values, in file order at least, and remarks made on the way.

        Args:
            header: What ``header`` gave.
        """


class Pieced(Format, Protocol):
    """A format that can be read piece by piece."""

    def pieces(self, path: Path) -> Iterator[NDArray[Any]]:
        """The values in flat pieces."""


class Naming(Protocol):
    """A format whose label maps say what their values are called."""

    def label_names(self, path: Path) -> dict[int, str]:
        """Value -> name; empty where the file holds none."""


class Segmenting(Naming, Protocol):
    """Segmentations within another format (NRRD), told by fields of its header."""

    def as_labels(self, header: ScanHeader, fields: Mapping[str, str]) -> ScanHeader:
        """The header of one label map, or the same where it is no segmentation.

        Args:
            header: Of the file as any NRRD.
            fields: What the writer added, key in lower case -> value.
        """

    def values(self, header: ScanHeader) -> tuple[NDArray[Any], list[Problem]]:
        """As ``Format.values``."""


def format_of(kind: str) -> Format:
    """The format of a kind of scan."""
    return cast("Format", importlib.import_module(_MODULES[kind]))


def zarr_format() -> Pieced:
    """The format of zarr folders."""
    return cast("Pieced", format_of("zarr"))


def slicer_format() -> Segmenting:
    """The format of 3D Slicer's segmentations."""
    module = importlib.import_module("homolog.scans.formats.slicer")
    return cast("Segmenting", module)


def naming_format(kind: str) -> Naming | None:
    """The format that reads names out of label maps of a kind, if there is one."""
    if kind == "nrrd":
        return slicer_format()
    return cast("Naming", format_of(kind)) if kind == "dicom" else None
