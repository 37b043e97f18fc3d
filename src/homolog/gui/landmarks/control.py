"""What the landmark panel knows and decides; no Qt, no napari.

Scans, encoder and features are those of ``explore.control``: this adds which scan is A,
which is B, and the landmarks of each pair. Places are true millimetres (z, y, x), LPS.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from homolog import writing
from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine, Triple
from homolog.geometry.places import place_numbers
from homolog.gui.shared import scans
from homolog.gui.shared.scan_layers import Mark, shown_of
from homolog.gui.shared.scans import ExploreControl, Hint, Scan
from homolog.landmarks.config import LandmarksConfig
from homolog.landmarks.match import Consensus, fit_consensus, judged
from homolog.scans.points import (
    NAN,
    SUFFIX,
    Coordinates,
    Landmark,
    read_landmark_markups,
    read_landmark_points,
    read_landmarks,
    write_landmark_markups,
    write_landmarks,
    write_markups,
)
from homolog.scans.volume import Points

# The landmarks of one pair of scans, and how far each is to be trusted. No Qt.


Trust: TypeAlias = Literal["sure", "unsure", "refused", "manual", "searching"]

SEARCHING = "searching"
BY_HAND = "refused by hand"
# Accepted, but worth a look: hardly better than another place, or leads back beside.
CLEAR_MARGIN, CLEAR_CYCLE_MM = 0.02, 8.0

# Okabe and Ito's green, orange, vermilion, blue; the symbol says it without colour.
COLOURS: dict[Trust, str] = {
    "sure": "#009e73", "unsure": "#e69f00", "refused": "#d55e00",
    "manual": "#56b4e9", "searching": "#999999",
}  # fmt: skip
SYMBOLS: dict[Trust, str] = {
    "sure": "disc", "unsure": "diamond", "refused": "cross",
    "manual": "square", "searching": "disc",
}  # fmt: skip
MARKS: dict[Trust, str] = {
    "sure": "●", "unsure": "◆", "refused": "✚", "manual": "■", "searching": "…",
}  # fmt: skip
WORDS: dict[Trust, str] = {
    "sure": "sure", "unsure": "unsure, have a look", "refused": "refused",
    "manual": "set by hand", "searching": "searching ...",
}  # fmt: skip


def trust_of(mark: Landmark, outlier: bool = False) -> Trust:
    """How far a landmark is to be trusted: by its figures, or because a person set it.

    Args:
        mark: The landmark.
        outlier: Whether it contradicts the map the others agree on.
    """
    if mark.manual:
        return "manual"
    if mark.b_mm is None and mark.reason == SEARCHING:
        return "searching"
    if not mark.accepted or mark.b_mm is None:
        return "refused"
    doubtful = mark.margin < CLEAR_MARGIN or mark.cycle_mm > CLEAR_CYCLE_MM
    return "unsure" if doubtful or outlier else "sure"


@dataclass
class LandmarkTable:
    """Landmarks in order, the chosen one, and what a person decided.

    Attributes:
        chosen: Id of the landmark both viewers show.
        outliers: Ids that contradict the last fit.
    """

    chosen: int | None = None
    outliers: set[int] = field(default_factory=set)
    _marks: dict[int, Landmark] = field(default_factory=dict)
    _decided: set[int] = field(default_factory=set)
    _last: int = 0

    def __iter__(self) -> Iterator[Landmark]:
        return iter(list(self._marks.values()))

    def __len__(self) -> int:
        return len(self._marks)

    def get(self, number: int | None) -> Landmark | None:
        """A landmark by its id."""
        return None if number is None else self._marks.get(number)

    @property
    def current(self) -> Landmark | None:
        """The chosen one."""
        return self.get(self.chosen)

    def trust(self, mark: Landmark) -> Trust:
        """See ``trust_of``."""
        return trust_of(mark, mark.id in self.outliers)

    def add(self, a_mm: Triple, name: str = "") -> Landmark:
        """A place of A that is yet to be searched in B; it becomes the chosen one."""
        self._last += 1
        mark = Landmark(
            self._last, _plain(name) or f"point {self._last}", a_mm, None,
            NAN, NAN, NAN, False, SEARCHING,
        )  # fmt: skip
        self._marks[mark.id] = mark
        self.chosen = mark.id
        return mark

    def restore(self, marks: Iterable[Landmark]) -> list[Landmark]:
        """Landmarks of a file or a saved pair, with new ids where one is taken."""
        added = []
        for mark in marks:
            number = mark.id
            if number in self._marks or number < 1:
                number = self._last + 1
            self._last = max(self._last, number)
            kept = replace(mark, id=number)
            if kept.b_mm is None and kept.reason == SEARCHING:
                kept = replace(kept, reason="not searched yet")
            self._marks[number] = kept
            if kept.reason == BY_HAND:
                self._decided.add(number)
            added.append(kept)
        return added

    def found(self, number: int, answer: Landmark) -> bool:
        """What the search found for a landmark; whether that was taken.

        A place that a person set in B meanwhile is kept, and so is their verdict.
        """
        mark = self._marks.get(number)
        if mark is None or mark.manual:
            return False
        kept = replace(answer, id=number, name=mark.name, a_mm=mark.a_mm, manual=False)
        if number in self._decided and kept.b_mm is not None:
            kept = replace(kept, accepted=mark.accepted, reason=mark.reason)
        self._marks[number] = kept
        self.outliers.discard(number)
        return True

    def lost(self, number: int, sentence: str) -> None:
        """The search did not work."""
        mark = self._marks.get(number)
        if mark is not None and not mark.manual:
            self._marks[number] = replace(mark, accepted=False, reason=sentence)

    def set_by_hand(self, number: int, b_mm: Triple, similarity: float = NAN) -> None:
        """A person put the place in B where it belongs."""
        mark = self._marks[number]
        self._marks[number] = replace(
            mark, b_mm=b_mm, similarity=similarity, margin=NAN, cycle_mm=NAN,
            accepted=True, reason="", manual=True,
        )  # fmt: skip
        self.outliers.discard(number)

    def accept(self, number: int, accepted: bool) -> None:
        """A person's verdict; it outlives another search."""
        mark = self._marks[number]
        if mark.b_mm is None:
            return
        reason = "" if accepted else BY_HAND
        self._marks[number] = replace(mark, accepted=accepted, reason=reason)
        self._decided.add(number)

    def judge(self, limits: LandmarksConfig) -> None:
        """Judge what was found by other limits; a person's verdict stays."""
        for number, mark in self._marks.items():
            if number not in self._decided:
                self._marks[number] = judged(mark, limits)

    def rename(self, number: int, name: str) -> None:
        """Give a landmark a name; an empty one changes nothing."""
        mark = self._marks[number]
        self._marks[number] = replace(mark, name=_plain(name) or mark.name)

    def delete(self, number: int) -> None:
        """Forget a landmark; its neighbour becomes the chosen one."""
        numbers = list(self._marks)
        place = numbers.index(number)
        del self._marks[number]
        self._decided.discard(number)
        self.outliers.discard(number)
        if self.chosen == number:
            left = list(self._marks)
            self.chosen = left[min(place, len(left) - 1)] if left else None

    def to_search(self) -> list[Landmark]:
        """Those that another search may change: not what a person set."""
        return [m for m in self if not m.manual]

    def uncertain(self) -> list[int]:
        """Ids worth a look: unsure ones by margin, then refused ones."""
        ranks = {"unsure": 0, "refused": 1}
        found = [
            (ranks[self.trust(m)], m.margin if not math.isnan(m.margin) else 0.0, m.id)
            for m in self
            if self.trust(m) in ranks and m.id not in self._decided
        ]
        return [number for _, _, number in sorted(found)]

    def next_uncertain(self) -> int | None:
        """The id to look at now; the chosen one's follower, round and round."""
        numbers = self.uncertain()
        if not numbers:
            return None
        if self.chosen in numbers:
            at = numbers.index(self.chosen)
            return numbers[(at + 1) % len(numbers)]
        return numbers[0]

    def pairs(self) -> list[Landmark]:
        """Accepted landmarks with both places: what a fit is made of."""
        return [m for m in self if m.accepted and m.b_mm is not None]


