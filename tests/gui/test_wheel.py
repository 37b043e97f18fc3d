"""The wheel over any control of any tab changes nothing and scrolls the panel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filled_window import filled  # noqa: F401 - a fixture
from learn_fakes import fake_engine, until

pytest.importorskip("napari")

from qtpy.QtCore import QAbstractListModel, QPoint, QPointF, Qt
from qtpy.QtGui import QWheelEvent
from qtpy.QtTest import QTest
from qtpy.QtWidgets import (
    QAbstractButton,
    QAbstractItemView,
    QAbstractSlider,
    QAbstractSpinBox,
    QApplication,
    QComboBox,
    QLabel,
    QLineEdit,
    QScrollArea,
    QScrollBar,
    QStackedWidget,
    QTableWidget,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)
from superqt import QCollapsible, QLabeledDoubleRangeSlider, QRangeSlider

from homolog.gui.dock import PANELS, MainPanel
from homolog.gui.shared.widgets import WheelGuard, turns
from homolog.gui.window import dock_panel

pytestmark = pytest.mark.usefixtures("workers")
TITLES = [title for title, _ in PANELS]


def notch(widget: QWidget, down: bool = True) -> None:
    """One notch of the wheel, offered to the parents as Qt offers the mouse's own."""
    place = QPointF(widget.rect().center())
    on_screen = QPointF(widget.mapToGlobal(widget.rect().center()))
    taker: QWidget | None = widget
    while taker is not None:
        event = QWheelEvent(
            place, on_screen, QPoint(), QPoint(0, -120 if down else 120),
            Qt.MouseButton.NoButton, Qt.KeyboardModifier.NoModifier,
            Qt.ScrollPhase.NoScrollPhase, False,
        )  # fmt: skip
        event.ignore()
        QApplication.sendEvent(taker, event)
        if event.isAccepted() or taker.isWindow():
            return
        place = QPointF(taker.mapToParent(place.toPoint()))
        taker = taker.parentWidget()


def value_of(widget: Any) -> Any:
    if isinstance(widget, QComboBox):
        return widget.currentIndex(), widget.currentText()
    if isinstance(widget, QAbstractSpinBox):
        return widget.text()
    return widget.currentIndex() if hasattr(widget, "currentIndex") else widget.value()


def turned_by(widget: QWidget) -> bool:
    """Whether a notch up or down changes the widget; it is put back by neither."""
    before = value_of(widget)
    notch(widget, down=True)
    there = value_of(widget)
    notch(widget, down=False)
    return not before == there == value_of(widget)


def takes_focus_by_wheel(panel: QWidget) -> list[QWidget]:
    wheel = Qt.FocusPolicy.WheelFocus
    return [w for w in panel.findChildren(QWidget) if w.focusPolicy() == wheel]


def opened(panel: MainPanel, title: str) -> QScrollArea:
    """A tab with all its folds open."""
    panel.show_tab(title)
    area = panel._areas[title]
    until(lambda: area.isVisible() and panel.panels[title].height() > 1)
    for fold in panel.panels[title].findChildren(QCollapsible):
        fold.expand(animate=False)
    until(lambda: not takes_focus_by_wheel(area))
    return area


