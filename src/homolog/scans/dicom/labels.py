"""Labels kept as DICOM: segmentations (SEG) and contours (RT structure sets).

Both become label maps. A segmentation has a grid of its own, which may be a part of its
image's; contours are filled on the grid of the images they were drawn on, which are
looked for where the file lies and beside it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine, Index
from homolog.scans.dicom.gathering import (
    ReadSlice,
    place_of_series,
    series_of,
)
from homolog.scans.dicom.header import read_dicom_file
from homolog.scans.dicom.kinds import DicomFile, holds_contours, holds_segments
from homolog.scans.dicom.stacks import Series
from homolog.scans.paths import looks_like_dicom
from homolog.scans.problems import Problem, Unsound, check_room
from homolog.words import counted, listed

# How far the images of contours are looked for.
_FOLDERS_MOST, _DEPTH_MOST, _ASKED = 300, 3, 8
# A contour that leaves its slice by more of a slice than this is none of that slice.
_OUT_OF_PLANE = 0.25
_CLOSED = {"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"}


@dataclass(frozen=True, eq=False)
class DicomLabels:
    """What a file of labels holds, before its voxels are filled.

    Attributes:
        path: The file.
        names: Label value -> name.
        colours: Label value -> red, green, blue (0..255), where stated.
        shape: (D, H, W) of its grid.
        affine: Voxel -> mm.
        series: UIDs of the series it was drawn on.
        problems: What should be known.
    """

    path: Path
    names: dict[int, str]
    colours: dict[int, tuple[int, int, int]]
    shape: Index
    affine: Affine
    series: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    _contours: dict[int, list[NDArray[np.float64]]] = field(default_factory=dict)

    def values(self) -> tuple[NDArray[np.uint16], list[Problem]]:
        """(D, H, W) label values, and what was lost.

        A voxel of several classes goes to the smallest of them.

        Raises:
            Unsound: The file cannot be decoded, or its grid is larger than the memory.
        """
        check_room(2 * int(np.prod(self.shape)), self.path)
        if self._contours:
            masks = {
                value: filled(contours, self.shape)
                for value, contours in self._contours.items()
            }
            return _one_map(masks.items(), self.names, self.shape)
        try:
            return _segment_values(self)
        except (UnusableInput, OSError, MemoryError):
            raise
        except Exception as error:
            said = " ".join(str(error).split())[:160] or type(error).__name__
            text = f"its segments cannot be read ({said})."
            raise Unsound("corrupt", text, self.path) from error


def is_labels(file: DicomFile) -> bool:
    """Whether a file holds labels that can be read here."""
    return holds_segments(file) or holds_contours(file)


def read_dicom_labels(path: Path, read_slice: ReadSlice) -> DicomLabels | None:
    """The labels in a file; None where it holds something else.

    Raises:
        Unsound: ``not_an_image``: it should hold labels, and they cannot be used.
    """
    file = read_dicom_file(path)
    if not is_labels(file) or file.damage is not None:
        return None
    status = path.stat()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that break a rule
            if holds_segments(file):
                return _segmentation(path, status.st_size, status.st_mtime_ns)
            return _structures(path, read_slice)
    except Unsound as error:
        why = error.problem.text.removesuffix(".")
    except Exception as error:  # noqa: BLE001 - a file of nothing, or against all rules
        said = " ".join(str(error).split())[:160]
        why = f"which cannot be read ({said or type(error).__name__})"
    text = f"holds {file.other_object}, not a scan; as labels: {why}."
    raise Unsound("not_an_image", text, path)


def referenced_series(path: Path) -> tuple[str, ...]:
    """UIDs of the series that a file of labels was drawn on; none where unknown."""
    from pydicom import dcmread

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _series_of_labels(dcmread(path, stop_before_pixels=True, force=True))
    except Exception:  # noqa: BLE001 - what it names is not known then
        return ()


def _series_of_labels(data: Any) -> tuple[str, ...]:
    found = [
        str(one.SeriesInstanceUID) for one in data.get("ReferencedSeriesSequence", ())
    ]
    for frame in data.get("ReferencedFrameOfReferenceSequence", ()):
        for study in frame.get("RTReferencedStudySequence", ()):
            for one in study.get("RTReferencedSeriesSequence", ()):
                found.append(str(one.SeriesInstanceUID))
    return tuple(dict.fromkeys(found))


def image_of_labels(
    path: Path, uids: Sequence[str], read_slice: ReadSlice, *, straighten: bool = False
) -> tuple[Path, Series] | None:
    """The scan that labels were drawn on, where it lies near their file.

    Args:
        path: The file of labels.
        uids: Of the series it names.
        read_slice: As ``series_of``.
        straighten: As ``scans_in``.

    Returns:
        The path it goes by in its folder, and the series; None where it is not found.
    """
    for folder in _near(path):
        try:
            found, _ = series_of(folder, read_slice)
        except Exception:  # noqa: BLE001 - another folder's fault
            continue
        for series in found:
            if series.files[0].text("series") in uids and series.affine is not None:
                return place_of_series(folder, series, found, straighten), series
    return None


def _near(path: Path) -> Iterator[Path]:
    """Folders with DICOM files in and beside a file's own."""
    seen: set[Path] = set()
    for root in (path.parent, path.parent.parent):
        pending = [(root, 0)]
        while pending and len(seen) < _FOLDERS_MOST:
            folder, depth = pending.pop(0)
            if folder in seen:
                continue
            seen.add(folder)
            try:
                entries = sorted(folder.iterdir())
                files = [p for p in entries if p.is_file()][:_ASKED]
                if any(looks_like_dicom(p) for p in files):
                    yield folder
                if depth < _DEPTH_MOST:
                    pending += [(p, depth + 1) for p in entries if p.is_dir()]
            except OSError:
                continue


