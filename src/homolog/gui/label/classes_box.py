"""The table of classes: colour, name, key, painted voxels, and which is background."""

from __future__ import annotations

from functools import partial
from typing import Any

from qtpy.QtCore import QEvent, Qt, QTimer, Signal
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import (
    QAbstractItemView,
    QColorDialog,
    QHeaderView,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from homolog.gui import keys, rows
from homolog.gui.label.classes import KEYS
from homolog.gui.label.session import LabelSession

_VALUE = Qt.ItemDataRole.UserRole
_TITLES = ("Class", "Key", "Painted")
_ROWS_SHOWN = 5  # whatever there is: "Add class" stays under the pointer


class ClassesBox(QWidget):
    """Chooses what is painted, and keeps the names and colours of all layers.

    Signals:
        told: Why something was not done.
    """

    told = Signal(str)

    def __init__(self, session: LabelSession, panel: QWidget) -> None:
        """Make the box.

        Args:
            session: Whose classes they are.
            panel: The tab; the keys work while it is in front.
        """
        super().__init__()
        self._session, self._classes = session, session.classes
        self.table = QTableWidget(0, len(_TITLES))
        rows.named(
            self.table, "Classes",
            "The selected class is painted. Double-click a name to change it",
        )  # fmt: skip
        self.table.setHorizontalHeaderLabels(_TITLES)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.table.setEditTriggers(
            QAbstractItemView.EditTrigger.DoubleClicked
            | QAbstractItemView.EditTrigger.EditKeyPressed
        )
        self.table.setTabKeyNavigation(False)
        self.table.verticalHeader().hide()
        self.table.itemChanged.connect(self._edited)
        self.table.currentCellChanged.connect(self._chosen)
        self.add = rows.button("Add class", "Another structure to paint", self._add)
        self.remove = rows.button(
            "Remove", "Take the selected class away, while nothing is painted with it",
            self._remove,
        )  # fmt: skip
        self.colour = rows.button(
            "Colour...", "Choose another colour for the selected class", self._ask
        )
        self.ground = rows.button(
            "Background", "The selected class means none of the others, and is "
            "predicted as empty", self._set_ground,
        )  # fmt: skip
        self.ground.setCheckable(True)
        self._later = QTimer(self)  # the table has its own new font by then
        self._later.setSingleShot(True)
        self._later.timeout.connect(self._fit)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.table)
        column.addLayout(rows.beside(self.add, self.remove))
        column.addLayout(rows.beside(self.colour, self.ground))
        session.classes_changed.connect(self.refresh)
        for place, letter in enumerate(KEYS):
            keys.add(
                session.hub, f"Shift-{letter}", f"paint with class {place + 1}",
                partial(self._choose_row, place), while_shown=panel,
            )  # fmt: skip
        self.refresh()

    def refresh(self) -> None:
        """Show the classes as they are."""
        table, classes = self.table, list(self._classes)
        table.blockSignals(True)
        table.setRowCount(len(classes))
        for place, known in enumerate(classes):
            letter = self._classes.key_of(place)
            count = self._classes.counts.get(known.value, 0)
            name = QTableWidgetItem(known.name)
            name.setData(_VALUE, known.value)
            name.setIcon(_swatch(known.colour))
            ground = ", the background" if known.background else ""
            name.setToolTip(f"{known.name} (label {known.value}{ground})")
            table.setItem(place, 0, name)
            for column, text in (
                (1, f"⇧{letter}" if letter else ""),
                (2, f"{count:,}"),
            ):
                cell = QTableWidgetItem(text)
                cell.setFlags(cell.flags() & ~Qt.ItemFlag.ItemIsEditable)
                cell.setTextAlignment(
                    Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
                )
                table.setItem(place, column, cell)
            cell = table.item(place, 1)
            assert cell is not None
            cell.setToolTip(f"Shift+{letter}" if letter else "No key is left")
            if known.value == self._classes.current:
                table.setCurrentCell(place, 0)
        table.blockSignals(False)
        known_now = self._classes.get(self._classes.current)
        self.ground.setChecked(known_now is not None and known_now.background)
        self.remove.setEnabled(len(classes) > 1)
        self._fit()

    def changeEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().changeEvent(event)
        if event.type() in (QEvent.Type.FontChange, QEvent.Type.StyleChange):
            timer = getattr(self, "_later", None)
            if timer is not None:  # Qt calls before all is made
                timer.start(0)

    def _fit(self) -> None:
        table = self.table
        header = table.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        height = table.fontMetrics().height() + 8
        table.verticalHeader().setDefaultSectionSize(height)
        extra = header.sizeHint().height() + 2 * table.frameWidth() + 2
        table.setFixedHeight(_ROWS_SHOWN * height + extra)

    def _value(self, row: int) -> int | None:
        item = self.table.item(row, 0)
        return None if item is None else int(item.data(_VALUE))

    def _choose_row(self, row: int) -> None:
        value = self._value(row)
        if value is not None:
            self._session.choose_class(value)

    def _chosen(self, row: int, column: int, last: int, _: int) -> None:
        if row != last:
            self._choose_row(row)

    def _edited(self, item: QTableWidgetItem) -> None:
        if item.column() == 0:
            self.told.emit(self._classes.rename(int(item.data(_VALUE)), item.text()))
            self._changed()

    def _add(self) -> None:
        made = self._classes.add()
        if made is None:
            self.told.emit("There are as many classes as a layer can hold.")
            return
        self._changed()
        place = list(self._classes).index(made)
        item = self.table.item(place, 0)
        if item is not None:
            self.table.setFocus()
            self.table.editItem(item)

    def _remove(self) -> None:
        self.told.emit(self._classes.remove(self._classes.current))
        self._changed()

    def _ask(self) -> None:
        value = self._classes.current
        known = self._classes.get(value)
        if known is None:
            return
        dialog = QColorDialog(QColor(known.colour), self)

        def take(colour: QColor) -> None:
            self._classes.recolour(value, colour.name())
            self._changed()

        dialog.colorSelected.connect(take)
        dialog.finished.connect(dialog.deleteLater)
        dialog.open()

    def _set_ground(self) -> None:
        value = self._classes.current
        is_it = self._classes.background == value
        self._classes.set_background(None if is_it else value)
        self._changed()
        self._session.begin_again()

    def _changed(self) -> None:
        self._session.recolour()


def _swatch(colour: str) -> QIcon:
    picture = QPixmap(12, 12)
    picture.fill(QColor(colour))
    return QIcon(picture)