def test_no_control_of_any_tab_is_turned_in_passing(
    make_napari_viewer_proxy, home: Path, monkeypatch
) -> None:
    fake_engine(monkeypatch)
    viewer = make_napari_viewer_proxy(show=True)
    viewer.window.resize(1280, 720)
    panel = dock_panel(viewer)
    panel.hub.want_schema()
    until(lambda: panel.hub.schema is not None)
    seen, scrolled = 0, set()
    for title in TITLES:
        area = opened(panel, title)
        assert area.widget() is panel.panels[title]
        controls = [w for w in area.findChildren(QWidget) if turns(w)]
        seen += len(controls)
        bar = area.verticalScrollBar()
        for control in controls:
            before = value_of(control)
            for down in (True, False):
                bar.setValue(bar.maximum() // 2)
                start = bar.value()
                notch(control, down)
                assert value_of(control) == before, (title, control.accessibleName())
                assert not control.hasFocus()
                if bar.maximum() > 0 and control.isVisible():
                    moved = bar.value() - start
                    assert moved > 0 if down else moved < 0, (title, control)
                    scrolled.add(title)
    assert seen > 40, "the forms were not made"
    assert {"Pretrain", "Fine-tune"} <= scrolled


def values_of(area: QWidget) -> dict[QWidget, Any]:
    """What every control of a tab holds: choices, numbers, ticks, texts, rows."""
    found: dict[QWidget, Any] = {}
    for widget in area.findChildren(QWidget):
        if isinstance(widget, QScrollBar):
            continue
        if turns(widget):
            found[widget] = value_of(widget)
        elif isinstance(widget, QAbstractButton) and widget.isCheckable():
            found[widget] = widget.isChecked()
        elif isinstance(widget, QLineEdit):
            found[widget] = widget.text()
        elif isinstance(widget, QAbstractItemView):
            found[widget] = widget.currentIndex().row(), _cells(widget)
        elif isinstance(widget, QStackedWidget):
            found[widget] = widget.currentIndex()
    return found


def _cells(view: QAbstractItemView) -> list[Any]:
    model = view.model()
    if isinstance(model, QAbstractListModel):  # Qt hides how many columns it has
        return [view.currentIndex().data()]
    states = [Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.CheckStateRole]
    return [
        model.index(row, column).data(state)
        for row in range(model.rowCount())
        for column in range(model.columnCount())
        for state in states
    ]


def states_of(panel: MainPanel, title: str) -> Iterator[str]:
    """Brings a tab into each state that has controls of its own."""
    tab = panel.panels[title]
    if title == "Label":
        panel.visit(title, {"begin": True})
    elif title == "Segment":
        until(lambda: tab.models)
        tab.classes.adopt(panel.hub.viewer.layers["organs"])
        tab.scan.go_on.show()
    elif title == "Models":
        until(lambda: tab.models)
        tab.form.offer(Path("x.pt"), "x", "Which network is it?")
    elif title == "Data":
        until(lambda: len(tab.list.rows) == 2)
        tab.build.spacing.setCurrentIndex(2)
    elif title == "Landmarks":
        tab.cohort.show()
    elif title == "Runs":
        until(lambda: tab.rows)
        yield "list"
        tab.follow(panel.hub.runs / "slow")
        yield "training"
        tab.follow(panel.hub.runs / "table")
        yield "comparison"
        tab.new_comparison()
        until(lambda: tab.form.arms.count(), 60)  # read on a thread
    yield "open"


def test_the_wheel_over_any_widget_of_any_tab_changes_nothing(
    filled,  # noqa: F811
) -> None:
    """Also over lists, ticks and folds, with scans, models, runs and forms open."""
    panel = filled()
    walked = 0
    for title in TITLES:
        area = opened(panel, title)
        for state in states_of(panel, title):
            for fold in area.findChildren(QCollapsible):
                fold.expand(animate=False)
            until(lambda area=area: not takes_focus_by_wheel(area))
            before = values_of(area)
            for widget in area.findChildren(QWidget):
                if not widget.isVisible() or isinstance(widget, QScrollBar):
                    continue
                walked += 1
                notch(widget, down=True)
                notch(widget, down=False)
                now = values_of(area)
                changed = [w for w, value in before.items() if now.get(w) != value]
                assert not changed, (title, state, widget.accessibleName())
    assert walked > 400, "the tabs were empty"


@pytest.fixture
def form(qtbot):
    """A scrolled column in a watched widget; returns (area, add)."""
    root, area, inside = QWidget(), QScrollArea(), QWidget()
    column = QVBoxLayout(inside)
    area.setWidgetResizable(True)
    area.setWidget(inside)
    QVBoxLayout(root).addWidget(area)
    WheelGuard(root)
    qtbot.addWidget(root)
    root.resize(300, 300)
    root.show()
    qtbot.waitExposed(root)

    def add(widget: QWidget) -> QWidget:
        column.addWidget(widget)
        column.addWidget(QLabel("\n" * 40))
        until(lambda: area.verticalScrollBar().maximum() > 0)
        return widget

    yield area, add  # noqa: PT022 - returned, nobody would hold the root


def made(kind: str) -> QWidget:
    if kind == "combo":
        widget: Any = QComboBox()
        widget.addItems(["a", "b", "c"])
        widget.setCurrentIndex(1)
        return widget
    if kind == "tabs":
        tabs = QTabWidget()
        for name in "abc":
            tabs.addTab(QWidget(), name)
        tabs.setCurrentIndex(1)
        return tabs
    if kind == "cell":
        table = QTableWidget(1, 1)
        table.setCellWidget(0, 0, made("combo"))
        return table
    if kind == "range":
        widget = QRangeSlider(Qt.Orientation.Horizontal)
        widget.setValue((20, 60))
        return widget
    if kind == "labelled range":
        widget = QLabeledDoubleRangeSlider(Qt.Orientation.Horizontal)
        widget.setValue((20.0, 60.0))
        return widget
    if kind in ("number", "slider"):
        from magicgui.widgets import FloatSlider, SpinBox

        return (SpinBox if kind == "number" else FloatSlider)(value=5).native
    raise AssertionError(kind)


KINDS = ["combo", "tabs", "cell", "range", "labelled range", "number", "slider"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_control_that_comes_later_is_watched_too(form, kind) -> None:
    area, add = form
    widget = add(made(kind))
    controls = [w for w in (widget, *widget.findChildren(QWidget)) if turns(w)]
    controls = [w for w in controls if w.isVisible()]
    assert controls
    for control in controls:
        assert not turned_by(control)
    area.verticalScrollBar().setValue(0)
    notch(controls[0])
    assert area.verticalScrollBar().value() > 0


@pytest.mark.parametrize("kind", ["combo", "number", "range", "tabs"])
def test_with_the_focus_it_turns(form, kind) -> None:
    area, add = form
    widget = add(made(kind))
    control = next(w for w in (widget, *widget.findChildren(QWidget)) if turns(w))
    widget.window().activateWindow()
    QTest.qWaitForWindowActive(widget.window())
    control.setFocus()
    QApplication.processEvents()
    assert control.hasFocus()
    assert turned_by(control)
    assert area.verticalScrollBar().value() == 0


def test_scroll_bars_stay_what_they_are(form) -> None:
    area, add = form
    add(QLabel("long"))
    bar = area.verticalScrollBar()
    assert isinstance(bar, QAbstractSlider)
    notch(bar)
    assert bar.value() > 0
