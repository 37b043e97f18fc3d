"""The Explore tab: where else does it look like here? Widgets only."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from qtpy.QtCore import QEvent, Qt, Signal
from qtpy.QtGui import QColor, QHideEvent, QShowEvent
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSizePolicy,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)
from superqt import QLabeledDoubleRangeSlider

from homolog.geometry.places import place_text
from homolog.gui.explore.beside import Beside, BesideBox
from homolog.gui.explore.explorer import Explorer, Products
from homolog.gui.explore.pin_colours import MOST, Contrast, PinColours
from homolog.gui.shared import keys, widgets
from homolog.gui.shared.choices import ModelChoice
from homolog.gui.shared.feature_slices import Pin, export_pins
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.model_row import FeatureRow, HintRow, ModelRow, end_with
from homolog.gui.shared.scans import HINTS, Scan

# The table of pinned places and, below it, where the chosen one was found.


_NAME, _SCAN = 1, 2
_ROWS_SHOWN = 4
_ROOM_PX = 8


class PinsBox(QWidget):
    """Pins of an explorer: rename, show, go to, delete, export.

    Signals:
        told: A sentence about what was done.
    """

    told = Signal(str)

    def __init__(
        self, explorer: Explorer, colours: PinColours, contrast: Contrast
    ) -> None:
        super().__init__()
        self._explorer, self._colours = explorer, colours
        self._filling = False
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        self._make_pins(column)
        self._make_several(column, contrast)
        self._make_matches(column)
        explorer.pins_changed.connect(self.refresh)
        explorer.scans_changed.connect(self.refresh)
        self.refresh()

    def _make_pins(self, column: QVBoxLayout) -> None:
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
        buttons = QHBoxLayout()
        for button in (self.go, self.delete, self.export):
            buttons.addWidget(button)
        column.addWidget(self.title)
        column.addWidget(self.table)
        column.addLayout(buttons)

    def _make_several(self, column: QVBoxLayout, contrast: Contrast) -> None:
        """Several pins as colours, the organ's contrast, and the way on."""
        self.several = QCheckBox(f"Up to {MOST} ticked pins, a colour each")
        widgets.named(
            self.several, "Ticked pins as colours",
            "Each ticked pin lights what looks like it in its own colour, in all "
            "scans; untick or delete a pin to take its colour away",
        )  # fmt: skip
        self.several.clicked.connect(self._colours.set_on)
        self.which = widgets.sentence("Pins shown as colours", lines=2)
        self.organ = widgets.sentence("Organ contrast", lines=3)
        self._colours.told.connect(lambda text: widgets.tell(self.which, text))
        contrast.told.connect(lambda text: widgets.tell(self.organ, text))
        self.carry = _button(
            "Carry labels to other scans...",
            "Go to Label: labels of one open scan are carried to the others by match",
        )
        self.carry.clicked.connect(
            lambda: self._explorer.hub.go.emit("Label", {"carry": True})
        )
        for widget in (self.several, self.which, self.organ, self.carry):
            column.addWidget(widget)

    def _make_matches(self, column: QVBoxLayout) -> None:
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
        for widget in (self.found, self.matches, self.go_match):
            column.addWidget(widget)

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
        self.carry.setEnabled(len(self._explorer.control.scans) > 1)


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


# One open scan in the Explore panel: its features, its heat, and what can be done.


class ScanRow(FeatureRow):
    """A row that shows a scan and emits what was pressed.

    Signals:
        heat_wanted: The box was ticked or cleared.
        look_at: Bring this scan to the front.
    """

    heat_wanted = Signal(bool)
    look_at = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.heat = QCheckBox()
        self.heat.setToolTip("Show the similarity map over this scan")
        self.heat.setSizePolicy(
            QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred
        )
        self.heat.clicked.connect(self.heat_wanted)
        self.front = QPushButton("Show")
        self.front.setToolTip(
            "Bring this scan to the front and to its middle; scans that lie over it "
            "are hidden"
        )
        self.front.clicked.connect(lambda: self.look_at.emit())
        first = QHBoxLayout()
        first.addWidget(self.heat, 1)
        first.addWidget(self.front)
        self.column.insertLayout(0, first)
        self.column.setContentsMargins(0, 2, 0, 4)

    def show_scan(self, scan: Scan, *, can_compute: bool) -> None:
        """Show a scan's state.

        Args:
            scan: The scan.
            can_compute: Whether there is an encoder and the engine is installed.
        """
        name = scan.ref.name
        self.heat.setText(name)
        self.heat.setAccessibleName(f"Similarity map over {name}")
        self.heat.setToolTip(f"Show the similarity map over {name}")
        self.heat.setEnabled(scan.state == "ready")
        self.heat.setChecked(scan.state == "ready" and scan.shown)
        self.front.setAccessibleName(f"Show {name}")
        self.show_features(scan, can_compute=can_compute)


# The two toolboxes of the Explore panel: under the mouse, and what is lit.