def number_text(value: float, digits: int = 2) -> str:
    """A figure, or a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def place_text(mm: Triple | None) -> str:
    """``x, y, z`` in mm for a column that says so, or a dash."""
    return "–" if mm is None else place_numbers(mm)


def _plain(name: str) -> str:
    return " ".join(name.split())


ONE_SCAN = "Landmarks need two scans. Open another one, or choose a file as scan B."
SAME = "Scan A and scan B are the same. Choose another one as scan B."
COMPUTE = "Features of both scans are computed once and kept. Press Compute features."
READY = (
    "Shift+click a place in scan A (or press Pick, then click). It is searched in B."
)
IN_3D = "Places are picked in the 2D view: press Ctrl+Y or the 2D button."
# All that may be told, the command that installs apart: room is kept for the longest.
HINTS = (ONE_SCAN, SAME, COMPUTE, READY, IN_3D, *scans.HINTS)
NOT_IN_A = "That place is not in scan A. Move the mouse over scan A."


@dataclass
class LandmarksControl:
    """All state of the panel.

    Attributes:
        book: Encoder, open scans and how far their features are.
        a: Key of scan A; "" for none.
        b: Likewise.
        own_b: Keys of scans that were opened for B alone.
        follow: Whether B follows the mouse of A.
        limits: When a match is believed.
        tables: Landmarks of each pair of scans.
    """

    book: ExploreControl = field(default_factory=ExploreControl)
    a: str = ""
    b: str = ""
    own_b: set[str] = field(default_factory=set)
    follow: bool = False
    limits: LandmarksConfig = field(default_factory=LandmarksConfig)
    tables: dict[tuple[str, str], LandmarkTable] = field(default_factory=dict)

    @property
    def scan_a(self) -> Scan | None:
        """Scan A, while it is open."""
        return self.book.scans.get(self.a)

    @property
    def scan_b(self) -> Scan | None:
        """Scan B, while it is open."""
        return self.book.scans.get(self.b)

    @property
    def table(self) -> LandmarkTable:
        """Landmarks of the chosen pair; kept when another pair is chosen meanwhile."""
        pair = (_ident(self.scan_a), _ident(self.scan_b))
        return self.tables.setdefault(pair, LandmarkTable())

    @property
    def is_ready(self) -> bool:
        """Whether both scans can be asked."""
        a, b = self.scan_a, self.scan_b
        if a is None or b is None or a is b:
            return False
        return a.ready is not None and b.ready is not None

    def a_choices(self) -> list[Scan]:
        """Scans that can be A: those of the main viewer."""
        return [s for k, s in self.book.scans.items() if k not in self.own_b]

    def b_choices(self) -> list[Scan]:
        """Scans that can be B."""
        return list(self.book.scans.values())

    def settle(self) -> bool:
        """Choose A and B where they are not there; whether one changed."""
        before = (self.a, self.b)
        of_a = [s.key for s in self.a_choices()]
        if self.a not in of_a:
            self.a = next((k for k in of_a if k != self.b), of_a[0] if of_a else "")
        of_b = [s.key for s in self.b_choices()]
        if self.b not in of_b or self.b == self.a:
            self.b = next((k for k in of_b if k != self.a), "")
        return (self.a, self.b) != before

    def swap(self) -> bool:
        """A becomes B and B becomes A, where B is open in the main viewer."""
        if not self.a or not self.b or self.b in self.own_b:
            return False
        self.a, self.b = self.b, self.a
        return True

    def hint(self, ndisplay: int = 2) -> Hint:
        """What to tell now."""
        book = self.book
        if book.encoder is None or not book.scans:
            return book.hint(ndisplay)
        if len(book.scans) < 2 or not self.b:
            return Hint(ONE_SCAN, "file")
        if self.a == self.b:
            return Hint(SAME)
        pair = [s for s in (self.scan_a, self.scan_b) if s is not None]
        states = {scan.state for scan in pair}
        if states != {"ready"}:
            if states & {"computing", "waiting"}:
                return Hint(scans.COMPUTING)
            if "looking" in states:
                return Hint(scans.LOOKING)
            if book.engine_missing:
                return book.hint(ndisplay) if "ready" not in states else Hint(COMPUTE)
            return Hint(COMPUTE, "compute", len(self.to_compute()))
        return Hint(IN_3D if ndisplay == 3 else READY)

    def to_compute(self) -> list[str]:
        """Keys of the pair's scans without features."""
        pair = [s for s in (self.scan_a, self.scan_b) if s is not None]
        return [s.key for s in pair if s.state in ("none", "failed")]

    def place_in_a(self, shown_mm: NDArray[np.float64]) -> Triple | None:
        """True mm of a shown position, where that lies in scan A."""
        return _place(self.scan_a, shown_mm)

    def place_in_b(self, shown_mm: NDArray[np.float64]) -> Triple | None:
        """Likewise for B."""
        return _place(self.scan_b, shown_mm)

    def shown_in_a(self, mark: Landmark) -> NDArray[np.float64] | None:
        """Where a landmark is shown over scan A."""
        scan = self.scan_a
        return None if scan is None else shown_of(scan.to_true, mark.a_mm)

    def shown_in_b(self, mark: Landmark) -> NDArray[np.float64] | None:
        """Where a landmark is shown over scan B; None where it was not found."""
        scan = self.scan_b
        if scan is None or mark.b_mm is None:
            return None
        return shown_of(scan.to_true, mark.b_mm)

    def marks(self, side: str) -> list[Mark]:
        """Points to show over ``a`` or ``b``: number, colour and symbol by trust."""
        found, table = [], self.table
        for mark, shown in self._shown(side):
            trust = table.trust(mark)
            found.append(Mark(shown, str(mark.id), SYMBOLS[trust], COLOURS[trust]))
        return found

    def near_in_b(
        self, shown_mm: NDArray[np.float64], within_mm: float
    ) -> Landmark | None:
        """The landmark whose place in B is nearest to a shown position."""
        best: tuple[float, Landmark] | None = None
        for mark, shown in self._shown("b"):
            far = float(np.linalg.norm(shown - shown_mm))
            if far <= within_mm and (best is None or far < best[0]):
                best = (far, mark)
        return None if best is None else best[1]

    def _shown(self, side: str) -> list[tuple[Landmark, NDArray[np.float64]]]:
        """Landmarks that have a place on a side, and where it is shown."""
        scan = self.scan_a if side == "a" else self.scan_b
        marks = [m for m in self.table if side == "a" or m.b_mm is not None]
        if scan is None or not marks:
            return []
        places = np.array([m.a_mm if side == "a" else m.b_mm for m in marks])
        shown = scan.to_true.inverse().apply(places)
        return list(zip(marks, shown, strict=True))

    def set_limits(self, limits: LandmarksConfig) -> None:
        """Judge the landmarks of all pairs anew; nothing is searched."""
        self.limits = limits
        for table in self.tables.values():
            table.judge(limits)

    def fit(self, kind: str) -> str:
        """Fit a map to the accepted landmarks and flag outliers; the result in words.

        Args:
            kind: ``rigid``, ``similarity`` or ``affine``.
        """
        table = self.table
        pairs = table.pairs()
        table.outliers.clear()
        try:
            fitted = fit_consensus(
                np.array([m.a_mm for m in pairs]).reshape(-1, 3),
                np.array([m.b_mm for m in pairs]).reshape(-1, 3),
                kind=kind,
            )
        except UnusableInput as error:
            return f"No {kind} fit: {error}"
        table.outliers.update(
            m.id for m, agrees in zip(pairs, fitted.inliers, strict=True) if not agrees
        )
        return fit_words(fitted, [m.id for m in pairs])


