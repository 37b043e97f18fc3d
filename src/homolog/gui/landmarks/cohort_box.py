"""The chosen landmark in all open scans, or in all scans of a prepared store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qtpy.QtCore import QLineF, QModelIndex, QPointF, QSize, Qt, QTimer, Signal
from qtpy.QtGui import QBrush, QColor, QIcon, QImage, QPainter, QPalette, QPen, QPixmap
from qtpy.QtWidgets import (
    QAbstractItemView,
    QLabel,
    QProgressBar,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from homolog.gui.landmarks.cohort import (
    CohortSearch,
    OpenScans,
    Picture,
    Row,
    StoreSearch,
    best_first,
)
from homolog.gui.landmarks.control import COLOURS, MARKS, number_text
from homolog.gui.landmarks.pair import LandmarkPair
from homolog.gui.shared import widgets
from homolog.gui.shared.choices import StoreChoice
from homolog.gui.shared.model_row import StoreList
from homolog.words import counted

# How tables draw: patches with a small cross in the middle, colours that stay.


_CROSS = QColor(240, 228, 66)


def pixmap_of(picture: Picture, side: int, *, cross: bool = True) -> QPixmap:
    """A patch as large as wanted.

    Args:
        picture: Square, grey.
        side: Of the result in pixels.
        cross: Whether the middle is marked.
    """
    height, width = picture.shape
    data = picture.tobytes()
    image = QImage(data, width, height, width, QImage.Format.Format_Grayscale8)
    # The copy owns its bytes: ``data`` goes with this call.
    made = QPixmap.fromImage(image.copy()).scaled(
        side, side, Qt.AspectRatioMode.IgnoreAspectRatio,
        Qt.TransformationMode.SmoothTransformation,
    )  # fmt: skip
    if cross:
        painter = QPainter(made)
        painter.setPen(QPen(_CROSS, 1))
        middle = QPointF(side / 2, side / 2)
        for turn in (QPointF(1, 0), QPointF(-1, 0), QPointF(0, 1), QPointF(0, -1)):
            start = middle + turn * (0.05 * side)
            painter.drawLine(QLineF(start, middle + turn * (0.18 * side)))
        painter.end()
    return made


class OwnColour(QStyledItemDelegate):
    """Cells whose text keeps its own colour while their row is selected.

    The colour tells how far a match is to be trusted; a selection must not hide it.
    """

    def initStyleOption(
        self, option: QStyleOptionViewItem | None, index: QModelIndex
    ) -> None:
        """Qt asks how to draw a cell."""
        super().initStyleOption(option, index)
        brush = index.data(Qt.ItemDataRole.ForegroundRole)
        if option is not None and isinstance(brush, QBrush):
            palette = option.palette
            palette.setBrush(QPalette.ColorRole.HighlightedText, brush)
            option.palette = palette


# The table of a cohort: thumbnail, scan, figures, why. Shows rows, decides nothing.


_TITLES = ("", "Scan", "Sim.", "Margin", "Cycle\nmm", "Why")
_THUMB, _ROWS_SHOWN = 48, 4
# Long names of files would push the figures out of sight: they are broken into lines.
_NAME_PX = 96
_MAY_BREAK = str.maketrans({c: f"{c}\u200b" for c in "_-. "})


class CohortTable(QTableWidget):
    """Rows in the order given.

    Signals:
        opened: Key of a row that was double-clicked, or chosen with Enter.
    """

    opened = Signal(str)

    def __init__(self) -> None:
        super().__init__(0, len(_TITLES))
        self._shown: list[Row] = []
        widgets.named(
            self, "The landmark in all scans",
            "Double-click a row, or press Enter, to make it scan B",
        )  # fmt: skip
        self.setHorizontalHeaderLabels(_TITLES)
        header, vertical = self.horizontalHeader(), self.verticalHeader()
        assert header is not None
        assert vertical is not None
        vertical.hide()
        vertical.setDefaultSectionSize(_THUMB + 4)
        header.setSectionResizeMode(header.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(1, header.ResizeMode.Interactive)
        header.resizeSection(1, _NAME_PX)
        header.setStretchLastSection(True)
        self.setIconSize(QSize(_THUMB, _THUMB))
        self.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.setTabKeyNavigation(False)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setItemDelegateForColumn(0, OwnColour(self))
        self.itemActivated.connect(self._open)

    def show_rows(self, wanted: Sequence[Row]) -> None:
        """Show rows; the chosen one stays chosen wherever it moved to."""
        chosen = self.key_at(self.currentRow())
        self.setRowCount(len(wanted))
        for line, row in enumerate(wanted):
            self._fill(line, row)
            if row.key == chosen:
                self.setCurrentCell(line, max(self.currentColumn(), 0))
        self._fit()

    def key_at(self, line: int) -> str:
        """Key of a row; "" where there is none."""
        first = self.item(line, 0) if line >= 0 else None
        return "" if first is None else str(first.data(Qt.ItemDataRole.UserRole))

    def _fill(self, line: int, row: Row) -> None:
        mark, trust = row.mark, row.trust
        figures = ("–", "–", "–")
        if mark is not None:
            figures = (
                number_text(mark.similarity), number_text(mark.margin, 3),
                number_text(mark.cycle_mm, 1),
            )  # fmt: skip
        name = row.name.translate(_MAY_BREAK)
        texts = (MARKS[trust], name, *figures, row.told())
        for column, text in enumerate(texts):
            item = QTableWidgetItem(text)
            item.setToolTip(f"{row.name}: {row.told()}")
            if column == 0:
                item.setData(Qt.ItemDataRole.UserRole, row.key)
                item.setForeground(QColor(COLOURS[trust]))
                if row.picture is not None:
                    item.setIcon(QIcon(pixmap_of(row.picture, _THUMB)))
            self.setItem(line, column, item)

    def _open(self, item: QTableWidgetItem) -> None:
        self.opened.emit(self.key_at(item.row()))

    def _fit(self) -> None:
        header, bar = self.horizontalHeader(), self.horizontalScrollBar()
        extra = 2 * self.frameWidth() + 2
        for part in (header, bar):
            extra += part.sizeHint().height() if part is not None else 0
        shown = min(max(self.rowCount(), 1), _ROWS_SHOWN)
        self.setFixedHeight(shown * (_THUMB + 4) + extra)


# Answers come in bursts; a table of hundreds is filled so often at most.
_FILL_MS = 100


def _store_words(store: StoreChoice) -> str:
    return f"store {store.name} ({counted(store.cases, 'scan')})"


class CohortBox(QWidget):
    """Searches one landmark in many scans and lists them, the most similar first.

    Scans with features answer at once; the others are listed, and computed on demand.

    Signals:
        told: A sentence about what was done.

    Args:
        pair: Asked and told.
    """

    told = Signal(str)

    def __init__(self, pair: LandmarkPair) -> None:
        super().__init__()
        self._pair = pair
        self._of: Any = None
        self.open_scans, self.stored = OpenScans(pair), StoreSearch(pair)
        self.now: CohortSearch = self.open_scans
        self._make_widgets()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(self._asking())
        # What comes and goes keeps its room, and what grows stands last.
        widgets.keep_room(self.bar, self.cancel, self.missing)
        column.addWidget(self.bar)
        column.addWidget(self.doing)
        column.addLayout(widgets.beside(self.missing, self.cancel))
        for widget in (self.title, self.table):
            column.addWidget(widget)
        self._filler = QTimer(self)
        self._filler.setSingleShot(True)
        self._filler.setInterval(_FILL_MS)
        self._filler.timeout.connect(self.refresh)
        for search in (self.open_scans, self.stored):
            search.changed.connect(self._soon)
            search.told.connect(self.told)
        pair.placing.chosen_changed.connect(self._enable)
        pair.placing.table_changed.connect(self._enable)
        pair.scans_changed.connect(self._scans_changed)
        pair.limits_changed.connect(self._judge)
        pair.hub.changed.connect(self._heard)
        self.refresh()

    @property
    def found(self) -> dict[str, Row]:
        """What was found so far, by key."""
        return self.now.found

    def read_stores(self) -> None:
        """List the stores anew, in the background."""
        self.source.read()

    def choose_store(self, path: Path) -> None:
        """Take a store into the list, wherever it lies, and choose it."""
        self._choose_source(path.absolute())
        self.source.choose(path)

    def find_all(self) -> None:
        """Search the chosen landmark everywhere."""
        control = self._pair.control
        mark, a = control.table.current, control.scan_a
        if mark is None or a is None or a.ready is None:
            self._pair.hub.say("Choose a landmark first.")
            return
        self.now.find(mark)
        self.refresh()
        widgets.bring_into_view(self.table, asked=True)

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
        widgets.tell(self.doing, search.doing)
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
        self.source = StoreList(self._pair.hub, _store_words, first="all open scans")
        widgets.named(
            self.source, "Scans to search",
            "All open scans, or the scans of a prepared store",
        )  # fmt: skip
        self.source.chosen.connect(self._choose_source)
        self.source.listed.connect(self._listed)
        self.source.told.connect(self.told)
        self.search = widgets.button(
            "Find it in", "Search the chosen landmark in every one of these scans that "
            "has features", self.find_all,
        )  # fmt: skip
        self.missing = widgets.button(
            "Compute missing", "Compute features of the listed scans that have none; "
            "minutes each without a GPU, kept for good", lambda: self.now.compute(),
        )  # fmt: skip
        self.cancel = widgets.button(
            "Cancel", "Search and compute no more; what was found stays",
            lambda: self.now.cancel(),
        )  # fmt: skip
        self.cancel.setAccessibleName("Cancel the search in all scans")
        self.bar = QProgressBar()
        self.bar.setRange(0, 100)
        self.bar.setTextVisible(False)
        self.bar.setMaximumHeight(6)
        widgets.named(self.bar, "Scans searched", "Scans searched so far")
        self.doing = widgets.sentence("Scan whose features are computed", lines=1)
        self.title = QLabel("In all open &scans")
        self.table = CohortTable()
        self.title.setBuddy(self.table)
        self.table.opened.connect(lambda key: self.now.open(key))

    def _asking(self) -> Any:
        line = widgets.beside(self.search, self.source)
        line.setStretch(0, 0)
        line.setStretch(1, 1)
        return line

    # Where to search

    def _listed(self) -> None:
        if self.now is self.stored and self.source.store is None:
            self._choose_source(None)  # the store is gone

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
        control = self._pair.control
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
        control = self._pair.control
        a = control.scan_a
        here = control.table.current is not None and a is not None
        self.search.setEnabled(
            here and a is not None and a.ready is not None and not self.now.busy
        )
        self.setVisible(bool(self.found) or len(control.table) > 0)
