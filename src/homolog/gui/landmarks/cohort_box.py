"""The chosen landmark in all open scans, or in all scans of a prepared store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, QTimer, Signal
from qtpy.QtWidgets import QComboBox, QLabel, QProgressBar, QVBoxLayout, QWidget

from homolog.gui import rows
from homolog.gui.landmarks.cohort import Row, best_first
from homolog.gui.landmarks.cohort_search import CohortSearch, OpenScans
from homolog.gui.landmarks.cohort_table import CohortTable
from homolog.gui.landmarks.session import Session
from homolog.gui.landmarks.store_search import StoreSearch
from homolog.gui.learn.store_list import StoreChoice, list_stores
from homolog.gui.threads import in_background

_OPEN, _OTHER = "", "other"
# Answers come in bursts; a table of hundreds is filled so often at most.
_FILL_MS = 100


class CohortBox(QWidget):
    """Searches one landmark in many scans and lists them, the most similar first.

    Scans with features answer at once; the others are listed, and computed on demand.

    Signals:
        told: A sentence about what was done.

    Args:
        session: Asked and told.
    """

    told = Signal(str)

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._others: list[Path] = []
        self._of: Any = None
        self.open_scans, self.stored = OpenScans(session), StoreSearch(session)
        self.now: CohortSearch = self.open_scans
        self._make_widgets()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(self._asking())
        # What comes and goes keeps its room, and what grows stands last.
        rows.keep_room(self.bar, self.cancel, self.missing)
        column.addWidget(self.bar)
        column.addWidget(self.doing)
        column.addLayout(rows.beside(self.missing, self.cancel))
        for widget in (self.title, self.table):
            column.addWidget(widget)
        self._filler = QTimer(self)
        self._filler.setSingleShot(True)
        self._filler.setInterval(_FILL_MS)
        self._filler.timeout.connect(self.refresh)
        for search in (self.open_scans, self.stored):
            search.changed.connect(self._soon)
            search.told.connect(self.told)
        session.placing.chosen_changed.connect(self._enable)
        session.placing.table_changed.connect(self._enable)
        session.scans_changed.connect(self._scans_changed)
        session.limits_changed.connect(self._judge)
        session.hub.changed.connect(self._heard)
        self._list([])
        self.refresh()

    @property
    def found(self) -> dict[str, Row]:
        """What was found so far, by key."""
        return self.now.found

    def read_stores(self) -> None:
        """List the stores anew, in the background."""
        in_background(
            list_stores, self._session.hub.stores, list(self._others), owner=self,
            done=self._list, failed=lambda error: self.told.emit(f"Stores: {error}"),
        )  # fmt: skip

    def choose_store(self, path: Path) -> None:
        """Take a store into the list, wherever it lies, and choose it."""
        path = path.absolute()
        if path not in self._others and path.parent != self._session.hub.stores:
            self._others.append(path)
        self._choose_source(path)
        self.read_stores()

    def find_all(self) -> None:
        """Search the chosen landmark everywhere."""
        control = self._session.control
        mark, a = control.table.current, control.scan_a
        if mark is None or a is None or a.ready is None:
            self._session.hub.say("Choose a landmark first.")
            return
        self.now.find(mark)
        self.refresh()
        rows.bring_into_view(self.table, asked=True)

    def stop(self) -> None:
        """The panel goes."""
        self._filler.stop()
        self.stored.cancel()

    def refresh(self) -> None:
        """Show what was found so far."""
        search = self.now
        self.table.show_rows(best_first(search.found.values()))
        shown = bool(search.found)
        self.title.setVisible(shown)
        self.table.setVisible(shown)
        waiting = sum(row.state == "waiting" for row in search.found.values())
        self.missing.setVisible(bool(waiting))
        self.missing.setText(f"Compute missing ({waiting})")
        self.missing.setEnabled(not search.busy)
        rows.tell(self.doing, search.doing)
        self.bar.setVisible(search.busy)
        self.cancel.setVisible(search.busy)
        self.bar.setValue(round(100 * search.share))
        if search.mark is not None:
            where = "all open &scans"
            if search is self.stored and self.stored.store is not None:
                where = f"the &scans of {self.stored.store.name}"
            name = search.mark.name.replace("&", "&&")
            self.title.setText(f"'{name}' in {where}")
        self._enable()

    # Parts

    def _make_widgets(self) -> None:
        self.source = rows.narrow(QComboBox())
        rows.named(
            self.source, "Scans to search",
            "All open scans, or the scans of a prepared store",
        )  # fmt: skip
        self.source.activated.connect(self._source_chosen)
        self.search = rows.button(
            "Find it in", "Search the chosen landmark in every one of these scans that "
            "has features", self.find_all,
        )  # fmt: skip
        self.missing = rows.button(
            "Compute missing", "Compute features of the listed scans that have none; "
            "minutes each without a GPU, kept for good", lambda: self.now.compute(),
        )  # fmt: skip
        self.cancel = rows.button(
            "Cancel", "Search and compute no more; what was found stays",
            lambda: self.now.cancel(),
        )  # fmt: skip
        self.cancel.setAccessibleName("Cancel the search in all scans")
        self.bar = QProgressBar()
        self.bar.setRange(0, 100)
        self.bar.setTextVisible(False)
        self.bar.setMaximumHeight(6)
        rows.named(self.bar, "Scans searched", "Scans searched so far")
        self.doing = rows.sentence("Scan whose features are computed", lines=1)
        self.title = QLabel("In all open &scans")
        self.table = CohortTable()
        self.title.setBuddy(self.table)
        self.table.opened.connect(lambda key: self.now.open(key))

    def _asking(self) -> Any:
        line = rows.beside(self.search, self.source)
        line.setStretch(0, 0)
        line.setStretch(1, 1)
        return line

    # Where to search

    def _list(self, stores: list[StoreChoice]) -> None:
        keep = self.source.currentData() or _OPEN
        entries: list[tuple[str, Any]] = [("all open scans", _OPEN)]
        for store in stores:
            if not store.problem:
                scans = f"{store.cases} scan{'s' * (store.cases != 1)}"
                entries.append((f"store {store.name} ({scans})", str(store.path)))
            elif store.path in self._others:
                self._others.remove(store.path)
                self.told.emit(store.problem)
        now = self.stored.store
        if now is not None and str(now) in [data for _, data in entries]:
            keep = str(now) if self.now is self.stored else keep
        entries.append(("another store...", _OTHER))
        rows.fill(self.source, entries, keep)
        for index, (text, data) in enumerate(entries):
            self.source.setItemData(index, data or text, Qt.ItemDataRole.ToolTipRole)
        chosen = self.source.currentData()
        if self.now is self.stored and chosen == _OPEN:
            self._choose_source(None)  # the store is gone

    def _source_chosen(self, index: int) -> None:
        data = str(self.source.itemData(index))
        if data == _OTHER:
            known = [str(self.stored.store)] if self.now is self.stored else [_OPEN]
            self.source.setCurrentIndex(max(0, self.source.findData(known[0])))
            rows.ask_folder(self, "Choose a store", self.choose_store)
        else:
            self._choose_source(Path(data) if data else None)

    def _choose_source(self, store: Path | None) -> None:
        """Another source; what was found in the one before is kept until then."""
        if store is None:
            self.now = self.open_scans
        else:
            self.now = self.stored
            if store != self.stored.store:
                self.stored.forget()
                self.stored.store = store
        self.refresh()

    # What changes around it

    def _scans_changed(self) -> None:
        """Another A or encoder: what was found belongs to it no more."""
        control = self._session.control
        encoder = control.book.encoder
        of = (control.a, None if encoder is None else encoder.path)
        if of != self._of:
            self._of = of
            self.open_scans.forget()
            self.stored.forget()
        self._enable()

    def _heard(self, what: str) -> None:
        if what == "stores":
            self.read_stores()

    def _judge(self) -> None:
        self.open_scans.judge()
        self.stored.judge()

    def _soon(self) -> None:
        if not self._filler.isActive():
            self._filler.start()

    def _enable(self) -> None:
        control = self._session.control
        a = control.scan_a
        here = control.table.current is not None and a is not None
        self.search.setEnabled(
            here and a is not None and a.ready is not None and not self.now.busy
        )
        self.setVisible(bool(self.found) or len(control.table) > 0)
