"""From loose DICOM files to scans: which slices belong together, where each lies.

A scan is the files of one series with one orientation and one grid, sorted by their
position along the slice normal. Copies of a slice are left out; gaps, uneven steps,
several images at one place and tilted stacks are found from the positions alone.
Pictures that are no scans (captures, photographs, scouts) keep their own reason.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Affine, Index
from homolog.scans.dicom_tags import (
    DicomFile,
    is_capture,
    is_flat,
    is_placed,
    looks_like_dicom,
    not_a_scan,
    read_dicom_file,
)
from homolog.scans.problems import SHEAR_LIMIT, Problem, Unsound, problem_of, shear_text
from homolog.words import counted, listed

# Steps may differ by this share of the usual step (positions are written rounded).
_STEP_TOLERANCE = 0.1
SAME_PLACE_MM = 1e-3
# Direction cosines differ by no more when only their last digits were rounded.
_ROUNDING = 1e-4


def sorted_by_place(
    group: Sequence[DicomFile],
) -> tuple[list[DicomFile], NDArray[np.float64]]:
    """Files in order along the slice normal, and each one's place on it in mm."""
    row, column = stack_directions(group)
    normal = np.cross(row, column)
    where = np.array(
        [np.dot(f.numbers("position", 3) or (0, 0, 0), normal) for f in group]
    )
    order = np.lexsort((np.arange(len(group)), where))
    return [group[i] for i in order], where[order]