def fit_words(fitted: Consensus, numbers: list[int]) -> str:
    """A fit in one or two sentences: errors in mm, and who disagrees."""
    inliers = fitted.inliers
    left = fitted.leave_one_out_mm[inliers]
    left = left[~np.isnan(left)]
    told = f"{fitted.kind.capitalize()} fit of {int(inliers.sum())} landmarks: "
    told += f"RMS {fitted.rms_mm:.1f} mm"
    if left.size:
        told += f", leave-one-out median {np.median(left):.1f} mm"
        told += f" (worst {left.max():.1f})"
    else:
        told += ", too few for a leave-one-out error"
    out = [str(n) for n, agrees in zip(numbers, inliers, strict=True) if not agrees]
    if out:
        told += f". Outliers: {', '.join(out)}; have a look at them"
    return told + "."


def _place(scan: Scan | None, shown_mm: NDArray[np.float64]) -> Triple | None:
    if scan is None or not scan.holds(shown_mm):
        return None
    z, y, x = (float(v) for v in scan.to_true.apply(shown_mm))
    return z, y, x


def _ident(scan: Scan | None) -> str:
    """What tells a scan when it is closed and opened again."""
    if scan is None:
        return ""
    return str(scan.ref.path or scan.ref.name)


# Landmarks from files and into files; nothing is ever replaced. No Qt.


