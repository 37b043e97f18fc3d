"""Is this scan sound? Every check, each with a code and one true sentence.

Sound means: a real 3D or 2D scan of one number per voxel with consistent geometry,
whole. Oblique is sound; sheared, four-dimensional, coloured or half-written is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Affine, Index
from homolog.scans.channels import (
    GRID_TOLERANCE,
    SEVERAL,
    gap_mm,
    other_grid,
    read_frames,
    same_grid,
)
from homolog.scans.files import iter_values, read_header
from homolog.scans.formats import SEGMENTS, ScanHeader
from homolog.scans.problems import Problem, Unsound, filled_text, problem_of
from homolog.scans.volume import (
    HU_REACH_DOWN_TO,
    Channel,
    LabelMap,
    ValueStats,
    Volume,
    guess_modality,
    reorder_axes,
)
from homolog.words import times


@dataclass(frozen=True, eq=False)
class Inspection:
    """The findings about one scan.

    Attributes:
        path: The scan.
        header: None where not even that could be read.
        problems: Findings, fatal ones first.
        stats: Of the values; None where they were not read.
        content: Hash of values and geometry, "" where values were not read.
    """

    path: Path
    header: ScanHeader | None
    problems: tuple[Problem, ...]
    stats: ValueStats | None = None
    content: str = ""

    @property
    def usable(self) -> bool:
        """Whether there is no fatal finding."""
        return self.header is not None and not any(p.fatal for p in self.problems)

    @property
    def reason(self) -> Problem | None:
        """The first fatal finding."""
        return next((p for p in self.problems if p.fatal), None)

    @property
    def placed(self) -> bool:
        """Whether size and place of the voxels are known, be the scan sound or not."""
        return self.header is not None and bool(self.header.meta.get("placed", True))

    @property
    def objection(self) -> Problem | None:
        """What keeps it from being learnt from: a fatal finding, or that it is a mask.

        A label map is a sound file, and no scan.
        """
        masks = (p for p in self.problems if p.code == "label_map")
        return self.reason or next(masks, None)

    @property
    def modality(self) -> str:
        """DICOM's; otherwise that of values and names, "OTHER" when unknown."""
        if self.header is None:
            return "OTHER"
        if self.header.kind == "dicom" and self.header.modality != "OTHER":
            return self.header.modality
        if self.stats is None:
            return self.header.modality
        return guess_modality(self.stats, self.header.modality)


def inspect_scan(
    path: Path | str, label: Path | None = None, *, deep: bool = True
) -> Inspection:
    """Check one scan, and its label map where one is named. Never raises for a file.

    Args:
        path: Scan file, DICOM folder, or one series of a folder.
        label: Label map that must lie on the same grid.
        deep: Read all values too: checksums, NaN, constant, colour. Without it only
            headers and file lengths are looked at.
    """
    path = Path(path)
    try:
        return _inspect(path, label, deep=deep)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this file's
        return Inspection(path, None, (problem_of(error),))


def _inspect(path: Path, label: Path | None, *, deep: bool) -> Inspection:
    header = read_header(path)
    problems = list(header.problems)
    if not any(p.fatal for p in problems):
        problems += _oblique(header.affine)
    stats = None
    if deep and not any(p.fatal for p in problems):
        stats, found = _values(header)
        problems += found
    if label is not None and not any(p.fatal for p in problems):
        problems += label_problems(header, inspect_scan(label, deep=deep))
    content = ""
    if stats is not None and not any(p.fatal for p in problems):
        content = stats.content_hash(header.affine, header.shape)
    problems.sort(key=lambda p: not p.fatal)
    return Inspection(path, header, tuple(problems), stats, content)


def same_place(label: ScanHeader, image: ScanHeader) -> bool:
    """As ``same_grid``, however the axes of the label map are stored."""
    return same_grid(label, image) or _placing(label, image) is not None


def labels_by_place(labels: LabelMap, scan: Volume | LabelMap) -> LabelMap:
    """A label map on its scan's own grid, place by place.

    Axes that are stored in another order or direction are turned. A segmentation of 3D
    Slicer that holds only the part of the grid with segments in it is set into the
    whole.

    Args:
        labels: As its file has it.
        scan: Its values are not looked at.

    Returns:
        The same labels where the grids agree already, or differ in more than that.
    """
    own, theirs = (_Grid.of(one) for one in (labels, scan))
    if own.kind == "image2d" or theirs.kind == "image2d" or _agree(own, theirs):
        return labels
    placing = _placing(own, theirs)
    if placing is None:
        return labels
    axes, flips, start = placing
    data = reorder_axes(labels.data, axes, flips)
    if data.shape != scan.shape:
        whole = np.zeros(scan.shape, data.dtype)
        part = tuple(slice(a, a + n) for a, n in zip(start, data.shape, strict=True))
        whole[part] = data
        data = whole
    return replace(labels, data=data, affine=scan.affine)


