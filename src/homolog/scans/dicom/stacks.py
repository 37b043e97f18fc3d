"""From loose DICOM slices to scans: which belong together, where each lies.

A scan is the slices of one series with one orientation and one grid, sorted by their
position along the slice normal. Where several lie at each place, they are the volumes
of a series (echoes, times, magnitude and phase, b-values), each a scan with a name.
Copies of a slice are left out; gaps, uneven steps and stacks that lean are found from
the positions alone: what a header says of the distance of its slices is not believed.
Pictures that are no scans (captures, photographs, scouts) keep their own reason.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Affine, Index
from homolog.scans.dicom.kinds import (
    DicomFile,
    is_capture,
    is_flat,
    is_placed,
    not_a_scan,
)
from homolog.scans.dicom.placing import (
    depth_mm,
    moved_problems,
    places_of,
    same_place_mm,
    stack_affine,
    stack_directions,
    step_problems,
    turned_problems,
)
from homolog.scans.dicom.straighten import StraightGrid
from homolog.scans.dicom.volumes import Part, volumes_in
from homolog.scans.problems import Problem, problem_of
from homolog.words import counted, listed

# Slices of one stack may be turned against each other by this much (cosines; half of it
# on either side of their mean), and their pixels differ by this share: positions,
# angles and sizes are written rounded.
_SAME_TURN, _SAME_SIZE = 2e-3, 2e-4
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

# What resampling mends.
MENDABLE = {"sheared", "uneven_slices"}

SamePixels = Callable[[DicomFile, DicomFile], bool]


@dataclass(frozen=True)
class Series:
    """Slices that make one scan.

    Attributes:
        key: Series UID, with ``~2``, ``~3`` for further scans of the same series.
        files: In slice order, copies left out; frames of a file one by one.
        affine: Voxel -> mm; None when the positions do not give one.
        problems: Findings about the slices.
        copies: Files left out because another is the same slice.
        part: Which volume of its series it is, in words; "" where it is the only one.
        straight: The grid that its slices are to be resampled to, where asked for.
    """

    key: str
    files: tuple[DicomFile, ...]
    affine: Affine | None = None
    problems: tuple[Problem, ...] = ()
    copies: tuple[Path, ...] = field(default=())
    part: str = ""
    straight: StraightGrid | None = None

    @property
    def shape(self) -> Index:
        """(D, H, W)."""
        if self.straight is not None:
            return self.straight.shape
        first = self.files[0]
        frames = first.whole("frames", 1) if len(self.files) == 1 else len(self.files)
        return frames, first.whole("rows", 0), first.whole("columns", 0)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, each once."""
        return tuple(dict.fromkeys(f.path for f in self.files))

    @property
    def sound(self) -> bool:
        """Whether there is no fatal finding among the slices."""
        return self.affine is not None and not any(p.fatal for p in self.problems)

    @property
    def mendable(self) -> bool:
        """Whether nothing is wrong but the places of the slices."""
        fatal = {p.code for p in self.problems if p.fatal}
        return self.affine is not None and bool(fatal) and fatal <= MENDABLE

    def straightened(self) -> Series:
        """The same slices on a straight and even grid; itself where it is on one."""
        if not self.mendable:
            return self
        grid = StraightGrid.around(self.files)
        rest = tuple(p for p in self.problems if not p.fatal)
        done = Problem("straightened", grid.text, False)
        problems = (done, *rest)
        return replace(self, affine=grid.affine, problems=problems, straight=grid)

    @property
    def description(self) -> str:
        """What the scanner called it, and which part of the series it is."""
        return ", ".join(t for t in (self.files[0].text("description"), self.part) if t)

    @property
    def title(self) -> str:
        """What to call it in a sentence."""
        name = self.description or self.files[0].text("modality")
        return f"{name or 'series'} ({len(self.files)} images)"


def find_series(files: Iterable[DicomFile], same_pixels: SamePixels) -> list[Series]:
    """Scans among the files of one folder, the best first.

    Args:
        files: Files with pixels, or damaged ones.
        same_pixels: Whether two slices show the same picture; called only where two lie
            at one place with different identities.

    Returns:
        Sound scans before unsound ones, then by number of slices, then by key.
    """
    slices = [s for f in sorted(files, key=lambda f: f.path.name) for s in _slices(f)]
    groups = _grouped(slices)
    _house_fragments(groups)
    by_uid: dict[str, list[list[DicomFile]]] = defaultdict(list)
    for group in groups:
        by_uid[group[0].text("series")].append(group)
    found: list[Series] = []
    for uid, members in by_uid.items():
        members.sort(key=len, reverse=True)
        planes = _planes(members) if uid else 0
        scans: list[Series] = []
        for number, group in enumerate(members):
            small = number > 0 and len(group) <= _LOCALISER_AT_MOST < len(members[0])
            made = _scans_of(group, same_pixels)
            if _is_slices(group) and (_is_scout(group) or small or planes > 1):
                made = [_as_localiser(one, planes) for one in made]
            scans += made
        found += [
            replace(s, key=(uid or "unnamed") + (f"~{number + 1}" if number else ""))
            for number, s in enumerate(scans)
        ]
    found.sort(key=lambda s: (not s.sound, -len(s.files), s.key))
    return found


