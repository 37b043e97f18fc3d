"""The table of pinned places and, below it, where the chosen one was found."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtCore import QEvent, Qt, Signal
from qtpy.QtGui import QColor
from qtpy.QtWidgets import (
    QAbstractItemView,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from homolog.geometry.places import place_text
from homolog.gui.explore.pins import Pin, export_pins
from homolog.gui.explore.session import Explorer

_NAME, _SCAN = 1, 2
_ROWS_SHOWN = 4
_ROOM_PX = 8


class PinsBox(QWidget):
    """Pins of an explorer: rename, show, go to, delete, export.

    Signals:
        told: A sentence about what was done.
    """

    told = Signal(str)

    def __init__(self, explorer: Explorer, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._explorer = explorer
        self._filling = False
        self.title = QLabel("&Pinned places")
        self.table = _table(
            ("", "Name", "Scan"), "Pinned places; double-click a name to change it"
        )
        self.table.setEditTriggers(
            QAbstractItemView.EditTrigger.DoubleClicked
            | QAbstractItemView.EditTrigger.EditKeyPressed
        )
        self.title.setBuddy(self.table)
        self.table.setAccessibleName("Pinned places")
        self.table.itemSelectionChanged.connect(self._choose)
        self.table.itemChanged.connect(self._change)
        self.table.itemDoubleClicked.connect(self._double)
        self.go = _button("Go to", "Show the slice with the pinned place")
        self.go.clicked.connect(self.go_to_pin)
        self.delete = _button("Delete", "Forget the chosen place")
        self.delete.clicked.connect(self.delete_pin)
        self.export = _button(
            "Export...",
            "Save all places and matches as CSV or JSON, in LPS millimetres",
        )
        self.export.clicked.connect(self._ask_file)
        self.found = QLabel("&Found in other scans")
        self.matches = _table(
            ("Scan", "Similarity", "Margin"),
            "Where the chosen place was found; the margin tells how far it is above "
            "the best place further than 20 mm away",
        )
        self.matches.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.found.setBuddy(self.matches)
        self.matches.setAccessibleName("Best matches of the chosen place")
        self.matches.itemDoubleClicked.connect(lambda _: self.go_to_match())
        self.matches.itemSelectionChanged.connect(self._enable)
        self.go_match = _button(
            "Go to match", "Show the scan and slice in which the place was found"
        )
        self.go_match.clicked.connect(self.go_to_match)
        buttons = QHBoxLayout()
        for button in (self.go, self.delete, self.export):
            buttons.addWidget(button)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.title)
        column.addWidget(self.table)
        column.addLayout(buttons)
        column.addWidget(self.found)
        column.addWidget(self.matches)
        column.addWidget(self.go_match)
        explorer.pins_changed.connect(self.refresh)
        explorer.scans_changed.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Show the pins as they are."""
        pins = self._explorer.control.pins
        self.setVisible(len(pins) > 0)
        if self.table.state() == QAbstractItemView.State.EditingState:
            return  # a name is being typed
        self._filling = True
        self.table.setRowCount(len(pins))
        for row, pin in enumerate(pins):
            self._fill_pin(row, pin)
            if pin.number == pins.chosen:
                self.table.selectRow(row)
        _fit(self.table)
        self._fill_matches(pins.current)
        self._filling = False
        self._enable()

    def changeEvent(self, event: QEvent) -> None:
        """Rows grow with the font."""
        super().changeEvent(event)
        if event.type() in (QEvent.Type.FontChange, QEvent.Type.StyleChange):
            for table in self.findChildren(QTableWidget):
                _fit(table)

    def go_to_pin(self) -> None:
        """Show the chosen place."""
        pin = self._explorer.control.pins.current
        if pin is not None:
            self._explorer.look_at(pin.scan_key, pin.mm)

    def go_to_match(self) -> None:
        """Show the chosen match, or the first one."""
        pin = self._explorer.control.pins.current
        keys = _match_keys(pin)
        if pin is None or not keys:
            return
        row = max(self.matches.currentRow(), 0)
        key = keys[min(row, len(keys) - 1)]
        self._explorer.look_at(key, pin.answers[key].mm)

    def delete_pin(self) -> None:
        """Forget the chosen place."""
        number = self._explorer.control.pins.chosen
        if number is not None:
            self._explorer.delete_pin(number)

    def export_to(self, path: str) -> None:
        """Write all places; ``.csv`` where no ending is given."""
        target = Path(path)
        if target.suffix.lower() not in (".csv", ".json"):
            target = target.with_name(target.name + ".csv")
        control = self._explorer.control
        encoder = "" if control.encoder is None else control.encoder.name
        try:
            export_pins(control.pins, target, encoder)
        except OSError as error:
            self._explorer.hub.say(f"{target} could not be written: {error}", "error")
            return
        self.told.emit(f"Saved {len(control.pins)} places in {target} (LPS, mm).")

    def _ask_file(self) -> None:
        dialog = QFileDialog(self, "Export pinned places", "places.csv")
        dialog.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
        dialog.setNameFilters(["Table (*.csv)", "JSON (*.json)"])
        dialog.setDefaultSuffix("csv")
        dialog.fileSelected.connect(self.export_to)
        dialog.finished.connect(lambda _: dialog.deleteLater())
        dialog.open()

    def _fill_pin(self, row: int, pin: Pin) -> None:
        mark = QTableWidgetItem(pin.mark)
        mark.setForeground(QColor(pin.colour))
        mark.setFlags(
            Qt.ItemFlag.ItemIsEnabled
            | Qt.ItemFlag.ItemIsSelectable
            | Qt.ItemFlag.ItemIsUserCheckable
        )
        mark.setCheckState(
            Qt.CheckState.Checked if pin.visible else Qt.CheckState.Unchecked
        )
        mark.setToolTip("Ticked: its points are shown")
        mark.setData(Qt.ItemDataRole.UserRole, pin.number)
        name = QTableWidgetItem(pin.name)
        name.setToolTip(place_text(pin.mm))
        closed = pin.scan_key not in self._explorer.control.scans
        scan = QTableWidgetItem(f"{pin.scan} (closed)" if closed else pin.scan)
        scan.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable)
        scan.setToolTip(scan.text())
        for column, item in enumerate((mark, name, scan)):
            self.table.setItem(row, column, item)

    def _fill_matches(self, pin: Pin | None) -> None:
        keys = _match_keys(pin)
        self.matches.setRowCount(len(keys))
        shown = bool(keys)
        for widget in (self.found, self.matches, self.go_match):
            widget.setVisible(shown)
        for row, key in enumerate(keys):
            assert pin is not None
            answer = pin.answers[key]
            doubt = "" if answer.is_clear else " ⚠"
            texts = (
                answer.scan,
                f"{answer.similarity:.2f}",
                f"{answer.margin:.2f}{doubt}",
            )
            tip = place_text(answer.mm)
            if not answer.is_clear:
                tip += "; unsure: a place further than 20 mm away is nearly as similar"
            for column, text in enumerate(texts):
                item = QTableWidgetItem(text)
                item.setToolTip(f"{text}; {tip}")
                self.matches.setItem(row, column, item)
        _fit(self.matches)

    def _choose(self) -> None:
        number = self._number(self.table.currentRow())
        pins = self._explorer.control.pins
        if not self._filling and number is not None and number != pins.chosen:
            self._explorer.show_pin(number)

    def _change(self, item: QTableWidgetItem) -> None:
        number = self._number(item.row())
        pin = self._explorer.control.pins.get(number)
        if self._filling or pin is None:
            return
        if item.column() == _NAME:
            self._explorer.control.pins.rename(pin.number, item.text())
        elif item.column() == 0:
            pin.visible = item.checkState() == Qt.CheckState.Checked
        self._explorer.pins_told()

    def _double(self, item: QTableWidgetItem) -> None:
        if item.column() == _SCAN:
            self.go_to_pin()

    def _number(self, row: int) -> int | None:
        item = self.table.item(row, 0) if row >= 0 else None
        return None if item is None else int(item.data(Qt.ItemDataRole.UserRole))

    def _enable(self) -> None:
        pin = self._explorer.control.pins.current
        here = pin is not None and pin.scan_key in self._explorer.control.scans
        self.go.setEnabled(here)
        self.delete.setEnabled(pin is not None)