ENDINGS = (SUFFIX, ".csv", ".json")


def read_marks(path: Path, affine_a: Affine | None) -> list[Landmark]:
    """Landmarks of a file; where it holds points alone, they are places in A.

    Args:
        path: ``.csv``, ``.json`` or ``.mrk.json``.
        affine_a: Voxel -> mm of scan A, for tables of voxel indices.

    Raises:
        UnusableInput: It is none of these; the sentence says why.
    """
    try:
        if path.name.lower().endswith(SUFFIX):
            return read_landmark_markups(path)
        return read_landmarks(path)
    except UnusableInput:
        points = read_landmark_points(path, affine=affine_a)
    names = points.names or tuple(f"point {i + 1}" for i in range(len(points.mm)))
    return [
        Landmark(
            i + 1, name, (float(mm[0]), float(mm[1]), float(mm[2])), None,
            NAN, NAN, NAN, False, SEARCHING,
        )
        for i, (name, mm) in enumerate(zip(names, points.mm, strict=True))
    ]  # fmt: skip


def write_marks(
    marks: list[Landmark],
    path: Path,
    coordinates: Coordinates,
    affine_b: Affine | None = None,
) -> list[Path]:
    """Write landmarks in the format of the file's ending; ``.csv`` where it has none.

    A ``.mrk.json`` becomes two lists, one of each scan, since Slicer shows one scan's
    points per list. A name that is taken gets ``_v2``.

    Returns:
        The files that were written.

    Raises:
        UnusableInput: There is nothing to write.
        OSError: It cannot be written.
    """
    if not marks:
        raise UnusableInput("there are no landmarks to save.")
    stem, ending = split_name(path)
    if ending != SUFFIX:
        free = free_name(path.parent, stem, [ending])[0]
        write_landmarks(marks, free, coordinates=coordinates, affine_b=affine_b)
        return [free]
    in_a, in_b = free_name(path.parent, stem, [f"_A{SUFFIX}", f"_B{SUFFIX}"])
    places = np.array([m.a_mm for m in marks], np.float64)
    names = tuple(m.name for m in marks)
    write_markups(Points(places, names), in_a, coordinates=coordinates)
    write_landmark_markups(marks, in_b, coordinates=coordinates)
    return [in_a, in_b]


