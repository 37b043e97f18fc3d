"""The Label tab: paint a few voxels, see the whole scan labelled. Widgets only."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from qtpy.QtCore import QEvent, Qt, QTimer, Signal
from qtpy.QtGui import QColor, QIcon, QPixmap, QShowEvent
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QColorDialog,
    QHeaderView,
    QPushButton,
    QSizePolicy,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from homolog.gui.label import layers as own
from homolog.gui.label import words
from homolog.gui.label.carry_box import CarryBox
from homolog.gui.label.hand_box import HandBox
from homolog.gui.label.labelling import Desk, Labelling, Places
from homolog.gui.label.learning import KEYS, Fitted
from homolog.gui.label.words import (
    count_line,
    score_line,
    state_line,
    unknown_line,
    warning_lines,
)
from homolog.gui.shared import keys, widgets
from homolog.gui.shared.choices import ModelChoice
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.model_row import FeatureRow, ModelRow, end_with
from homolog.gui.shared.scans import Scan
from homolog.gui.shared.widgets import fold_of

# The table of classes: colour, name, key, painted voxels, and which is background.


_VALUE = Qt.ItemDataRole.UserRole
_TITLES = ("Class", "Key", "Painted")
_ROWS_SHOWN = 5  # whatever there is: "Add class" stays under the pointer


class ClassesBox(QWidget):
    """Chooses what is painted, and keeps the names and colours of all layers.

    Signals:
        told: Why something was not done.
    """

    told = Signal(str)

    def __init__(self, labelling: Labelling, panel: QWidget) -> None:
        """Make the box.

        Args:
            labelling: Whose classes they are.
            panel: The tab; the keys work while it is in front.
        """
        super().__init__()
        self._labelling, self._classes = labelling, labelling.classes
        self.table = _class_table()
        self.table.itemChanged.connect(self._edited)
        self.table.currentCellChanged.connect(self._chosen)
        self.add = widgets.button("Add class", "Another structure to paint", self._add)
        self.remove = widgets.button(
            "Remove", "Take the selected class away, while nothing is painted with it",
            self._remove,
        )  # fmt: skip
        self.colour = widgets.button(
            "Colour...", "Choose another colour for the selected class", self._ask
        )
        self.ground = widgets.button(
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
        column.addLayout(widgets.beside(self.add, self.remove))
        column.addLayout(widgets.beside(self.colour, self.ground))
        labelling.classes_changed.connect(self.refresh)
        for place, letter in enumerate(KEYS):
            keys.add(
                labelling.hub, f"Shift-{letter}", f"paint with class {place + 1}",
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
            self._labelling.choose_class(value)

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
        self._labelling.begin_again()

    def _changed(self) -> None:
        self._labelling.recolour()


def _class_table() -> QTableWidget:
    table = QTableWidget(0, len(_TITLES))
    widgets.named(
        table, "Classes",
        "The selected class is painted. Double-click a name to change it",
    )  # fmt: skip
    table.setHorizontalHeaderLabels(_TITLES)
    table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
    table.setEditTriggers(
        QAbstractItemView.EditTrigger.DoubleClicked
        | QAbstractItemView.EditTrigger.EditKeyPressed
    )
    table.setTabKeyNavigation(False)
    table.verticalHeader().hide()
    return table


def _swatch(colour: str) -> QIcon:
    picture = QPixmap(12, 12)
    picture.fill(QColor(colour))
    return QIcon(picture)


# Training by itself, what came of it, where to paint next, undo and before.


class ResultBox(QWidget):
    """Shows the rounds of learning, and acts on the predictions."""

    def __init__(self, labelling: Labelling, places: Places, panel: QWidget) -> None:
        """Make the box.

        Args:
            labelling: Whose rounds are shown.
            places: Acts on the predictions.
            panel: The tab; the keys work while it is in front.
        """
        super().__init__()
        self._labelling, self._places = labelling, places
        self._trainer = labelling.trainer
        self._make_parts()
        self._trainer.changed.connect(self.refresh)
        self._trainer.fitted.connect(self._fitted)
        self._trainer.scored.connect(self._scored)
        self._trainer.predicted.connect(self._predicted)
        places.changed.connect(self.refresh)
        places.told.connect(self.tell)
        labelling.scans_changed.connect(self.refresh)
        hub = labelling.hub
        keys.add(
            hub, "Shift-T", "learn from the paint and predict", self._trainer.now,
            while_shown=panel,
        )  # fmt: skip
        keys.add(
            hub, "Shift-N", "go where paint helps most", places.next, while_shown=panel
        )
        self.refresh()

    def _make_parts(self) -> None:
        places = self._places
        self.auto = QCheckBox("Predict after each stroke")
        widgets.named(
            self.auto, "Predict after each stroke",
            "0.8 s after the last stroke the model learns anew and predicts: the "
            "visible slice first, then the volume",
        )  # fmt: skip
        self.auto.setChecked(self._trainer.auto)
        self.auto.toggled.connect(self._set_auto)
        self.train = widgets.button(
            "Predict now (⇧T)", "Learn from the paint and predict (Shift+T)",
            self._trainer.now,
        )  # fmt: skip
        self.state = widgets.sentence("State of the prediction", lines=2)
        self.warnings = widgets.sentence("What is wrong with the paint", lines=5)
        self.score = widgets.sentence("Left-out score", lines=3)
        self.unknown = widgets.sentence("What is unknown", lines=2)
        self.next = widgets.button(
            "Where to click next (⇧N)",
            "Go to what is unknown in the body, else to the most uncertain place, and "
            "mark it (Shift+N)",
            places.next,
        )  # fmt: skip
        self.undo = widgets.button(
            "Undo prediction", "Bring back the prediction before; the paint stays",
            places.undo,
        )  # fmt: skip
        self.before = widgets.button(
            "Show before", "While pressed in, the prediction before the last one is "
            "shown", lambda: places.show_before(self.before.isChecked()),
        )  # fmt: skip
        self.before.setCheckable(True)
        self.told = widgets.sentence("What was done", lines=3)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.auto)
        for part in (self.train, self.state, self.next):
            column.addWidget(part)
        column.addLayout(widgets.beside(self.undo, self.before))
        for part in (self.told, self.unknown, self.warnings, self.score):
            column.addWidget(part)

    def tell(self, text: str) -> None:
        """A sentence about what was done, or nothing."""
        widgets.tell(self.told, text)

    def refresh(self) -> None:
        """Show state and timing; enable what can be done."""
        trainer, levels = self._trainer, self._places.history.levels
        line = state_line(trainer.state, trainer.problem, trainer.timing.words())
        widgets.tell(self.state, line)
        able = bool(self._labelling.taking_part())
        self.train.setEnabled(able and not trainer.busy)
        self.next.setEnabled(trainer.last is not None and not trainer.busy)
        self.undo.setEnabled(levels > 0 and not trainer.busy)
        self.undo.setText(
            f"Undo prediction ({levels})" if levels else "Undo prediction"
        )
        self.before.setEnabled(levels > 0 and not trainer.busy)
        self.before.setChecked(self._places.is_before)
        if trainer.state in ("waiting", "fitting"):
            self.tell("")

    def _set_auto(self, on: bool) -> None:
        self._trainer.auto = on
        if on:
            self._labelling.begin_again()

    def _fitted(self, fitted: Fitted) -> None:
        learnt = fitted.learnt
        ground = any(c.background for c in learnt.head.classes)
        widgets.tell(self.warnings, warning_lines(learnt.warnings, has_ground=ground))

    def _predicted(self, _: Any) -> None:
        fitted, front = self._trainer.last, self._labelling.front()
        if fitted is None:
            return
        place = fitted.place_of(front) or 0
        millilitres = fitted.sides[place].unknown_ml
        wanted = fitted.learnt.config.unknown > 0
        widgets.tell(self.unknown, unknown_line(millilitres, wanted=wanted))

    def _scored(self, score: Any) -> None:
        widgets.tell(self.score, score_line(score))


# One open scan in the Label tab: whether it takes part, its paint, its features.


class ScanRow(FeatureRow):
    """Shows a scan and what is painted on it, and emits what was pressed.

    Signals:
        part: The box was ticked or cleared.
        make: A layer to paint on is wanted, or the one there, to be painted on.
        use: The selected layer is to be painted on.
    """

    part = Signal(bool)
    make = Signal()
    use = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.tick = QCheckBox()
        # a long file name is cut, not the panel widened
        self.tick.setSizePolicy(
            QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred
        )
        self.tick.clicked.connect(self.part)
        self.paint = QPushButton()
        self.paint.clicked.connect(lambda: self.make.emit())
        self.take = QPushButton()
        self.take.clicked.connect(lambda: self.use.emit())
        # What comes and goes keeps its place: a stroke or a model moves no button.
        widgets.keep_room(self.take)
        self.column.setContentsMargins(0, 2, 0, 4)
        self.column.insertWidget(0, self.tick)
        self.column.addLayout(widgets.beside(self.paint, self.take))

    def show_scan(
        self, scan: Scan, desk: Desk, *, usable: str, encoder: bool, can_compute: bool
    ) -> None:
        """Show a scan's state.

        Args:
            scan: The scan.
            desk: What lies on it.
            usable: Name of the selected layer, where it can be painted on.
            encoder: Whether features of an encoder are wanted.
            can_compute: Whether the engine is installed.
        """
        name = scan.ref.name
        self.tick.setText(name)
        widgets.named(
            self.tick, f"{name} takes part",
            f"Learn from the paint of {name}, and predict it",
        )  # fmt: skip
        self.tick.setChecked(desk.takes_part)
        self.tick.setEnabled(desk.painted is not None)
        painted = "" if desk.painted is None else count_line(desk.voxels)
        line = "; ".join(t for t in (painted, scan.line() if encoder else "") if t)
        self.show_features(
            scan if encoder else None, can_compute=can_compute, name=name,
            words=f"{line[:1].upper()}{line[1:]}",
        )  # fmt: skip
        is_new = desk.painted is None
        self.paint.setText("Create label layer" if is_new else "Paint")
        widgets.named(
            self.paint, f"{self.paint.text()}, {name}",
            "Paint voxels of this scan: a brush of 3 mm that paints in depth too",
        )  # fmt: skip
        self.take.setText("Use selected layer")
        widgets.named(
            self.take, f"Paint on the selected layer, {name}",
            f"Learn from what {usable} holds already, and paint on it",
        )  # fmt: skip
        self.take.setVisible(bool(usable) and is_new)


# How the paint is learnt from: learner, place, and what lies outside the body.


_LEARNERS = [
    ("Smooth borders (logistic regression)", "logistic"),
    ("Like the nearest paint (k neighbours)", "knn"),
]


_SURE = [
    ("Every voxel gets a class", 0.0),
    ("Unknown if very unlike it", 0.05),
    ("Unknown if unlike it", 0.1),
    ("Unknown if a bit unlike it", 0.2),
]


class SettingsBox(QWidget):
    """Four settings in a fold; a change predicts anew.

    Args:
        labelling: Whose trainer they are for.
    """

    def __init__(self, labelling: Labelling) -> None:
        super().__init__()
        self._labelling = labelling
        config = labelling.trainer.config
        self.learner = widgets.Choice()
        widgets.fill(self.learner, _LEARNERS, config.head)
        self.place = QCheckBox("Use the place in the body")
        widgets.named(
            self.place, "Use the place in the body",
            "Left and right organs of one brightness are told apart by place. Untick "
            "it where scans show different parts of the body",
        )  # fmt: skip
        self.place.setChecked(config.position)
        self.body = QCheckBox("Label nothing outside the body")
        widgets.named(
            self.body, "Label nothing outside the body",
            "Air and table stay free. Has no effect once something is painted out "
            "there. Untick it where the body is not told rightly",
        )  # fmt: skip
        self.body.setChecked(config.body_only)
        self.sure = widgets.Choice()
        widgets.fill(self.sure, _SURE, config.unknown)
        inside = QWidget()
        column = QVBoxLayout(inside)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(
            widgets.labelled(
                "Learner", self.learner,
                "Logistic regression is quick; neighbours follow odd shapes, slower",
            )
        )  # fmt: skip
        column.addLayout(
            widgets.labelled(
                "Far from paint", self.sure,
                "Voxels unlike all paint of a class, in brightness, look and place, do "
                "not get it. How unlike is too much is learnt from strokes that are "
                "left out in turn; the choices let 5, 10 or 20 % of those go",
            )
        )  # fmt: skip
        column.addWidget(self.place)
        column.addWidget(self.body)
        fold = fold_of("More")
        fold.addWidget(inside)
        whole = QVBoxLayout(self)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.addWidget(fold)
        for choice in (self.learner, self.sure):
            choice.activated.connect(lambda _: self._changed())
        for box in (self.place, self.body):
            box.clicked.connect(lambda _: self._changed())

    def _changed(self) -> None:
        trainer = self._labelling.trainer
        trainer.config = replace(
            trainer.config,
            head=str(self.learner.currentData()),
            position=self.place.isChecked(),
            body_only=self.body.isChecked(),
            unknown=float(self.sure.currentData()),
        )
        self._labelling.begin_again()


_INTENSITY = "Intensity only (works at once)"


class LabelPanel(widgets.Tall):
    """Scans, classes, the prediction, and what becomes of it."""

    title: ClassVar[str] = "Label"

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self.labelling = Labelling(hub, self)
        self.places = Places(self.labelling)
        self._rows: dict[str, ScanRow] = {}
        self._begun = ""
        self._begun_with: tuple[str, Path] | None = None
        self.models = ModelRow(
            hub,
            "What tells tissues apart: intensity and place, and a model's features",
            title="Features", no_model=_INTENSITY,
            # without the engine no features can be computed
            shipped_first=not hub.engine_missing(),
        )  # fmt: skip
        self.no_scan = widgets.EmptyState(
            words.NO_SCAN,
            widgets.button("Open scans...", "Go to Data, where scans are opened",
                        lambda: hub.go.emit("Data", {})),
        )  # fmt: skip
        self.hint = widgets.sentence("Hint", texts=words.HINTS)
        self._list = QVBoxLayout()
        self._list.setSpacing(2)
        self.classes = ClassesBox(self.labelling, self)
        self.result = ResultBox(self.labelling, self.places, self)
        self.settings = SettingsBox(self.labelling)
        self.hand = HandBox(self.labelling)
        self.carry = CarryBox(self.labelling)
        column = QVBoxLayout(self)
        column.addWidget(self.models)
        column.addWidget(self.hint)
        column.addWidget(self.no_scan)  # in the place of the scans
        column.addLayout(self._list)
        column.addWidget(self.carry)
        for part in (self.classes, self.result, self.settings, self.hand):
            column.addWidget(part)
        column.addStretch(1)
        self._connect()
        self.shown()

    # What the dock calls

    def visit(self, what: dict[str, Any]) -> None:
        """Another tab sends the user here: ``{"encoder": path}``.

        ``{"begin": True}``: the selected scan gets a layer to paint on at once;
        ``{"carry": True}``: labels are to be carried to other scans.
        """
        self.models.want(what)
        self.shown()
        if what.get("carry"):
            self.carry.open()
        if what.get("begin") and (key := self.labelling.front()):
            self._begun = key
            self._make_layer(key)

    def shown(self) -> None:
        """Read the models and the viewer's scans anew."""
        self.models.read()
        self.labelling.sync()

    def tear_down(self) -> None:
        """The dock goes."""
        self.labelling.end()
        self.places.end()

    def showEvent(self, event: QShowEvent) -> None:  # noqa: D102 - Qt's name
        super().showEvent(event)
        self.labelling.sync()
        self._refresh()

    # Parts

    def _connect(self) -> None:
        labelling, viewer = self.labelling, self.hub.viewer
        self.models.chosen.connect(self._model_chosen)
        labelling.scans_changed.connect(self._refresh)
        labelling.scan_changed.connect(self._scan_changed)
        labelling.classes_changed.connect(self._refresh_hint)
        labelling.trainer.changed.connect(self._refresh_hint)
        self.classes.told.connect(self.result.tell)
        self.hub.changed.connect(self._heard)
        viewer.dims.events.ndisplay.connect(self._viewer_changed)
        viewer.layers.selection.events.active.connect(self._viewer_changed)
        end_with(self, labelling.end)
        self.hub.closing.connect(labelling.end)

    def _viewer_changed(self, event: Any = None) -> None:
        with contextlib.suppress(RuntimeError):  # the panel is gone already
            if self.isVisible():
                self._refresh()

    # What is shown

    def _refresh(self) -> None:
        labelling = self.labelling
        keys = list(labelling.desks)
        if keys != list(self._rows):
            for row in self._rows.values():
                self._list.removeWidget(row)
                row.deleteLater()
            self._rows = {key: self._row(key) for key in keys}
        for key in keys:
            self._refresh_row(key)
        self._refresh_hint()

    def _row(self, key: str) -> ScanRow:
        row, labelling = ScanRow(), self.labelling
        row.part.connect(lambda on: labelling.set_part(key, on))
        row.make.connect(lambda: self._make_layer(key))
        row.use.connect(
            lambda: labelling.use_layer(key, self.hub.viewer.layers.selection.active)
        )
        row.compute.connect(lambda: labelling.work.compute([key]))
        row.cancel.connect(lambda: labelling.work.cancel(key))
        self._list.addWidget(row)
        return row

    def _make_layer(self, key: str) -> None:
        """Begin to paint; features that nobody had to ask for come by themselves."""
        self.labelling.make_layer(key)
        scan = self.labelling.book.scans.get(key)
        if scan is not None and scan.state == "none":
            self._compute_unasked(key)

    def _compute_unasked(self, key: str) -> None:
        """Features of a model nobody chose; once, so that who stops it is heard."""
        encoder = self.labelling.encoder
        if self.models.by_default and encoder is not None:
            if (key, encoder.path) != self._begun_with:
                self._begun_with = key, encoder.path
                self.labelling.work.compute([key])

    def _scan_changed(self, key: str) -> None:
        self._refresh_row(key)
        self._refresh_hint()
        scan = self.labelling.book.scans.get(key)
        if key == self._begun and scan is not None:
            # Begun before the models were listed: features of the one that is chosen
            # come by themselves, whatever was chosen before.
            if scan.state == "none":
                self._compute_unasked(key)
            elif scan.state in ("ready", "failed"):
                self._begun = ""

    def _refresh_row(self, key: str) -> None:
        labelling, row = self.labelling, self._rows.get(key)
        scan, desk = labelling.book.scans.get(key), labelling.desks.get(key)
        if row is None or scan is None or desk is None:
            return
        active = self.hub.viewer.layers.selection.active
        usable = active.name if own.usable_on(desk.layer, active) else ""
        row.show_scan(
            scan, desk, usable=usable, encoder=labelling.encoder is not None,
            can_compute=not labelling.book.engine_missing,
        )  # fmt: skip

    def _refresh_hint(self) -> None:
        labelling = self.labelling
        desks = labelling.desks
        self.no_scan.setVisible(not desks)
        painted = any(desk.painted is not None for desk in desks.values())
        for part in (self.classes, self.result, self.settings, self.hand):
            part.setVisible(painted)
        widgets.tell(self.hint, self._hint())

    def _hint(self) -> str:
        labelling = self.labelling
        taking = labelling.taking_part()
        if not labelling.desks:
            return ""
        states = {scan.state for scan, _ in taking if labelling.encoder is not None}
        if "failed" in states or ("none" in states and not self.models.by_default):
            return words.COMPUTE
        if states & {"computing", "waiting"}:
            return words.COMPUTING
        if taking and self.hub.viewer.dims.ndisplay == 3:
            return words.IN_3D
        few = len([n for n in labelling.classes.counts.values() if n]) < 2
        return words.START if few else words.MORE

    # Models

    def _heard(self, what: str) -> None:
        if what in ("runs", "models") and self.isVisible():
            self.shown()
        elif what == "features" and not self.labelling.work.busy:
            self.labelling.look_again()

    def _model_chosen(self, model: ModelChoice | None) -> None:
        self.labelling.choose_encoder(model)
        self._refresh()
