"""The chart of a CurveView, drawn by pyqtgraph: imported when the first one is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyqtgraph
from qtpy.QtCore import QSize, Qt
from qtpy.QtGui import QFont
from qtpy.QtWidgets import QLabel, QSizePolicy, QWidget

from homolog.gui.shared.runs import Curve, colour_of

_HEIGHT_PX = 190


class Chart(pyqtgraph.PlotWidget):
    """Curves that are updated, never remade.

    Args:
        say_values: Called with the step under the mouse.
        parent: Of the widget.
    """

    def __init__(self, say_values: Callable[[float], None], parent: QWidget) -> None:
        super().__init__(parent=parent, background=None)
        self._say_values = say_values
        self._lines: dict[str, Any] = {}
        self.setLabel("bottom", "step")
        self.showGrid(x=True, y=True, alpha=0.15)
        self.setMouseEnabled(x=True, y=False)
        self.setMenuEnabled(False)
        self.setFixedHeight(_HEIGHT_PX)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.scene().sigMouseMoved.connect(self._hover)

    def sizeHint(self) -> QSize:  # noqa: D102 - Qt's name
        return QSize(200, _HEIGHT_PX)

    def wheelEvent(self, event: Any) -> None:
        """The wheel scrolls the panel."""
        event.ignore()

    def draw(self, curves: list[Curve], log: bool) -> None:
        """Show these; with ``log`` on a logarithmic scale."""
        names = {curve.name for curve in curves}
        for name in [n for n in self._lines if n not in names]:
            self.removeItem(self._lines.pop(name))
        self.setLogMode(x=False, y=log)
        places = 0
        for curve in curves:
            line = self._lines.get(curve.name)
            if line is None:
                line = self.plot(connect="finite")
                self._lines[curve.name] = line
            line.setPen(_pen(curve, places))
            few = curve.role == "validation" or len(curve.x) < 2
            line.setSymbol("o" if few else None)
            line.setSymbolSize(5)
            line.setSymbolBrush(colour_of(curve, places))
            line.setData(curve.x, curve.y)
            places += curve.role != "earlier"

    def dress(self, like: QLabel) -> None:
        """A label's text colour and font, so that themes and sizes fit."""
        text = like.palette().color(like.foregroundRole())
        font = QFont(like.font())
        for side in ("left", "bottom"):
            axis = self.getAxis(side)
            axis.setPen(text)
            axis.setTextPen(text)
            axis.setTickFont(font)
            axis.label.setDefaultTextColor(text)

    def _hover(self, place: Any) -> None:
        if self.sceneBoundingRect().contains(place):
            self._say_values(self.getViewBox().mapSceneToView(place).x())


def _pen(curve: Curve, place: int) -> Any:
    style = Qt.PenStyle.SolidLine if curve.role != "part" else Qt.PenStyle.DashLine
    width = 2 if curve.role in ("train", "validation") else 1
    return pyqtgraph.mkPen(colour_of(curve, place), width=width, style=style)