class MouseBox(QWidget):
    """Whether heat follows the mouse, what is under it, and the button that pins it."""

    def __init__(self, explorer: Explorer, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._explorer = explorer
        self.follow = QCheckBox("Similarity under the mouse")
        self.follow.setChecked(True)
        self.follow.setAccessibleName("Similarity under the mouse")
        self.follow.setToolTip("Off: the pinned map stays while the mouse moves")
        self.follow.toggled.connect(self._set_follow)
        # It changes with the mouse, beside buttons that must not.
        self.value = widgets.Sentence(2)
        widgets.named(
            self.value, "Similarity under the mouse, value",
            "Similarity under the mouse, value",
        )  # fmt: skip
        self.points = QCheckBox("Show points")
        self.points.setChecked(True)
        self.points.setAccessibleName("Show points")
        self.points.setToolTip("Show pinned places and their matches as points")
        self.points.clicked.connect(self._set_points)
        self.pin = QPushButton("Pin here (Shift+F)")
        self.pin.setAccessibleName("Pin here")
        self.pin.setToolTip(
            "Keep the place the mouse was at last; Shift+click does it on the scan"
        )
        self.pin.clicked.connect(lambda: self._explorer.pin_here())
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for widget in (self.follow, self.value, self.pin, self.points):
            column.addWidget(widget)
        explorer.told.connect(self.value.setText)
        explorer.pins_changed.connect(self._show_points)

    def _set_follow(self, on: bool) -> None:
        self._explorer.control.hover = on

    def _set_points(self, on: bool) -> None:
        self._explorer.show_points = on
        self._explorer.refresh_marks()

    def _show_points(self) -> None:
        self.points.setChecked(self._explorer.show_points)


class RangeBox(QWidget):
    """Which similarities are lit, and what can be made of them."""

    def __init__(
        self, explorer: Explorer, products: Products, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self._explorer = explorer
        self.range = QLabeledDoubleRangeSlider(Qt.Orientation.Horizontal)
        self.range.setRange(-1.0, 1.0)
        self.range.setSingleStep(0.01)
        self.range.setDecimals(2)
        self.range.setAccessibleName("Lit similarity, from and to")
        self.range.setToolTip(
            "Similarities in this range are lit; labels are made of what is lit"
        )
        self.range.valueChanged.connect(self._set_range)
        label = QLabel("&Lit similarity (cosine, -1 to 1)")
        label.setBuddy(self.range)
        self.labels = QPushButton("Make labels from this")
        self.labels.setAccessibleName("Make labels from this")
        self.labels.setToolTip(
            "A label layer of what is lit, on each shown scan's own grid"
        )
        self.labels.clicked.connect(products.make_labels)
        self.colours = QPushButton("Colour by features")
        self.colours.setAccessibleName("Colour by features")
        self.colours.setToolTip(
            "The three main directions of the features as red, green and blue, for all "
            "scans that have features together"
        )
        self.colours.clicked.connect(products.colour)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for widget in (label, self.range, self.labels, self.colours):
            column.addWidget(widget)
        products.busy.connect(lambda busy: self.colours.setEnabled(not busy))

    def refresh(self) -> None:
        """Show the range of the control."""
        control = self._explorer.control
        if tuple(self.range.value()) != (control.low, control.high):
            self.range.blockSignals(True)
            self.range.setValue((control.low, control.high))
            self.range.blockSignals(False)

    def _set_range(self, values: tuple[float, ...]) -> None:
        self._explorer.set_range(float(values[0]), float(values[-1]))


class ExplorePanel(QWidget):
    """Similarity under the mouse, pinned places, matches in other scans."""

    title: ClassVar[str] = "Explore"

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self.explorer = Explorer(hub, self)
        self.products = Products(self.explorer)
        self._rows: dict[str, ScanRow] = {}
        self._asked = self._begins = False
        self.models = ModelRow(
            hub, "Pretrained or fine-tuned: its features tell what looks alike"
        )
        self.hint = HintRow(hub, HINTS)
        self.rows = QVBoxLayout()
        self.rows.setSpacing(2)
        self.mouse = MouseBox(self.explorer)
        self.colours = PinColours(self.explorer)
        self.contrast = Contrast(self.explorer)
        self.beside = Beside(self.explorer, self.colours, self)
        self.others = BesideBox(self.beside, self.colours, self.explorer)
        self.tools = RangeBox(self.explorer, self.products)
        self.pins = PinsBox(self.explorer, self.colours, self.contrast)
        self.said = widgets.Sentence(2)
        widgets.named(self.said, "What was done", "What was done")
        # What comes and goes keeps its room, and what grows stands last.
        widgets.keep_room(self.mouse, self.tools)
        column = QVBoxLayout(self)
        for part in (
            self.models, self.hint, self.rows, self.others, self.mouse, self.tools,
            self.said, self.pins,
        ):  # fmt: skip
            if isinstance(part, QWidget):
                column.addWidget(part)
            else:
                column.addLayout(part)
        column.addStretch(1)
        self._connect()
        self.shown()

    # What the dock calls

    def visit(self, what: dict[str, Any]) -> None:
        """Another tab sends the user here: ``{"encoder": path}``.

        ``{"begin": True}``: features of the selected scan are computed at once.
        """
        self.models.want(what)
        # Only once the models are listed: other scans may be open than the last time,
        # and another model may suit them, for which what was begun would be stopped.
        self._asked, self._begins = bool(what.get("begin")), False
        self.shown()

    def shown(self) -> None:
        """Read the models and the viewer's scans anew."""
        self.models.read()
        self.explorer.sync()

    def showEvent(self, event: QShowEvent) -> None:
        """Listen to the viewer while the tab is in front."""
        super().showEvent(event)
        self.explorer.listening.begin()
        self.explorer.sync()
        self.beside.come_back()
        self._refresh_hint()

    def hideEvent(self, event: QHideEvent) -> None:
        """Another tab: the mouse belongs to it; heat and points stay."""
        super().hideEvent(event)
        self.explorer.left()
        self.explorer.listening.end()
        if not event.spontaneous():
            self.beside.step_aside()

    # Parts

    def _connect(self) -> None:
        explorer = self.explorer
        self.models.chosen.connect(self._chosen)
        self.hint.compute.connect(self._compute_all)
        explorer.scans_changed.connect(self._refresh)
        explorer.scan_changed.connect(self._refresh_row)
        explorer.hint_changed.connect(self._refresh_hint)
        self.products.told.connect(self.said.setText)
        self.pins.told.connect(self.said.setText)
        self.hub.changed.connect(self._heard)
        for key, words, function in (
            ("Shift-F", "find similar here and pin it", explorer.pin_in_view),
            ("Shift-H", "show or hide the similarity maps", explorer.toggle_heat),
            ("Shift-G", "go to the best match of the pinned place", explorer.go_on),
            ("Shift-N", "go to the next match", explorer.go_on),
            ("Escape", "forget what was asked; pinned places stay", self._forget),
        ):
            keys.add(self.hub, key, words, function, while_shown=self)
        end_with(self, self._leave)
        self.hub.closing.connect(explorer.end)
        self.hub.closing.connect(self.beside.end)

    def _leave(self) -> None:
        """The panel goes: the second view first, it is drawn anew by what follows."""
        self.beside.end()
        self.colours.end()
        self.explorer.leave()

    def _forget(self) -> None:
        """Nothing is lit any more until the mouse asks again."""
        self.explorer.control.query = None
        self.explorer.drawing.clear()
        self.explorer.show_pin(None)

    # What is shown

    def _refresh(self) -> None:
        scans = self.explorer.control.scans
        for key in [k for k in self._rows if k not in scans]:
            row = self._rows.pop(key)
            self.rows.removeWidget(row)
            row.deleteLater()
        for key in scans:
            if key not in self._rows:
                self._rows[key] = self._new_row(key)
            self._refresh_row(key)
        self._refresh_hint()

    def _new_row(self, key: str) -> ScanRow:
        row, explorer = ScanRow(), self.explorer
        row.heat_wanted.connect(lambda shown: explorer.show_heat(key, shown))
        row.compute.connect(lambda: explorer.work.compute([key]))
        row.cancel.connect(lambda: explorer.work.cancel(key))
        row.look_at.connect(lambda: explorer.look_at(key))
        self.rows.addWidget(row)
        return row

    def _refresh_row(self, key: str) -> None:
        control = self.explorer.control
        scan, row = control.scans.get(key), self._rows.get(key)
        if scan is not None and row is not None:
            able = control.encoder is not None and not control.engine_missing
            row.show_scan(scan, can_compute=able)
        if self._begins:
            self._begin()

    def _begin(self) -> None:
        """Compute what the user came for, as soon as it is known to be missing."""
        explorer, control = self.explorer, self.explorer.control
        chosen = getattr(self.hub.viewer.layers.selection.active, "unique_id", None)
        of = {getattr(explorer.layer_of(k), "unique_id", ""): k for k in control.scans}
        scan = control.scans.get(of.get(chosen, ""))
        if scan is None or control.encoder is None or scan.state == "looking":
            return
        self._begins = False
        if scan.state in ("none", "failed") and not control.engine_missing:
            self.explorer.work.compute([scan.key])

    def _refresh_hint(self) -> None:
        explorer, control = self.explorer, self.explorer.control
        hint = control.hint(self.hub.viewer.dims.ndisplay, explorer.over)
        self.hint.show_hint(hint)
        some = bool(control.ready())
        for box in (self.mouse, self.tools):
            box.setVisible(some)
        if some:
            self.tools.refresh()

    def _compute_all(self) -> None:
        self.explorer.work.compute(list(self.explorer.control.scans))

    # Models

    def _chosen(self, model: ModelChoice | None) -> None:
        self.explorer.choose(model)
        self._begins, self._asked = self._begins or self._asked, False
        self._refresh()

    def _heard(self, what: str) -> None:
        if what in ("runs", "models"):
            self.shown()
        elif what == "features" and not self.explorer.work.busy:
            self.explorer.look_again()