def _slices(file: DicomFile) -> list[DicomFile]:
    """The frames of an enhanced file that say where they lie; other files whole."""
    if not file.frames or file.damage is not None:
        return [file]
    frames = file.each_frame()
    placed = all(is_placed(f) and f.numbers("spacing", 2) for f in frames)
    film = not_a_scan(file)
    if placed and (film is None or film.code == "multi_frame"):
        return frames
    return [file]


def _scans_of(group: Sequence[DicomFile], same_pixels: SamePixels) -> list[Series]:
    """The volumes of a group, each arranged; whatever goes wrong is its finding."""
    try:
        with np.errstate(all="ignore"):
            parts = sorted(_parts(group), key=lambda p: -len(p.files))
            scans = [_arrange(part.files, same_pixels) for part in parts]
    except Exception as error:  # noqa: BLE001 - the other series go on
        return [Series("", tuple(group), None, (problem_of(error),))]
    if len(parts) == 1:
        return scans
    largest = max(len(s.files) for s in scans)
    told = []
    for number, (part, scan) in enumerate(zip(parts, scans, strict=True)):
        text = f"volume {number + 1} of {len(parts)} of its series: {part.name}."
        problems = (*scan.problems, Problem("part", text, False))
        if len(scan.files) <= _LOCALISER_AT_MOST < largest:
            many = counted(len(scan.files), "image")
            text = f"{many} beside a volume of {largest} of the same series, not a scan"
            text += f" ({part.name}; {listed(p.name for p in scan.paths)})."
            problems = (Problem("localiser", text), *problems)
        told.append(replace(scan, problems=problems, part=part.name))
    return told


def _parts(group: Sequence[DicomFile]) -> list[Part]:
    """The volumes among slices that could be one stack."""
    whole = [Part("", list(group))]
    first = group[0]
    if any(f.damage for f in group) or not_a_scan(first) or len(group) < 3:
        return whole
    if not is_placed(first) or any(_far_away(f) for f in group):
        return whole
    return volumes_in(group) or whole


def _is_slices(group: Sequence[DicomFile]) -> bool:
    return is_placed(group[0]) and not_a_scan(group[0]) is None


def _as_localiser(series: Series, planes: int) -> Series:
    text = f"a localiser of {counted(len(series.files), 'image')}, not a scan."
    if planes > 1:
        text = f"a localiser in {planes} directions, not a scan."
    return replace(series, problems=(Problem("localiser", text), *series.problems))


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
    stacks = [m for m in members if _is_slices(m)]
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
    """Slices that could be of one stack, in order of the first of each."""
    groups: list[list[DicomFile]] = []
    alike: dict[tuple[object, ...], list[list[DicomFile]]] = defaultdict(list)
    for file in files:
        near: list[list[DicomFile]] = []
        placed = is_placed(file)
        if file.whole("frames", 1) <= 1 and (placed or _of_unknown_place(file)):
            why = not_a_scan(file)
            near = alike[
                file.text("series"), file.text("rows"), file.text("columns"), placed,
                why.code if why else "",
            ]  # fmt: skip
        # else an X-ray, or a file of many frames: alone
        home = next((g for g in near if _same_stack(g[0], file)), None)
        if home is None:
            home = []
            near.append(home)
            groups.append(home)
        home.append(file)
    return groups


def _of_unknown_place(file: DicomFile) -> bool:
    """Whether a picture ought to say where it lies, and belongs to a series."""
    return (
        bool(file.text("series"))
        and file.damage is None
        and not is_flat(file)
        and not_a_scan(file) is None
    )


def _same_stack(a: DicomFile, b: DicomFile) -> bool:
    """Whether two slices have the same direction and the same pixels."""
    turn_a, turn_b = a.numbers("orientation", 6), b.numbers("orientation", 6)
    if turn_a is not None and turn_b is not None and is_placed(a):
        turns = zip(turn_a, turn_b, strict=True)
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
        if not series:
            stacks = [g for g in whole if len(g) > 1]
            homes = stacks if len(stacks) == 1 else []
        if homes:
            max(homes, key=len).extend(fragment)
            groups[:] = [g for g in groups if g is not fragment]


