"""A second viewer beside napari's own: another scan with slices of its own."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

from qtpy.QtCore import QEvent, Qt, QTimer
from qtpy.QtWidgets import (
    QDockWidget,
    QLabel,
    QMainWindow,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from homolog.gui import rows

TITLE = "Scan B"
# napari deletes a dock a while after it was closed.
_TAKEN_DOWN_MS = 150


class SecondView:
    """A ``ViewerModel`` in a ``QtViewer``, docked between the canvas and our panel.

    A docked widget gets no close event (``anchors/napari.md`` 0.4), so whoever opened
    it calls ``close``: when its panel goes and before the window closes.

    Args:
        viewer: napari's main viewer.
        panel: Our panel; the view is docked on its left.
        closed: Called when the user closes its dock.
    """

    def __init__(
        self, viewer: Any, panel: QWidget, closed: Callable[[], None] = lambda: None
    ) -> None:
        from napari.components import ViewerModel
        from napari.qt import QtViewer

        self._main = viewer
        self._dock: QDockWidget | None = None
        self._window: QMainWindow | None = None
        self._ours: QDockWidget | None = None
        self._widths = (250, 340)
        self.model = ViewerModel(title=TITLE)
        self._canvas: Any = QtViewer(self.model)
        self.widget = _Frame(self._canvas, closed)
        self._put_beside(panel)
        self.model.canvas.overlays.scale_bar.visible = True

    @property
    def is_open(self) -> bool:
        """Whether the user has not closed its dock, and we have not either."""
        return self._canvas is not None and self._dock is not None

    @property
    def is_visible(self) -> bool:
        """Whether it can be seen."""
        if self._dock is None:
            return False
        try:
            return bool(self._dock.isVisible())
        except RuntimeError:  # deleted with the window
            return False

    def show(self) -> None:
        """Bring it back where the user hid it."""
        if self._dock is not None and not self._dock.isVisible():
            self._dock.setVisible(True)
            QTimer.singleShot(0, self._share)

    def hide(self) -> None:
        """Take it out of sight; what it shows stays."""
        if self._dock is not None and self._dock.isVisible():
            if self._ours is not None:
                self._widths = (self._dock.width(), self._ours.width())
            self._dock.setVisible(False)
            QTimer.singleShot(0, self._give_back)

    def tell(self, text: str) -> None:
        """A line above the canvas: which scan this is."""
        self.widget.name.setText(text)
        self.widget.name.setToolTip(text)

    def close(self) -> None:
        """Give everything back: layers, canvas, dock. A second call does nothing."""
        canvas, self._canvas = self._canvas, None
        if canvas is None:
            return
        dock, self._dock = self._dock, None
        self.widget.forget()
        self.model.layers.clear()
        with contextlib.suppress(RuntimeError):  # Qt was faster
            canvas.close()
            self.widget.layout().removeWidget(canvas)
            canvas.setParent(None)
            canvas.deleteLater()
        if dock is not None:
            with contextlib.suppress(Exception):  # the window closes, its docks too
                self._main.window.remove_dock_widget(self.widget)
        with contextlib.suppress(RuntimeError):
            self.widget.deleteLater()
        if self._window is None or self._ours is None:
            return
        # Weak, so that a window that closes is kept by nothing of ours.
        window, ours = weakref.ref(self._window), weakref.ref(self._ours)
        wide = self._widths[1]
        self._window = self._ours = None
        QTimer.singleShot(_TAKEN_DOWN_MS, lambda: _give(window(), ours(), wide))

    def _put_beside(self, panel: QWidget) -> None:
        window, ours = _docked_in(panel)
        centre = None if window is None else window.centralWidget()
        canvas = 500 if centre is None else centre.width()
        self._main.window.add_dock_widget(
            self.widget, name=TITLE, area="right", add_vertical_stretch=False
        )
        _, dock = _docked_in(self.widget)
        self._dock = dock
        if dock is None or window is None or ours is None or ours.isFloating():
            return
        # Else Qt puts one above the other.
        window.splitDockWidget(dock, ours, Qt.Orientation.Horizontal)
        self._widths = (max(canvas // 2, 200), ours.width())
        self._window, self._ours = window, ours
        QTimer.singleShot(0, self._share)  # once Qt has laid it out

    def _share(self) -> None:
        """Both scans get half of what the canvas had."""
        if self._dock is None or self._window is None or self._ours is None:
            return
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            self._window.resizeDocks(
                [self._dock, self._ours], list(self._widths), Qt.Orientation.Horizontal
            )

    def _give_back(self) -> None:
        """Its width goes to the canvas, not to our panel."""
        _give(self._window, self._ours, self._widths[1])


def _give(window: QMainWindow | None, dock: QDockWidget | None, wide: int) -> None:
    if window is not None and dock is not None:
        with contextlib.suppress(RuntimeError):  # the window is gone
            window.resizeDocks([dock], [wide], Qt.Orientation.Horizontal)


class _Frame(QWidget):
    """The canvas with a line of text above."""

    def __init__(self, canvas: QWidget, closed: Callable[[], None]) -> None:
        super().__init__()
        self._closed, self._docked = closed, False
        rows.named(self, TITLE, "The second scan, with slices of its own")
        self.name = rows.named(QLabel("B"), "Scan shown in the second view", "")
        self.name.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.name.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        column = QVBoxLayout(self)
        column.setContentsMargins(2, 2, 2, 2)
        column.setSpacing(2)
        column.addWidget(self.name)
        column.addWidget(canvas, 1)

    def forget(self) -> None:
        """Its end is ours now, nobody needs to be told."""
        self._closed = lambda: None

    def event(self, event: QEvent) -> bool:
        """Taken out of its dock means closed by the user."""
        if event.type() == QEvent.Type.ParentChange:
            if self.parentWidget() is not None:
                self._docked = True
            elif self._docked:
                self._docked = False
                # Later: napari is still taking the dock down.
                QTimer.singleShot(0, self._closed)
        return bool(super().event(event))


def _docked_in(panel: QWidget) -> tuple[QMainWindow | None, QDockWidget | None]:
    place: QWidget | None = panel
    dock = None
    while place is not None and not isinstance(place, QMainWindow):
        dock = place if isinstance(place, QDockWidget) else dock
        place = place.parentWidget()
    return place, dock