def _match_keys(pin: Pin | None) -> list[str]:
    return [] if pin is None else [k for k in pin.answers if k != pin.scan_key]


def _table(titles: tuple[str, ...], tip: str) -> QTableWidget:
    table = QTableWidget(0, len(titles))
    table.setHorizontalHeaderLabels(titles)
    table.verticalHeader().hide()
    table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
    table.setTabKeyNavigation(False)
    table.setToolTip(tip)
    table.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    header = table.horizontalHeader()
    for column, title in enumerate(titles):
        wide = title in ("Name", "Scan")  # long texts are cut, their tip has all
        mode = header.ResizeMode
        header.setSectionResizeMode(
            column, mode.Stretch if wide else mode.ResizeToContents
        )
    return table


def _fit(table: QTableWidget) -> None:
    """As high as a few rows, however many there are: what stands below stays."""
    table.resizeRowsToContents()
    height = _ROWS_SHOWN * (table.fontMetrics().height() + _ROOM_PX)
    frame = table.horizontalHeader().sizeHint().height() + 2 * table.frameWidth() + 2
    table.setFixedHeight(height + frame)


def _button(text: str, tip: str) -> QPushButton:
    button = QPushButton(text)
    button.setToolTip(tip)
    button.setAccessibleName(text.removesuffix("..."))
    return button
