"""One landmark searched in every case of a prepared store, with progress and cancel."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

from homolog.data.landmarks import Landmark
from homolog.events import Event, Progress
from homolog.gui import preferences
from homolog.gui.explore.scan import duration
from homolog.gui.landmarks.cohort import Row, computing_words
from homolog.gui.landmarks.cohort_search import CohortSearch
from homolog.gui.landmarks.matching import Side, Sides
from homolog.gui.landmarks.session import Session
from homolog.gui.landmarks.store_cases import (
    CaseSides,
    StoreCase,
    case_file,
    find_in_case,
    list_cases,
)
from homolog.gui.threads import Helper, in_background
from homolog.tasks._landmark_rules import LandmarksConfig


class StoreSearch(CohortSearch):
    """Cases of one store: searched one after the other, features by a worker.

    Attributes:
        store: Which store.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.store: Path | None = None
        self._cases: dict[str, StoreCase] = {}
        self._sides = CaseSides()
        self._to_search: deque[str] = deque()
        self._to_compute: deque[str] = deque()
        self._searching = self._computing = False
        self._helper: Helper | None = None
        self._opening = ""
        # Answers to what was asked before belong to nothing any more.
        self._turn = 0

    @property
    def busy(self) -> bool:
        """See CohortSearch."""
        return self._searching or self._computing

    def find(self, mark: Landmark) -> None:
        """See CohortSearch."""
        self.cancel()
        self.mark, self.found = mark, {}
        encoder, a = self.session.control.book.encoder, self.session.control.scan_a
        if self.store is None or encoder is None or a is None or a.ready is None:
            return
        self._searching = True
        turn = self._turn

        def failed(error: Exception) -> None:
            if turn == self._turn:
                self._searching = False
                self.told.emit(f"{error}")
                self.changed.emit()

        self.told.emit(f"Reading the store {self.store.name} ...")
        in_background(
            list_cases, self.store, encoder, self.session.hub.features,
            a.ready.features.scan_id, owner=self,
            done=lambda cases: self._listed(turn, cases), failed=failed,
        )  # fmt: skip
        self.changed.emit()

    def compute(self) -> None:
        """See CohortSearch."""
        keys = [key for key, row in self.found.items() if row.state == "waiting"]
        self._to_compute.extend(k for k in keys if k not in self._to_compute)
        for key in keys:
            self.found[key].words = "waiting for its turn"
        self.told.emit(computing_words(len(keys)))
        self._compute_next()

    def cancel(self) -> None:
        """See CohortSearch."""
        self._turn += 1
        self._to_search.clear()
        self._to_compute.clear()
        was_busy, self._searching, self._computing = self.busy, False, False
        helper, self._helper = self._helper, None
        if helper is not None:
            for ended in (helper.done, helper.failed, helper.stopped):
                ended.connect(helper.deleteLater)
            helper.stop()
        for row in self.found.values():
            if row.state in ("searching", "computing", "waiting"):
                case = self._cases[row.key]
                row.state = "waiting" if case.features is None else "failed"
                row.words = "" if case.features is None else "not searched: cancelled"
                row.share = 0.0
        if was_busy and self.found:
            self.told.emit("Cancelled; what was found stays.")
        self.changed.emit()

    def forget(self) -> None:
        """See CohortSearch."""
        super().forget()
        self._cases = {}

    def open(self, key: str) -> None:
        """See CohortSearch; the file is looked for on a thread."""
        case, row = self._cases.get(key), self.found.get(key)
        if case is None or row is None:
            return
        mark, found = self.mark, row.mark
        self._opening = key
        self.told.emit(f"Opening {row.name} as scan B ...")

        def done(path: Path) -> None:
            if self._opening == key:  # not another one meanwhile
                self.session.going.file(path, row.name, mark, found)

        in_background(
            case_file, case, self.session.hub.scratch, owner=self, done=done,
            failed=lambda error: self.told.emit(f"{row.name}: {error}"),
        )  # fmt: skip

    # Searching

    def _listed(self, turn: int, cases: list[StoreCase]) -> None:
        if turn != self._turn:
            return
        self._cases = {case.card.id: case for case in cases}
        for key, case in self._cases.items():
            state = "waiting" if case.features is None else "searching"
            self.found[key] = Row(key, key, state)
        self._to_search.extend(k for k, r in self.found.items() if r.state != "waiting")
        name = "" if self.mark is None else self.mark.name
        self.told.emit(
            f"Searching '{name}' in {len(self._to_search)} of {len(cases)} scans."
        )
        self._searching = False
        self._search_next()
        self.changed.emit()

    def _search_next(self) -> None:
        if self._searching:
            return
        if not self._to_search:
            if not self._computing:
                self.conclude()
            self.changed.emit()
            return
        key, turn = self._to_search.popleft(), self._turn
        row, case, mark = self.found[key], self._cases[key], self.mark
        a = self.session.control.scan_a
        if mark is None or a is None or a.ready is None:
            self.cancel()
            return
        self._searching = True
        layer = self.session.layer_of(a)
        window = None
        if a.ref.modality == "CT" and layer is not None:
            low, high = layer.contrast_limits
            window = (float(low), float(high))

        def ended(answer: tuple[Landmark, Any] | None, error: object = "") -> None:
            if turn != self._turn:
                return
            self._searching = False
            if answer is None:
                self.fail(row, error)
            else:
                self.take(row, answer)
            self._search_next()

        in_background(
            _find, self.session.searching.sides, (a, a.ready, layer), self._sides,
            case, mark, window, self.session.control.limits, owner=self, done=ended,
            failed=lambda error: ended(None, error),
        )  # fmt: skip

    # Computing

    def _compute_next(self) -> None:
        if self._computing:
            return
        if not self._to_compute:
            self._search_next()
            return
        key, turn = self._to_compute.popleft(), self._turn
        row = self.found[key]
        row.state, row.words = "computing", "starting ..."
        self._computing = True
        in_background(
            case_file, self._cases[key], self.session.hub.scratch, owner=self,
            done=lambda path: self._embed(turn, row, path),
            failed=lambda error: self._not_computed(turn, row, error),
        )  # fmt: skip
        self.changed.emit()

    def _embed(self, turn: int, row: Row, path: Path) -> None:
        encoder = self.session.control.book.encoder
        if turn != self._turn or encoder is None:
            return
        config = {
            "encoder": str(encoder.path),
            "scans": [str(path)],
            "folder": str(self.session.hub.features),
            "device": str(preferences.get("compute", "device", "auto")),
        }
        helper = self._helper = Helper("embed", config, self)
        helper.news.connect(lambda event: self._tell(turn, row, event))
        helper.done.connect(lambda result: self._computed(turn, row, result))
        helper.failed.connect(lambda text: self._not_computed(turn, row, text))
        helper.start()

    def _tell(self, turn: int, row: Row, event: Event) -> None:
        if turn != self._turn or not isinstance(event, Progress) or not event.total:
            return
        left = f", {duration(event.remaining_s)} left" if event.remaining_s > 0 else ""
        row.share = min(event.index / event.total, 1.0)
        row.words = f"computing {row.share:.0%}{left}"
        self.changed.emit()

    def _computed(self, turn: int, row: Row, result: dict[str, Any]) -> None:
        entries = result.get("features") or []
        if turn != self._turn:
            return
        if not entries:
            self._not_computed(turn, row, "no features came; try again")
            return
        case = replace(self._cases[row.key], features=Path(entries[0]["card"]))
        self._cases[row.key] = case
        row.state, row.words = "searching", ""
        self._end_helper()
        self.session.hub.changed.emit("features")
        self._to_search.append(row.key)
        self._search_next()
        self._compute_next()

    def _not_computed(self, turn: int, row: Row, reason: object) -> None:
        if turn == self._turn:
            self._end_helper()
            self.fail(row, reason)
            self._compute_next()

    def _end_helper(self) -> None:
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.deleteLater()
        self._computing = False


def _find(
    open_sides: Sides,
    a: tuple[Any, Any, Any],
    sides: CaseSides,
    case: StoreCase,
    mark: Landmark,
    window: tuple[float, float] | None,
    limits: LandmarksConfig,
) -> tuple[Landmark, Any]:
    side_a: Side = open_sides.of(*a)
    return find_in_case(sides, side_a, case, mark, window, limits)