@dataclass(frozen=True)
class _Grid:
    """What places voxels; a ScanHeader is one, too."""

    shape: Index
    affine: Affine
    kind: str
    meta: Mapping[str, Any]

    @classmethod
    def of(cls, one: Volume | LabelMap) -> _Grid:
        kind = str(one.meta.get("kind", ""))
        return cls(one.shape, one.affine, kind, one.meta)


def _agree(a: _Grid | ScanHeader, b: _Grid | ScanHeader) -> bool:
    return a.shape == b.shape and a.affine.close_to(b.affine, a.shape, GRID_TOLERANCE)


def _placing(
    label: _Grid | ScanHeader, image: _Grid | ScanHeader
) -> tuple[tuple[int, ...], tuple[bool, ...], tuple[int, ...]] | None:
    """How a label map's axes are turned to be its image's, and where it starts there.

    None where its voxels are not the image's.
    """
    if "image2d" in (label.kind, image.kind):
        return None
    axes, flips = label.affine.axes_along(image.affine)
    if sorted(axes) != [0, 1, 2]:
        return None
    z, y, x = (label.shape[a] for a in axes)
    turned = label.affine.reorient(axes, flips, label.shape)
    start = np.zeros(3)
    if label.meta.get(SEGMENTS):  # only these may be a part of the image's grid
        start = np.rint(image.affine.inverse().apply(turned.origin_mm))
        ends = start + np.array([z, y, x])
        if (start < 0).any() or (ends > image.shape).any():
            return None
    elif (z, y, x) != image.shape:
        return None
    there = image.affine.crop(start)
    if not turned.close_to(there, (z, y, x), GRID_TOLERANCE):
        return None
    return axes, flips, tuple(int(n) for n in start)


def _values(header: ScanHeader) -> tuple[ValueStats, list[Problem]]:
    stats = ValueStats()
    problems: list[Problem] = []
    try:
        for piece in iter_values(header, problems):
            stats.update(piece)
    except Exception as error:  # noqa: BLE001 - the header is known all the same
        return stats, [problem_of(error)]
    if stats.nonfinite:
        share = 100.0 * stats.nonfinite / max(stats.count, 1)
        text = f"{stats.nonfinite} values ({share:.2g} %) are NaN or infinite."
        problems.append(Problem("nonfinite", text))
    elif stats.constant:
        problems.append(Problem("constant", f"every value is {stats.low:g}."))
    elif (
        header.kind == "dicom"
        and header.modality == "CT"
        and stats.low >= HU_REACH_DOWN_TO
    ):
        text = (
            "the header says CT, but the values "
            f"({stats.low:g} to {stats.high:g}) are not Hounsfield units."
        )
        problems.append(Problem("modality_doubt", text, False))
    known = any(p.code == "label_map" for p in header.problems)
    if not (stats.nonfinite or stats.constant or known) and stats.is_label_map:
        problems.append(Problem("label_map", _label_text(stats), False))
    return stats, problems


def nan_as_remark(inspection: Inspection) -> Inspection:
    """The findings where NaN and infinite values are filled, as the user asked.

    A scan without any finite value stays refused.
    """
    stats, header = inspection.stats, inspection.header
    if stats is None or header is None or not stats.nonfinite < stats.count:
        return inspection
    text = filled_text(stats.nonfinite, stats.count, stats.low) + "."
    problems = [
        Problem("nan_filled", text, False) if p.code == "nonfinite" else p
        for p in inspection.problems
    ]
    problems.sort(key=lambda p: not p.fatal)
    content = inspection.content
    if not any(p.fatal for p in problems):
        content = stats.content_hash(header.affine, header.shape)
    return replace(inspection, problems=tuple(problems), content=content)


def _label_text(stats: ValueStats) -> str:
    values = sorted(stats.labels or stats.distinct or ())
    if len(values) == 2:
        said = f"only two different values ({values[0]:g} and {values[1]:g})"
        return f"{said}: a mask, not a scan."
    said = f"patches of {len(values)} whole numbers ({values[0]:g} to {values[-1]:g})"
    return f"{said}: a label map, not a scan."