def stack_directions(
    group: Sequence[DicomFile],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Directions of a row and of a column of a stack, x, y, z.

    Slices that are turned a little against each other (rounded differently, or a
    patient who moved) have their median, made a pair at right angles again.
    """
    all_ = np.array([f.numbers("orientation", 6) for f in group], dtype=np.float64)
    row, column = all_[0, :3], all_[0, 3:]
    if np.ptp(all_, axis=0).max() <= _ROUNDING:
        return row, column
    middle = np.median(all_, axis=0)
    length = float(np.linalg.norm(middle[:3]))
    if length == 0:
        return row, column
    row = middle[:3] / length
    column = middle[3:] - np.dot(middle[3:], row) * row
    length = float(np.linalg.norm(column))
    return (row, column / length) if length > 0 else (row, middle[3:])


def turned_problems(group: Sequence[DicomFile]) -> list[Problem]:
    """A remark where the slices of a stack are not parallel to the last digit."""
    row, column = stack_directions(group)
    all_ = np.array([f.numbers("orientation", 6) for f in group], dtype=np.float64)
    if np.ptp(all_, axis=0).max() <= _ROUNDING:
        return []
    normals = np.cross(all_[:, :3], all_[:, 3:])
    away = np.linalg.norm(np.cross(normals, np.cross(row, column)), axis=1).max()
    degrees = math.degrees(math.asin(min(float(away), 1.0)))
    text = f"slices are turned by up to {degrees:.2g} degrees; the mean is taken."
    return [Problem("orientation_varies", text, False)]


def depth_mm(file: DicomFile) -> float | None:
    """Distance to the next slice as one slice states it; None where it does not.

    Some scanners write a negative one, for the direction they went.
    """
    for name in ("step", "thickness"):
        told = file.numbers(name, 1)
        if told and told[0] != 0:
            return abs(told[0])
    return None


def step_problems(places: NDArray[np.float64]) -> list[Problem]:
    """Gaps and uneven steps among sorted places (mm); needs three different ones."""
    steps = np.diff(places)
    steps = steps[steps >= SAME_PLACE_MM]
    if len(steps) < 2:
        return []
    usual = float(np.median(steps)) if len(steps) > 2 else float(steps.min())
    ratio = steps / usual
    gaps = ratio > 1.5
    if gaps.any():
        missing = int(np.maximum(np.rint(ratio[gaps]) - 1, 1).sum())
        at = float(places[:-1][np.diff(places) >= SAME_PLACE_MM][gaps][0])
        text = (
            f"about {missing} of {len(places) + missing} slices missing "
            f"(first gap {steps[gaps][0]:g} mm after {at:g}; step {usual:g} mm)."
        )
        return [Problem("missing_slice", text)]
    if (np.abs(ratio - 1.0) > _STEP_TOLERANCE).any():
        text = f"slice steps vary from {steps.min():g} to {steps.max():g} mm."
        return [Problem("uneven_slices", text)]
    return []


def stack_affine(
    files: Sequence[DicomFile], spacing: Sequence[float]
) -> tuple[Affine | None, list[Problem]]:
    """Voxel -> mm of sorted slices; a stack that leans (gantry tilt) is sheared.

    Args:
        files: In slice order, each with position and orientation.
        spacing: Distance of rows, distance of columns, in mm.
    """
    row, column = stack_directions(files)
    start = np.array(files[0].numbers("position", 3))
    normal = np.cross(row, column)
    length = float(np.linalg.norm(normal))
    lengths = [float(np.linalg.norm(v)) for v in (row, column)]
    if not np.isfinite(length) or abs(length - 1.0) > 1e-2 or max(lengths) > 1.01:
        return None, [
            Problem(
                "affine",
                "the image orientation is no pair of unit directions at right angles.",
            )
        ]
    problems = []
    if len(files) > 1:
        end = np.array(files[-1].numbers("position", 3))
        step = (end - start) / (len(files) - 1)
        reach = float(np.linalg.norm(step))
        if reach > 0:
            slant = float(np.linalg.norm(np.cross(step / reach, normal / length)))
            if slant > 5 * SHEAR_LIMIT:
                problems.append(Problem("sheared", shear_text(min(slant, 1.0))))
            else:
                step = normal / length * reach  # positions are rounded, the normal less
    else:
        step = normal / length * (depth_mm(files[0]) or 1.0)
    matrix = np.eye(4)
    columns = (step, column * spacing[0], row * spacing[1])
    matrix[:3, :3] = np.column_stack([np.asarray(c)[::-1] for c in columns])
    matrix[:3, 3] = start[::-1]
    if abs(np.linalg.det(matrix)) < 1e-12:
        return None, [*problems, Problem("affine", "all slices lie at one place.")]
    return Affine(matrix), problems


# Slices of one stack may be turned against each other by this much (cosines), and their
# pixels differ by this share: positions, angles and sizes are written rounded.
_SAME_TURN, _SAME_SIZE = 2e-3, 1e-3
# A series of fewer images is no volume when a larger one of the same series exists.
_LOCALISER_AT_MOST = 5
# A series in several directions is a scout unless one of them has more images.
_PLANES_AT_MOST = 15
_OTHER_PLANE_COSINE = 0.94  # 20 degrees
_SCOUT_WORDS = re.compile(
    r"(?<![a-z])(localis|localiz|(aah)?scout|topogram|surview|survey|scanogram"
    r"|3[- _]?plane)",
    re.I,
)
# Fewer captures are a picture of a slice, not a volume that a program wrote.
_CAPTURES_AT_LEAST = 3
# No scanner is larger: 100 m.
_FARTHEST_MM = 1e5


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
    def sound(self) -> bool:
        """Whether there is no fatal finding among the slices."""
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
        same_pixels: Whether two files show the same picture; called only where two lie
            at one place with different identities.

    Returns:
        Sound scans before unsound ones, then by number of slices, then by key.
    """
    groups = _grouped(sorted(files, key=lambda f: f.path.name))
    _house_fragments(groups)
    by_uid: dict[str, list[list[DicomFile]]] = defaultdict(list)
    for group in groups:
        by_uid[group[0].text("series")].append(group)
    found = []
    for uid, members in by_uid.items():
        members.sort(key=len, reverse=True)
        planes = _planes(members) if uid else 0
        for number, group in enumerate(members):
            key = (uid or "unnamed") + (f"~{number + 1}" if number else "")
            try:
                with np.errstate(all="ignore"):
                    series = _arrange(key, group, same_pixels)
            except Exception as error:  # noqa: BLE001 - the other series go on
                series = Series(key, tuple(group), None, (problem_of(error),))
            small = number > 0 and len(group) <= _LOCALISER_AT_MOST < len(members[0])
            slices = is_placed(group[0]) and not_a_scan(group[0]) is None
            if slices and (_is_scout(group) or small or planes > 1):
                text = f"a localiser of {counted(len(group), 'image')}, not a scan."
                if planes > 1:
                    text = f"a localiser in {planes} directions, not a scan."
                problem = Problem("localiser", text)
                series = replace(series, problems=(problem, *series.problems))
            found.append(series)
    found.sort(key=lambda s: (not s.sound, -len(s.files), s.key))
    return found


def _is_scout(group: Sequence[DicomFile]) -> bool:
    """Whether scanner or technician called these images a localiser."""
    if any("LOCALIZER" in f.text("image_type").upper() for f in group):
        return True
    if any("SCOUT" in f.text("scan_options").upper() for f in group):
        return True
    named = _SCOUT_WORDS.search(group[0].text("description")) is not None
    return named and len(group) <= _PLANES_AT_MOST


def _planes(members: Sequence[Sequence[DicomFile]]) -> int:
    """In how many directions a scout of several planes looks; 0 for other series.

    Args:
        members: Groups of one series, the largest first.
    """
    stacks = [m for m in members if is_placed(m[0]) and not_a_scan(m[0]) is None]
    if len(stacks) < 2:
        return 0
    normals: list[NDArray[np.float64]] = []
    for stack in stacks:
        normal = np.cross(*stack_directions(stack))
        if all(abs(normal @ n) < _OTHER_PLANE_COSINE for n in normals):
            normals.append(normal)
    most = _PLANES_AT_MOST if len(normals) > 2 else _LOCALISER_AT_MOST
    return len(normals) if len(normals) > 1 and len(stacks[0]) <= most else 0


def _grouped(files: Iterable[DicomFile]) -> list[list[DicomFile]]:
    """Files that could be slices of one stack, in order of their first files."""
    groups: list[list[DicomFile]] = []
    alike: dict[tuple[object, ...], list[list[DicomFile]]] = defaultdict(list)
    for file in files:
        near: list[list[DicomFile]] = []
        if is_placed(file) and file.whole("frames", 1) <= 1:
            why = not_a_scan(file)
            near = alike[
                file.text("series"), file.text("rows"), file.text("columns"),
                why.code if why else "",
            ]  # fmt: skip
        # else an X-ray, or a volume in one file: alone
        home = next((g for g in near if _same_stack(g[0], file)), None)
        if home is None:
            home = []
            near.append(home)
            groups.append(home)
        home.append(file)
    return groups


def _same_stack(a: DicomFile, b: DicomFile) -> bool:
    """Whether two placed slices have the same direction and the same pixels."""
    turn_a, turn_b = a.numbers("orientation", 6) or (), b.numbers("orientation", 6)
    turns = zip(turn_a, turn_b or (), strict=True)
    if any(abs(v - w) > _SAME_TURN for v, w in turns):
        return False
    size_a, size_b = a.numbers("spacing", 2), b.numbers("spacing", 2)
    if size_a is None or size_b is None:
        return size_a == size_b
    sizes = zip(size_a, size_b, strict=True)
    return all(abs(v - w) <= _SAME_SIZE * abs(w) for v, w in sizes)


def _house_fragments(groups: list[list[DicomFile]]) -> None:
    """A file cut off before its position most likely is a slice of a neighbour.

    It joins its own series if that is known, else the only scan there, which thereby is
    damaged: without the slice that scan would not be whole. Among several scans it is
    not known whose it was, and none is blamed.
    """
    cut = [g for g in groups if len(g) == 1 and g[0].damage is not None]
    whole = [g for g in groups if not any(g is c for c in cut)]
    for fragment in cut:
        series = fragment[0].text("series")
        same = [g for g in whole if g[0].text("series") == series]
        homes = same if series else []
        if not homes:
            stacks = [g for g in whole if len(g) > 1]
            homes = stacks if len(stacks) == 1 else []
        if homes:
            max(homes, key=len).extend(fragment)
            groups[:] = [g for g in groups if g is not fragment]


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
    refused = not_a_scan(first)
    if refused is not None:
        return Series(key, tuple(group), None, (refused,))
    refused = _no_grid(first)
    if refused is not None:
        return Series(key, tuple(group), None, (refused,))
    if not is_placed(first):
        return _single(key, first)
    files, places = sorted_by_place(group)
    files, places, copies, problems = _without_copies(files, places, same_pixels)
    problems += turned_problems(files)
    if is_capture(first):
        problems.append(_rewritten(len(files)))
    far = next((f for f in files if _far_away(f)), None)
    spacing = first.numbers("spacing", 2)
    if far is not None:
        text = f"no slice lies at {far.text('position')[:80]} mm."
        problems.insert(0, Problem("affine", text))
    elif not _is_size(spacing):
        problems.append(_bad_spacing(first.text("spacing")))
    if far is not None or spacing is None or not _is_size(spacing):
        return Series(key, tuple(files), None, tuple(problems), tuple(copies))
    problems += step_problems(places)
    if len(files) == 1 and depth_mm(first) is None:
        text = "one slice, and no thickness in the header; 1 mm taken."
        problems.append(Problem("spacing_unknown", text, False))
    affine, tilt = stack_affine(files, spacing)
    problems = problems + tilt if affine is not None else tilt + problems
    return Series(key, tuple(files), affine, tuple(problems), tuple(copies))


def _no_grid(file: DicomFile) -> Problem | None:
    """Why a picture is no grid of single numbers."""
    samples = file.whole("samples", 1)
    if samples > 1:
        return Problem("colour", "true colour, not one number per pixel.")
    rows, columns = file.whole("rows", 0), file.whole("columns", 0)
    if min(rows, columns, samples) < 1:
        text = f"the header says {rows} x {columns} pixels of {samples} numbers."
        return Problem("empty", text)
    return None


def _is_size(spacing: tuple[float, ...] | None) -> bool:
    """Whether these are pixel sizes in mm that a body may be seen with."""
    return spacing is not None and all(1e-6 <= v <= _FARTHEST_MM for v in spacing)


def _bad_spacing(said: str) -> Problem:
    text = f"pixel spacing must be positive, the header says {said[:80] or 'nothing'}."
    return Problem("spacing", text)


def _far_away(file: DicomFile) -> bool:
    position = file.numbers("position", 3) or (0.0,)
    return max(abs(v) for v in position) > _FARTHEST_MM


def _rewritten(count: int) -> Problem:
    """The finding for captures that state their position."""
    if count < _CAPTURES_AT_LEAST:
        text = f"a secondary capture of {counted(count, 'image')}, not a scan."
        return Problem("capture", text)
    text = "written as secondary captures by a program, not as by a scanner."
    return Problem("secondary", text, False)


def _single(key: str, file: DicomFile) -> Series:
    """A picture without a place: an X-ray or ultrasound; nothing else may be one."""
    if not is_flat(file):
        lacking = [
            word
            for name, word, count in (
                ("position", "position", 3), ("orientation", "orientation", 6)
            )
            if file.numbers(name, count) is None
        ]  # fmt: skip
        text = f"no image {listed(lacking)} in the header: where the slice lies "
        text += "is not known."
        return Series(key, (file,), None, (Problem("no_place", text),))
    problems = []
    names = ("spacing", "imager_spacing", "film", "region_spacing")
    told = [file.text(n) for n in names if file.text(n)]
    found = (file.numbers(n, 2) for n in names)
    spacing = next((numbers for numbers in found if numbers is not None), None)
    if told and not _is_size(spacing):
        return Series(key, (file,), None, (_bad_spacing(told[0]),))
    if spacing is None:
        spacing = (1.0, 1.0)
        text = "no pixel spacing in the header; 1 mm taken."
        problems.append(Problem("spacing_unknown", text, False))
    affine = Affine.of((depth_mm(file) or 1.0, *spacing))
    return Series(key, (file,), affine, tuple(problems))


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


# A folder of DICOM files as scans.
# Numbers that anonymisers leave instead of a person's.

ReadSlice = Callable[[Path], NDArray[Any]]
_SERIES_MARK = "series="


def series_path(folder: Path, key: str) -> Path:
    """The path that stands for one series of a DICOM folder holding several."""
    return folder / f"{_SERIES_MARK}{key}"


def is_series_path(path: Path) -> bool:
    """Whether a path was made by series_path."""
    return (
        path.name.startswith(_SERIES_MARK)
        and not path.exists()
        and path.parent.is_dir()
    )


def split_series(path: Path) -> tuple[Path, str]:
    """Folder and series key; the key is "" for a plain folder."""
    if is_series_path(path):
        return path.parent, path.name[len(_SERIES_MARK) :]
    return path, ""


def dicom_files(folder: Path) -> tuple[list[DicomFile], list[DicomFile]]:
    """Images (or damaged ones) and other DICOM objects lying directly in a folder."""
    images: list[DicomFile] = []
    others: list[DicomFile] = []
    for path in sorted(folder.iterdir()):
        try:
            if path.name.startswith(".") or not path.is_file():
                continue
            if not path.stat().st_size or not looks_like_dicom(path):
                continue
            file = read_dicom_file(path)
        except Exception as error:  # noqa: BLE001 - the other files are read
            if not claims_dicom(path):
                continue
            file = DicomFile(path, damage=problem_of(error))
        (others if file.other_object else images).append(file)
    return images, others


def claims_dicom(path: Path) -> bool:
    """Whether a file that cannot be opened would have been a slice, by its name."""
    return path.suffix.lower() in ("", ".dcm", ".dicom", ".ima")


def open_series(path: Path, read_slice: ReadSlice) -> tuple[Series, list[Series]]:
    """The series a path stands for, and the others beside it.

    Args:
        path: One DICOM file, a folder (its best series), or a series_path.
        read_slice: Decodes one file; used where two slices may be copies.

    Raises:
        Unsound: ``not_an_image``, ``missing``, ``empty`` or ``unreadable``.
    """
    folder, key = split_series(path)
    if folder.is_dir():
        images, others = dicom_files(folder)
    else:
        file = read_dicom_file(folder)
        images, others = ([], [file]) if file.other_object else ([file], [])
    if not images and others:
        text = f"holds {others[0].other_object}, not a scan."
        raise Unsound("not_an_image", text, path)
    if not images:
        raise Unsound(
            "unreadable", "no DICOM images lie directly in this folder.", path
        )
    found = find_series(images, lambda a, b: _same(a, b, read_slice))
    chosen = next((s for s in found if not key or s.key == key), None)
    if chosen is None:
        known = ", ".join(s.key for s in found)
        raise Unsound("missing", f"no series {key} here; there are: {known}.", folder)
    return chosen, [s for s in found if s is not chosen]


def series_of(
    folder: Path, read_slice: ReadSlice
) -> tuple[list[Series], list[DicomFile]]:
    """The series lying directly in a folder, the best first; other DICOM objects."""
    images, others = dicom_files(folder)
    return find_series(images, lambda a, b: _same(a, b, read_slice)), others


def scans_in(folder: Path, read_slice: ReadSlice) -> tuple[list[Path], list[DicomFile]]:
    """A path for each scan among a folder's DICOM files, and the other objects there.

    A scan of one file (an X-ray) goes by that file; the only scan of a folder by the
    folder; otherwise each by its series_path.
    """
    found, others = series_of(folder, read_slice)
    paths = []
    for series in found:
        alone = len(found) == 1
        if len(series.files) == 1 and not series.copies:
            paths.append(series.files[0].path)
        else:
            paths.append(folder if alone else series_path(folder, series.key))
    return sorted(paths), others


def joined_slices(slices: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """(D, H, W) values of slices (frames, H, W), each with its own rescale slope.

    PET series change slope from slice to slice, so slices whose types differ, or that
    are not whole numbers, become float32.
    """
    kinds = {s.dtype for s in slices}
    kind = kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)
    if kind.kind == "f":
        kind = np.dtype(np.float32)
    return np.concatenate([s.astype(kind, copy=False) for s in slices])


def _same(a: Path, b: Path, read_slice: ReadSlice) -> bool:
    try:
        return bool(np.array_equal(read_slice(a), read_slice(b)))
    except Exception:  # noqa: BLE001 - not decoded, so not known to be a copy
        return False