def split_name(path: Path) -> tuple[str, str]:
    """Stem and one of ENDINGS; ``.csv`` where the name has another one or none."""
    name = path.name
    for ending in ENDINGS:
        if name.lower().endswith(ending):
            return name[: -len(ending)] or "landmarks", ending
    return name or "landmarks", ".csv"


def free_name(folder: Path, stem: str, endings: list[str]) -> list[Path]:
    """Files of a common stem, none of which is there yet: ``stem``, ``stem_v2`` ..."""

    def paths(name: str) -> list[Path]:
        return [folder / f"{name}{ending}" for ending in endings]

    return paths(
        writing.free_name(stem, lambda name: any(p.exists() for p in paths(name)))
    )


# All landmarks of a window as plain JSON types, and back; for the autosave. No Qt.


def kept(control: LandmarksControl) -> list[dict[str, Any]]:
    """An entry per pair of scans that has landmarks."""
    return [
        {"a": a, "b": b, "landmarks": [asdict(mark) for mark in table]}
        for (a, b), table in control.tables.items()
        if len(table)
    ]


def put_back(control: LandmarksControl, entries: Iterable[Mapping[str, Any]]) -> int:
    """Add what ``kept`` gave; they are shown when their scans are A and B again.

    Returns:
        How many landmarks were put back.
    """
    count = 0
    for entry in entries:
        pair = (str(entry["a"]), str(entry["b"]))
        table = control.tables.setdefault(pair, LandmarkTable())
        count += len(table.restore([_mark(m) for m in entry["landmarks"]]))
    return count


def _mark(entry: Mapping[str, Any]) -> Landmark:
    b = entry["b_mm"]
    return Landmark(
        **{
            **entry,
            "a_mm": _triple(entry["a_mm"]),
            "b_mm": None if b is None else _triple(b),
        }
    )


def _triple(values: Iterable[float]) -> Triple:
    z, y, x = (float(v) for v in values)
    return z, y, x