def _oblique(affine: Affine) -> list[Problem]:
    if affine.is_axis_aligned:
        return []
    cosines = np.abs(affine.direction).max(axis=0)
    degrees = math.degrees(math.acos(min(float(cosines.min()), 1.0)))
    if degrees < 0.05:
        return []
    text = f"oblique: turned by {degrees:.1f} degrees against the body axes."
    return [Problem("oblique", text, False)]


def label_problems(header: ScanHeader, label: Inspection) -> list[Problem]:
    """What keeps a label map from being this image's.

    Args:
        header: The image's.
        label: Inspection of the label map; an empty (constant) one is welcome.
    """
    name = label.path.name
    faults = [p for p in label.problems if p.fatal and p.code != "constant"]
    other = label.header
    if other is None or faults:
        return [Problem("label_unreadable", f"label {name}: {faults[0].text}")]
    if same_place(other, header):
        pass
    elif other.shape != header.shape:
        own, size = times(other.shape), times(header.shape)
        text = f"label {name} has {own} voxels, the image {size}."
        return [Problem("label_shape", text)]
    else:
        gap = gap_mm(header, other)
        text = f"label {name} lies up to {gap:.3g} mm away from the image."
        return [Problem("label_affine", text)]
    if label.stats is not None and not label.stats.could_be_labels:
        text = f"label {name} does not hold whole numbers of labels."
        return [Problem("label_values", text)]
    return []


# The images of a case that lie in several files, or in one of several images.


def inspect_channels(
    channels: Sequence[Channel], peek: Callable[[Path], Inspection]
) -> tuple[Inspection, tuple[Channel, ...]]:
    """Whether the images of a case are sound and lie on one grid.

    Args:
        channels: At least one.
        peek: Inspects a file once.

    Returns:
        The findings as of one scan (header of the first file, statistics of its image,
        content of all), and the channels with their modalities.
    """
    looks = _looks(channels, peek)
    first = looks[0]
    problems = [p for look in looks for p in look.problems if not p.fatal]
    problems = [p for p in problems if p.code != "label_map"]
    for channel, look in zip(channels, looks, strict=True):
        if objection := _objection(channel, look):
            where = channel.name or channel.path.name
            text = objection.text if len(looks) == 1 else f"{where}: {objection.text}"
            problems.insert(0, Problem(objection.code, text))
            break
        header = look.header
        assert header is not None
        assert first.header is not None
        gap = other_grid(channel, header, channels[0], first.header)
        if gap is not None:
            problems.insert(0, gap)
            break
    named = tuple(
        replace(channel, modality=channel.modality or look.modality)
        for channel, look in zip(channels, looks, strict=True)
    )
    content = "+".join(look.content for look in looks)
    sound = not any(p.fatal for p in problems)
    whole = replace(first, problems=tuple(problems), content=content if sound else "")
    return whole, named


def _objection(channel: Channel, look: Inspection) -> Problem | None:
    """What keeps an image from being a channel; masks may be masks, and empty."""
    if not channel.is_mask:
        return look.objection
    fatal = (p for p in look.problems if p.fatal and p.code != "constant")
    return next(fatal, None)


def _looks(
    channels: Sequence[Channel], peek: Callable[[Path], Inspection]
) -> list[Inspection]:
    whole: dict[Path, NDArray[Any]] = {}
    looks = []
    for channel in channels:
        look = peek(channel.path)
        if channel.frame is None or look.header is None:
            looks.append(look)
            continue
        try:
            if channel.path not in whole:
                whole[channel.path] = read_frames(channel.path).data
            values = whole[channel.path][channel.frame]
        except (Unsound, IndexError) as error:
            lacking = Problem("missing", "no such image in it.")
            fault = getattr(error, "problem", lacking)
            looks.append(replace(look, problems=(fault,)))
            continue
        looks.append(_look_at(values, look))
    return looks


def _look_at(values: NDArray[Any], look: Inspection) -> Inspection:
    """The findings about one image (D, H, W) of a file of several."""
    assert look.header is not None
    stats = ValueStats()
    for plane in values:
        stats.update(plane)
    problems = [p for p in look.problems if p.code not in SEVERAL]
    if stats.nonfinite:
        text = f"{stats.nonfinite} values are NaN or infinite."
        problems.insert(0, Problem("nonfinite", text))
    elif stats.constant:
        problems.insert(0, Problem("constant", f"every value is {stats.low:g}."))
    elif stats.is_label_map:
        text = "a mask or label map, not a scan."
        problems.append(Problem("label_map", text, False))
    header = replace(look.header, frames=1, channels=1, problems=tuple(problems))
    content = stats.content_hash(header.affine, header.shape)
    return Inspection(look.path, header, tuple(problems), stats, content)