# ---- segmentations -------------------------------------------------------------------


@lru_cache(maxsize=2)
def _segmentation(path: Path, size: int, changed: int) -> DicomLabels:
    """A segmentation's grid and names; read again when the file changes."""
    del size, changed
    whole = _opened(path)
    numbers = [int(n) for n in whole.segment_numbers]
    if not numbers:
        raise Unsound("not_an_image", "it has no segments", path)
    names, colours = {}, {}
    for number in numbers:
        one = whole.get_segment_description(number)
        told = str(one.segment_label or one.segmented_property_type.meaning)
        names[number] = told.strip() or str(number)
        colour = one.get("RecommendedDisplayCIELabValue")
        if colour is not None:
            colours[number] = _rgb(colour)
    geometry = whole.get_volume_geometry(allow_missing_positions=True)
    if geometry is None:
        text = "its frames lie on no even grid"
        raise Unsound("not_an_image", text, path)
    d, h, w = (int(n) for n in geometry.spatial_shape)
    return DicomLabels(
        path, names, colours, (d, h, w), _affine_of(geometry.affine),
        _series_of_labels(whole),
    )  # fmt: skip


def _opened(path: Path) -> Any:
    """The segmentation, without what it says of the distance of its slices."""
    from highdicom.seg import Segmentation
    from pydicom import dcmread

    data = dcmread(path, force=True)
    groups = [
        *data.get("SharedFunctionalGroupsSequence", ()),
        *data.get("PerFrameFunctionalGroupsSequence", ()),
    ]
    for group in groups:
        for measures in group.get("PixelMeasuresSequence", ()):
            if "SpacingBetweenSlices" in measures:
                del measures.SpacingBetweenSlices
    return Segmentation.from_dataset(data, copy=False)


def _affine_of(matrix: NDArray[np.float64]) -> Affine:
    """Highdicom's affine (slice, row, column -> x, y, z) as ours (-> z, y, x)."""
    turned = np.eye(4)
    turned[:3, :] = np.asarray(matrix, float)[2::-1, :]
    return Affine(turned)


def _rgb(lab: Sequence[int]) -> tuple[int, int, int]:
    from highdicom.color import CIELabColor

    light, a, b = (int(v) for v in lab)
    red, green, blue = CIELabColor.from_dicom_value((light, a, b)).to_rgb()
    return int(red), int(green), int(blue)


