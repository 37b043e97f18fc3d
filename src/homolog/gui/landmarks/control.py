"""What the landmark panel knows and decides; no Qt, no napari.

Scans, encoder and features are those of ``explore.control``: this adds which scan is A,
which is B, and the landmarks of each pair. Places are true millimetres (z, y, x), LPS.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from homolog.data.landmarks import Landmark
from homolog.errors import UnusableInput
from homolog.geometry.affine import Triple
from homolog.gui.explore import control
from homolog.gui.explore.control import ExploreControl, Hint
from homolog.gui.explore.layers import Mark, shown_of
from homolog.gui.explore.scan import Scan
from homolog.gui.landmarks.table import COLOURS, SYMBOLS, LandmarkTable
from homolog.tasks._consensus import Consensus, fit_consensus
from homolog.tasks._landmark_rules import LandmarksConfig

ONE_SCAN = "Landmarks need two scans. Open another one, or choose a file as scan B."
SAME = "Scan A and scan B are the same. Choose another one as scan B."
COMPUTE = "Features of both scans are computed once and kept. Press Compute features."
READY = (
    "Shift+click a place in scan A (or press Pick, then click). It is searched in B."
)
IN_3D = "Places are picked in the 2D view: press Ctrl+Y or the 2D button."
# All that may be told, the command that installs apart: room is kept for the longest.
HINTS = (ONE_SCAN, SAME, COMPUTE, READY, IN_3D, *control.HINTS)
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
                return Hint(control.COMPUTING)
            if "looking" in states:
                return Hint(control.LOOKING)
            if book.engine_missing:
                return book.hint(ndisplay) if "ready" not in states else Hint(COMPUTE)
            return Hint(COMPUTE, "compute")
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