def _arrange(group: Sequence[DicomFile], same_pixels: SamePixels) -> Series:
    first = group[0]
    damage = [
        Problem(f.damage.code, f"{f.path.name}: {f.damage.text}")
        for f in group
        if f.damage
    ]
    if damage:
        return Series("", tuple(group), None, tuple(damage[:3]))
    refused = not_a_scan(first) or _no_grid(first)
    if refused is not None:
        return Series("", tuple(group), None, (refused,))
    if not is_placed(first):
        return _single(first) if len(group) == 1 else _by_number(group)
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
        return Series("", tuple(files), None, tuple(problems), tuple(copies))
    problems += step_problems(places)
    if len(files) == 1 and depth_mm(first) is None:
        text = "one slice, and no thickness in the header; 1 mm taken."
        problems.append(Problem("spacing_unknown", text, False))
    affine, tilt = stack_affine(files, spacing)
    problems = problems + tilt if affine is not None else tilt + problems
    if affine is not None and not any(p.fatal for p in problems):
        problems += moved_problems(files, affine)
    return Series("", tuple(files), affine, tuple(problems), tuple(copies))


def sorted_by_place(
    group: Sequence[DicomFile],
) -> tuple[list[DicomFile], NDArray[np.float64]]:
    """Slices in order along the normal, and each one's place on it in mm."""
    where = places_of(group)
    order = np.lexsort((np.arange(len(group)), where))
    return [group[i] for i in order], where[order]


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


def _lacking(file: DicomFile) -> str:
    """What a slice does not say of its place."""
    lacking = [
        word
        for name, word, count in (
            ("position", "position", 3), ("orientation", "orientation", 6)
        )
        if file.numbers(name, count) is None
    ]  # fmt: skip
    return f"no image {listed(lacking)} in the header"


def _by_number(group: Sequence[DicomFile]) -> Series:
    """Slices that do not say where they lie, in the order of their numbers."""
    files = sorted(group, key=lambda f: (f.whole("instance", -1), f.path.name))
    numbers = {f.whole("instance", -1) for f in files}
    why = f"{_lacking(files[0])}s of {counted(len(files), 'slice')}"
    if len(numbers) < len(files) or -1 in numbers:
        text = f"{why}, nor a number for each: their order is not known."
        return Series("", tuple(files), None, (Problem("no_place", text),))
    text = f"{why}: in the order of their numbers; place and sides are not known."
    problems = [Problem("no_place", text, False)]
    spacing = files[0].numbers("spacing", 2)
    if spacing is None or not _is_size(spacing):
        spacing = (1.0, 1.0)
    depth = depth_mm(files[0])
    if depth is None or files[0].numbers("spacing", 2) != spacing:
        text = "no voxel size in the header; 1 mm taken."
        problems.append(Problem("spacing_unknown", text, False))
    affine = Affine.of((depth or 1.0, *spacing))
    return Series("", tuple(files), affine, tuple(problems))


def _single(file: DicomFile) -> Series:
    """A picture without a place: an X-ray or ultrasound; nothing else may be one."""
    if not is_flat(file):
        text = f"{_lacking(file)}: where the slice lies is not known."
        return Series("", (file,), None, (Problem("no_place", text),))
    problems = []
    names = ("spacing", "imager_spacing", "film", "region_spacing")
    told = [file.text(n) for n in names if file.text(n)]
    found = (file.numbers(n, 2) for n in names)
    spacing = next((numbers for numbers in found if numbers is not None), None)
    if told and not _is_size(spacing):
        return Series("", (file,), None, (_bad_spacing(told[0]),))
    if spacing is None:
        spacing = (1.0, 1.0)
        text = "no pixel spacing in the header; 1 mm taken."
        problems.append(Problem("spacing_unknown", text, False))
    affine = Affine.of((depth_mm(file) or 1.0, *spacing))
    return Series("", (file,), affine, tuple(problems))


def _without_copies(
    files: list[DicomFile], places: NDArray[np.float64], same_pixels: SamePixels
) -> tuple[list[DicomFile], NDArray[np.float64], list[Path], list[Problem]]:
    kept: list[int] = []
    copies: list[Path] = []
    others = 0
    near = same_place_mm(places)
    for i, file in enumerate(files):
        here = []
        for k in reversed(kept):  # in order of place
            if places[i] - places[k] >= near:
                break
            here.append(k)
        uid = file.text("sop_uid")
        same = any(
            (uid and files[k].text("sop_uid") == uid) or same_pixels(files[k], file)
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
    ends = np.flatnonzero(np.diff(places) >= same_place_mm(places))
    counts = np.diff(np.concatenate([[-1], ends, [len(places) - 1]]))
    if len(set(counts.tolist())) == 1:
        text = (
            f"4D: {counts[0]} images at each of {len(counts)} places (time, echo ...), "
            "and nothing in their headers tells which belong together."
        )
        return Problem("4d", text)
    text = "different images lie at the same place."
    return Problem("duplicate_slice", text)