def _segment_values(labels: DicomLabels) -> tuple[NDArray[np.uint16], list[Problem]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = _opened(labels.path)
        fractional = str(whole.segmentation_type).endswith("FRACTIONAL")
        if not fractional:
            try:
                volume = whole.get_volume(combine_segments=True, dtype=np.uint16)
                return np.asarray(volume.array, np.uint16), []
            except (RuntimeError, ValueError):
                pass  # segments that overlap
        masks = ((n, _mask_of(whole, n, fractional)) for n in labels.names)
        return _one_map(masks, labels.names, labels.shape)


def _mask_of(whole: Any, number: int, fractional: bool) -> NDArray[np.bool_]:
    volume = whole.get_volume(segment_numbers=[number], combine_segments=False)
    mask: NDArray[np.bool_] = np.asarray(volume.array)[..., 0] >= (
        0.5 if fractional else 1
    )
    return mask


def _one_map(
    masks: Iterable[tuple[int, NDArray[np.bool_]]], names: dict[int, str], shape: Index
) -> tuple[NDArray[np.uint16], list[Problem]]:
    """All classes as one label map; the smallest wins where they overlap."""
    packed = {n: (int(m.sum()), np.packbits(m)) for n, m in masks}
    whole = np.zeros(shape, np.uint16)
    lost: list[str] = []
    for number in sorted(packed, key=lambda n: packed[n][0], reverse=True):
        count = whole.size
        bits = np.unpackbits(packed[number][1], count=count)
        mask = bits.reshape(shape).astype(bool)
        taken, counts = np.unique(whole[mask], return_counts=True)
        lost += [
            f"{many} of {names[int(value)]!r} to {names[number]!r}"
            for value, many in zip(taken.tolist(), counts.tolist(), strict=True)
            if value
        ]
        whole[mask] = number
    if not lost:
        return whole, []
    text = (
        "its segments overlap; a voxel of several went to the smallest of them: "
        f"{listed(lost, most=3)}."
    )
    return whole, [Problem("overlap", text, False)]


# ---- contours ------------------------------------------------------------------------


def _structures(path: Path, read_slice: ReadSlice) -> DicomLabels:
    from pydicom import dcmread

    data = dcmread(path, force=True)  # some have no mark
    rois = sorted(
        data.get("StructureSetROISequence", ()), key=lambda r: int(r.ROINumber)
    )
    drawn = {
        int(one.ReferencedROINumber): one for one in data.get("ROIContourSequence", ())
    }
    uids = _series_of_labels(data)
    if not drawn:
        raise Unsound("not_an_image", "it has no contours", path)
    found = image_of_labels(path, uids, read_slice)
    if found is None:
        text = "the images that its contours were drawn on are not near it"
        raise Unsound("not_an_image", text, path)
    _, series = found
    assert series.affine is not None
    names, colours, contours = {}, {}, {}
    lost = 0
    for value, roi in enumerate(rois, start=1):
        names[value] = str(roi.get("ROIName", "")).strip() or f"ROI {roi.ROINumber}"
        one = drawn.get(int(roi.ROINumber))
        closed, dropped = _closed(one, series)
        contours[value] = closed
        lost += dropped
        if one is not None and len(one.get("ROIDisplayColor") or ()) == 3:
            r, g, b = (int(v) for v in one.ROIDisplayColor)
            colours[value] = (r, g, b)
    problems = []
    if lost:
        text = f"{counted(lost, 'contour')} lie in none of the slices and are left out."
        problems.append(Problem("contours", text, False))
    return DicomLabels(
        path, names, colours, series.shape, series.affine, uids, tuple(problems),
        contours,
    )  # fmt: skip


def _closed(one: Any, series: Series) -> tuple[list[NDArray[np.float64]], int]:
    """Closed contours in voxel coordinates (z, y, x), and how many lie in no slice."""
    assert series.affine is not None
    inverse = series.affine.inverse()
    found, dropped = [], 0
    for contour in one.get("ContourSequence", ()) if one is not None else ():
        if str(contour.get("ContourGeometricType", "")) not in _CLOSED:
            continue
        points = np.asarray(contour.ContourData, float).reshape(-1, 3)
        if len(points) < 3 or not np.isfinite(points).all():
            continue
        index = inverse.apply(points[:, ::-1])
        slice_ = round(float(index[:, 0].mean()))
        away = np.abs(index[:, 0] - index[:, 0].mean()).max()
        if away > _OUT_OF_PLANE or not 0 <= slice_ < series.shape[0]:
            dropped += 1
            continue
        found.append(np.column_stack([np.full(len(index), slice_), index[:, 1:]]))
    return found, dropped


def filled(contours: Sequence[NDArray[np.float64]], shape: Index) -> NDArray[np.bool_]:
    """Voxels whose centres lie inside an odd number of contours of their slice.

    Args:
        contours: Closed polygons in voxel coordinates (z, y, x).
        shape: (D, H, W).
    """
    _, h, w = shape
    mask = np.zeros(shape, bool)
    by_slice: dict[int, list[NDArray[np.float64]]] = {}
    for contour in contours:
        by_slice.setdefault(int(contour[0, 0]), []).append(contour[:, 1:])
    for z, polygons in by_slice.items():
        crossings = np.zeros((h, w + 1), np.int32)
        for polygon in polygons:
            _cross(polygon, crossings)
        mask[z] = np.cumsum(crossings[:, :w], axis=1) % 2 == 1
    return mask


def _cross(polygon: NDArray[np.float64], crossings: NDArray[np.int32]) -> None:
    """Count, in each row of pixels, where an outline is crossed.

    Args:
        polygon: (N, 2) corners (y, x) in pixels.
        crossings: (H, W + 1), gains one at the first pixel centre beyond each crossing.
    """
    h, w = crossings.shape
    (y0, x0), (y1, x1) = polygon.T, np.roll(polygon, -1, axis=0).T
    first = np.ceil(np.minimum(y0, y1)).astype(int)
    stop = np.ceil(np.maximum(y0, y1)).astype(int)  # half open: a corner counts once
    first, stop = np.clip(first, 0, h), np.clip(stop, 0, h)
    counts = np.maximum(stop - first, 0)
    edge = np.repeat(np.arange(len(polygon)), counts)
    start = np.repeat(np.cumsum(counts) - counts, counts)
    rows = first[edge] + np.arange(len(edge)) - start
    slope = (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
    columns = np.ceil(x0[edge] + (rows - y0[edge]) * slope)
    columns = np.clip(columns, 0, w - 1).astype(int)
    np.add.at(crossings, (rows, columns), 1)
