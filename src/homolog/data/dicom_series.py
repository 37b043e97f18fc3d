"""From loose DICOM files to scans: which slices belong together, where each lies.

A scan is the files of one series with one orientation and one grid, sorted by their
position along the slice normal. Copies of a slice are left out; gaps, uneven steps,
several images at one place and tilted stacks are found from the positions alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from homolog.data.dicom_file import DicomFile
from homolog.data.dicom_geometry import (
    SAME_PLACE_MM,
    sorted_by_place,
    stack_affine,
    step_problems,
)
from homolog.data.problems import Problem
from homolog.geometry.affine import Affine, Index

# A series of fewer images is no volume when a larger one of the same series exists.
_LOCALISER_AT_MOST = 5
# Film-like objects: frames are moments, not slices.
_VOLUME_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.4.1",
    "1.2.840.10008.5.1.4.1.1.130",
    "1.2.840.10008.5.1.4.1.1.2.2",
    "1.2.840.10008.5.1.4.1.1.4.4",
)


@dataclass(frozen=True)
class Series:
    """Files that make one scan.

    Attributes:
        key: Series UID, with ``~2``, ``~3`` for further scans of the same series.
        files: In slice order, copies left out.
        affine: Voxel -> mm; None when the positions do not give one.
        problems: Findings about the slices.
        copies: Files left out because another is the same slice.
    """

    key: str
    files: tuple[DicomFile, ...]
    affine: Affine | None = None
    problems: tuple[Problem, ...] = ()
    copies: tuple[Path, ...] = field(default=())

    @property
    def shape(self) -> Index:
        """(D, H, W)."""
        first = self.files[0]
        frames = first.whole("frames", 1) if len(self.files) == 1 else len(self.files)
        return frames, first.whole("rows", 0), first.whole("columns", 0)

    @property
    def is_localiser(self) -> bool:
        """Whether this is a scout of another scan."""
        return any(p.code == "localiser" for p in self.problems)

    @property
    def sound(self) -> bool:
        """Whether nothing fatal was found among the slices."""
        return self.affine is not None and not any(p.fatal for p in self.problems)

    @property
    def title(self) -> str:
        """What to call it in a sentence."""
        name = self.files[0].text("description") or self.files[0].text("modality")
        return f"{name or 'series'} ({len(self.files)} images)"


def find_series(
    files: Iterable[DicomFile], same_pixels: Callable[[Path, Path], bool]
) -> list[Series]:
    """Scans among the files of one folder, the best first.

    Args:
        files: Files with pixels, or damaged ones.
        same_pixels: Whether two files show the same picture; asked only where two lie
            at one place with different identities.

    Returns:
        Sound scans before unsound ones, then by number of slices, then by key.
    """
    groups: dict[tuple[object, ...], list[DicomFile]] = defaultdict(list)
    for file in sorted(files, key=lambda f: f.path.name):
        groups[_group_of(file)].append(file)
    _house_fragments(groups)
    by_uid: dict[str, list[list[DicomFile]]] = defaultdict(list)
    for group in groups.values():
        by_uid[group[0].text("series")].append(group)
    found = []
    for uid, members in by_uid.items():
        members.sort(key=len, reverse=True)
        for number, group in enumerate(members):
            key = (uid or "unnamed") + (f"~{number + 1}" if number else "")
            series = _arrange(key, group, same_pixels)
            scout = any("LOCALIZER" in f.text("image_type").upper() for f in group)
            small = number > 0 and len(group) <= _LOCALISER_AT_MOST < len(members[0])
            if (scout or small) and group[0].numbers("position", 3):
                text = f"a localiser of {len(group)} images, not a scan."
                problem = Problem("localiser", text)
                series = replace(series, problems=(problem, *series.problems))
            found.append(series)
    found.sort(key=lambda s: (not s.sound, -len(s.files), s.key))
    return found


def _house_fragments(groups: dict[tuple[object, ...], list[DicomFile]]) -> None:
    """A file cut off before its place was told most likely is a slice of a neighbour.

    It joins its own series if that is known, else the largest group, which thereby is
    damaged: without the slice that scan would not be whole.
    """
    cut = {k for k, g in groups.items() if len(k) == 1 and g[0].damage is not None}
    whole = [k for k in groups if k not in cut]
    for key in cut:
        series = groups[key][0].text("series")
        same = [k for k in whole if groups[k][0].text("series") == series]
        homes = (same if series else []) or [k for k in whole if len(k) > 1]
        if homes:
            home = max(homes, key=lambda k: len(groups[k]))
            groups[home] += groups.pop(key)


def _group_of(file: DicomFile) -> tuple[object, ...]:
    orientation = file.numbers("orientation", 6)
    position = file.numbers("position", 3)
    if orientation is None or position is None or file.whole("frames", 1) > 1:
        return (str(file.path),)  # an X-ray, or a volume in one file: alone
    turned = tuple(round(v, 3) + 0.0 for v in orientation)
    return (
        file.text("series"), turned, file.text("rows"), file.text("columns"),
        file.numbers("spacing", 2),
    )  # fmt: skip


def _arrange(
    key: str, group: Sequence[DicomFile], same_pixels: Callable[[Path, Path], bool]
) -> Series:
    first = group[0]
    damage = [
        Problem(f.damage.code, f"{f.path.name}: {f.damage.text}")
        for f in group
        if f.damage
    ]
    if damage:
        return Series(key, tuple(group), None, tuple(damage[:3]))
    if first.numbers("orientation", 6) is None or first.numbers("position", 3) is None:
        return _single(key, first)
    if first.whole("frames", 1) > 1:
        return _frames(key, first)
    files, places = sorted_by_place(group)
    files, places, copies, problems = _without_copies(files, places, same_pixels)
    spacing = first.numbers("spacing", 2)
    if spacing is None or not min(spacing) > 0:
        said = first.text("spacing") or "nothing"
        problems.append(
            Problem(
                "spacing", f"pixel spacing must be positive, the header says {said}."
            )
        )
        return Series(key, tuple(files), None, tuple(problems), tuple(copies))
    problems += step_problems(places)
    affine, tilt = stack_affine(files, spacing)
    problems += tilt
    return Series(key, tuple(files), affine, tuple(problems), tuple(copies))


def _single(key: str, file: DicomFile) -> Series:
    """A picture without a place, such as an X-ray."""
    problems = _film_problems(file)
    spacing = file.numbers("spacing", 2) or file.numbers("imager_spacing", 2)
    if spacing is None:
        spacing = (1.0, 1.0)
        text = "no pixel spacing in the header; 1 mm taken."
        problems.append(Problem("spacing_unknown", text, False))
    elif not min(spacing) > 0:
        said = " x ".join(f"{v:g}" for v in spacing)
        text = f"pixel spacing must be positive, the header says {said}."
        return Series(key, (file,), None, (*problems, Problem("spacing", text)))
    depth = file.numbers("thickness", 1) or (1.0,)
    affine = Affine.of((depth[0] if depth[0] > 0 else 1.0, *spacing))
    return Series(key, (file,), affine, tuple(problems))


def _frames(key: str, file: DicomFile) -> Series:
    """A volume or a film in one file; its place is read by SimpleITK."""
    return Series(key, (file,), None, tuple(_film_problems(file)))


def _film_problems(file: DicomFile) -> list[Problem]:
    frames = file.whole("frames", 1)
    if frames == 1 or file.text("sop_class") in _VOLUME_CLASSES:
        return []
    return [Problem("4d", f"a film of {frames} frames, not one scan.")]


def _without_copies(
    files: list[DicomFile],
    places: NDArray[np.float64],
    same_pixels: Callable[[Path, Path], bool],
) -> tuple[list[DicomFile], NDArray[np.float64], list[Path], list[Problem]]:
    kept: list[int] = []
    copies: list[Path] = []
    others = 0
    for i, file in enumerate(files):
        here = [k for k in kept if abs(places[k] - places[i]) < SAME_PLACE_MM]
        uid = file.text("sop_uid")
        same = any(
            (uid and files[k].text("sop_uid") == uid)
            or same_pixels(files[k].path, file.path)
            for k in here
        )
        if same:
            copies.append(file.path)
            continue
        others += bool(here)
        kept.append(i)
    problems = []
    if copies:
        text = f"{len(copies)} copies of slices left out (first: {copies[0].name})."
        problems.append(Problem("duplicate_slice", text, False))
    if others:
        problems.append(_crowded(places[kept]))
    return [files[i] for i in kept], places[kept], copies, problems


def _crowded(places: NDArray[np.float64]) -> Problem:
    ends = np.flatnonzero(np.diff(places) >= SAME_PLACE_MM)
    counts = np.diff(np.concatenate([[-1], ends, [len(places) - 1]]))
    if len(set(counts.tolist())) == 1:
        text = (
            f"4D: {counts[0]} images at each of {len(counts)} places (time, echo ...)."
        )
        return Problem("4d", text)
    text = "different images lie at the same place."
    return Problem("duplicate_slice", text)
