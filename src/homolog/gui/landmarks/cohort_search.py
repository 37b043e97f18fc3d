"""One landmark searched in every open scan; the pattern that other sources follow."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import QObject, Signal

from homolog.data.landmarks import Landmark
from homolog.gui.explore.scan import Scan
from homolog.gui.landmarks.cohort import Row, computing_words, find_in, summary
from homolog.gui.landmarks.session import Session
from homolog.gui.threads import in_background


class CohortSearch(QObject):
    """A landmark and what was found of it, scan by scan.

    Signals:
        changed: Rows came or went, or more is known of one.
        told: A sentence about what was done.

    Attributes:
        found: Rows by key, in the order of the scans.
        mark: What is searched.

    Args:
        session: Asked and told.
    """

    changed = Signal()
    told = Signal(str)

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.session = session
        self.found: dict[str, Row] = {}
        self.mark: Landmark | None = None

    @property
    def busy(self) -> bool:
        """Whether there is something to cancel."""
        return False

    @property
    def share(self) -> float:
        """Done of the work, 0..1."""
        told = self.found.values()
        done = sum(
            1.0 if row.state in ("found", "failed") else row.share for row in told
        )
        return done / max(len(told), 1)

    @property
    def doing(self) -> str:
        """Which scan's features are being computed, and how far; "" for none."""
        rows = [row for row in self.found.values() if row.state == "computing"]
        return f"{rows[0].name}: {rows[0].words}" if rows else ""

    def find(self, mark: Landmark) -> None:
        """Search a landmark of scan A everywhere, anew."""
        raise NotImplementedError

    def compute(self) -> None:
        """Compute what is missing, and search there."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Search and compute no more; what was found stays."""

    def open(self, key: str) -> None:
        """Show what was found in a scan as scan B."""
        raise NotImplementedError

    def judge(self) -> None:
        """The limits are others."""
        for row in self.found.values():
            row.judge(self.session.control.limits)
        self.changed.emit()

    def forget(self) -> None:
        """Another scan A, or the landmark is gone: nothing found belongs to it."""
        self.cancel()
        self.mark, self.found = None, {}
        self.changed.emit()

    def take(self, row: Row, answer: tuple[Landmark, Any]) -> None:
        """What was found in a scan."""
        row.mark, row.picture = answer
        row.state, row.words = "found", ""
        row.judge(self.session.control.limits)
        self.changed.emit()

    def fail(self, row: Row, error: object) -> None:
        """Why a scan cannot be searched."""
        row.state, row.words = "failed", str(error)
        self.changed.emit()

    def conclude(self) -> None:
        """Tell the result once no scan is searched any more."""
        name = "" if self.mark is None else self.mark.name
        if self.found and not self.busy:
            self.told.emit(f"'{name}': {summary(self.found.values())}.")


class OpenScans(CohortSearch):
    """Every open scan but A; those with features answer at once."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        session.scans_changed.connect(self._scans_changed)
        session.scan_changed.connect(self._scan_changed)

    def find(self, mark: Landmark) -> None:
        """See CohortSearch."""
        control = self.session.control
        self.mark, self.found = mark, {}
        for scan in control.book.scans.values():
            if scan.key != control.a:
                self._find(scan)
        count = sum(row.state == "searching" for row in self.found.values())
        self.told.emit(
            f"Searching '{mark.name}' in {count} of {len(self.found)} other scans."
        )
        self.changed.emit()

    def compute(self) -> None:
        """See CohortSearch."""
        keys = [key for key, row in self.found.items() if row.state == "waiting"]
        self.session.work.compute(keys)
        self.told.emit(computing_words(len(keys)))

    def open(self, key: str) -> None:
        """See CohortSearch."""
        row = self.found.get(key)
        self.session.going.scan(key, self.mark, None if row is None else row.mark)

    def _find(self, scan: Scan) -> None:
        row = self.found[scan.key] = Row(scan.key, scan.ref.name)
        mark, session = self.mark, self.session
        a = session.control.scan_a
        if mark is None or a is None or a.ready is None:
            return
        if scan.ready is None:
            row.state = "waiting"
            return
        in_background(
            find_in, session.searching.sides, (a, a.ready, session.layer_of(a)),
            (scan, scan.ready, session.layer_of(scan)), mark,
            session.control.limits, owner=self,
            done=lambda answer: self._done(row, answer),
            failed=lambda error: self.fail(row, error),
        )  # fmt: skip

    def _done(self, row: Row, answer: tuple[Landmark, Any]) -> None:
        self.take(row, answer)
        if not any(r.state == "searching" for r in self.found.values()):
            self.conclude()

    def _scan_changed(self, key: str) -> None:
        """Features came: a waiting scan is searched; work is told."""
        scan, row = self.session.control.book.scans.get(key), self.found.get(key)
        if scan is None or row is None or row.state != "waiting":
            return
        if scan.ready is not None:
            self._find(scan)
        else:
            row.words = scan.line()
        self.changed.emit()

    def _scans_changed(self) -> None:
        """Closed scans go."""
        scans = self.session.control.book.scans
        self.found = {k: r for k, r in self.found.items() if k in scans}
        self.changed.emit()
