"""Live curves: pyqtgraph where it is installed, a plain painter where it is not.

Both draw at most four times a second, only while visible, and at most 2000 points per
curve; new values between two drawings replace each other.
"""

from __future__ import annotations

import html
import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QEvent, QPointF, QRect, QRectF, QSize, Qt, QTimer
from qtpy.QtGui import QColor, QFont, QPainter, QPalette, QPen, QPolygonF
from qtpy.QtWidgets import (
    QCheckBox,
    QHBoxLayout,
    QLabel,
    QSizePolicy,
    QSlider,
    QStyledItemDelegate,
    QVBoxLayout,
    QWidget,
)

from homolog.gui.shared import widgets
from homolog.gui.shared.runs import (
    Curve,
    bounds,
    colour_of,
    decimated,
    hover_words,
    log_safe,
    smoothed,
)

DRAW_MS = 250
_HEIGHT_PX = 190


def has_pyqtgraph() -> bool:
    """Whether the better drawing library is installed."""
    return importlib.util.find_spec("pyqtgraph") is not None


class CurveView(QWidget):
    """A chart with its own switches: logarithmic scale, smoothing, values under mouse.

    Args:
        title: Above the chart, with the unit if there is one.
        parent: Of the widget.
    """

    def __init__(self, title: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.title = title
        self.curves: list[Curve] = []
        self._earlier: Curve | None = None
        self._stale = False
        self.drawn = 0
        self._chart: Any = None  # made when first seen: pyqtgraph takes its time
        self._legend = QLabel()
        # It changes with the mouse, above and below what must not move.
        self._readout = widgets.Sentence(2)
        self._readout.setText("Move the mouse over the curve to read its values.")
        self._build()
        self._timer = QTimer(self)
        self._timer.setInterval(DRAW_MS)
        self._timer.timeout.connect(self._draw_if_stale)

    def show_curves(
        self, curves: Sequence[Curve], earlier: Curve | None = None
    ) -> None:
        """Show these from the next drawing on.

        Args:
            curves: Newest values.
            earlier: Another run, in grey behind them.
        """
        self.curves, self._earlier, self._stale = list(curves), earlier, True
        if self.isVisible() and not self._timer.isActive():
            self._draw_if_stale()
            self._timer.start()

    def showEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().showEvent(event)
        self._need_chart()
        self._chart.dress(self._readout)
        self._timer.start()

    def hideEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().hideEvent(event)
        self._timer.stop()

    def changeEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().changeEvent(event)
        if event.type() in (QEvent.Type.StyleChange, QEvent.Type.FontChange):
            QTimer.singleShot(0, self._dress)

    def _dress(self) -> None:
        """Another theme or font size: after Qt has given it to the labels."""
        if self._chart is not None and self.isVisible():
            self._chart.dress(self._readout)

    def say_values(self, step: float) -> None:
        """Write the values at a step below the chart."""
        self._readout.setText(hover_words(self._all(), step) or "No values yet.")

    def _build(self) -> None:
        self._heading = QLabel(self.title)
        self._log = QCheckBox("log scale")
        self._log.setAccessibleName(f"{self.title}: logarithmic scale")
        self._log.setToolTip("Show small values as well as large ones")
        self._log.toggled.connect(self._redraw)
        self._smooth = QSlider(Qt.Orientation.Horizontal)
        self._smooth.setRange(0, 95)
        self._smooth.setValue(60)
        self._smooth.setMaximumWidth(80)
        self._smooth.setMinimumWidth(40)
        self._smooth.setAccessibleName(f"{self.title}: smoothing")
        self._smooth.setToolTip("Smoothing of the curves; left shows raw values")
        self._smooth.valueChanged.connect(self._redraw)
        label = QLabel("smooth")
        label.setBuddy(self._smooth)
        self._legend.setWordWrap(True)
        self._legend.setTextFormat(Qt.TextFormat.RichText)
        self._legend.setAccessibleName(f"{self.title}: which line is which")
        self._legend.setToolTip("Which line is which")
        self._readout.setAccessibleName(f"{self.title}: values under the mouse")
        self._readout.setToolTip("Values at the step under the mouse")
        top = QHBoxLayout()
        for widget in (self._log, label, self._smooth):
            top.addWidget(widget)
        top.addStretch()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self._heading)
        column.addLayout(top)
        column.addWidget(self._legend)
        column.addWidget(self._readout)

    def _need_chart(self) -> None:
        if self._chart is not None:
            return
        self._chart = _make_chart(self)
        self._chart.setAccessibleName(self.title)
        self._chart.setToolTip(f"{self.title} by training step")
        self._heading.setBuddy(self._chart)
        column = self.layout()
        column.insertWidget(column.indexOf(self._legend) + 1, self._chart)

    def _redraw(self) -> None:
        self._stale = True
        self._draw_if_stale()

    def _draw_if_stale(self) -> None:
        if not self._stale or self._chart is None or not self.isVisible():
            return
        self._stale = False
        self.drawn += 1
        self._legend.setText(legend_of(self._all()))
        room = self._legend.heightForWidth(self._legend.width())
        two = 2 * self._legend.fontMetrics().lineSpacing()
        self._legend.setMinimumHeight(max(two, room, self._legend.minimumHeight()))
        strength = self._smooth.value() / 100
        self._chart.draw([self._prepared(c, strength) for c in self._all()],
                         self._log.isChecked())  # fmt: skip

    def _prepared(self, curve: Curve, strength: float) -> Curve:
        x, y = decimated(curve.x, curve.y)
        if curve.role != "validation":
            y = smoothed(y, strength)
        if self._log.isChecked():
            y = log_safe(y)
        return Curve(curve.name, x, y, curve.role)

    def _all(self) -> list[Curve]:
        return ([self._earlier] if self._earlier is not None else []) + self.curves


def legend_of(curves: Sequence[Curve]) -> str:
    """The lines' samples and names as rich text; empty for a single line."""
    if len(curves) < 2:
        return ""
    parts, place = [], 0
    for curve in curves:
        sample = "╌╌" if curve.role == "part" else "━━"
        colour, name = colour_of(curve, place), html.escape(curve.name)
        parts.append(f'<span style="color:{colour}">{sample}</span>&nbsp;{name}')
        place += curve.role != "earlier"
    return " &nbsp; ".join(parts)


def _make_chart(view: CurveView) -> Any:
    if has_pyqtgraph():
        try:
            return _pyqtgraph_chart(view)
        except Exception:  # noqa: BLE001 - a broken install draws with the painter
            pass

    return PaintedChart(view.say_values, view)


def _pyqtgraph_chart(view: CurveView) -> QWidget:
    """A PlotWidget with ``draw(curves, log)``; curves are updated, never remade."""
    import pyqtgraph

    class Chart(pyqtgraph.PlotWidget):
        def __init__(self) -> None:
            super().__init__(parent=view, background=None)
            self._lines: dict[str, Any] = {}
            self.setLabel("bottom", "step")
            self.showGrid(x=True, y=True, alpha=0.15)
            self.setMouseEnabled(x=True, y=False)
            self.setMenuEnabled(False)
            self.setFixedHeight(_HEIGHT_PX)
            self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
            self.scene().sigMouseMoved.connect(self._hover)

        def sizeHint(self) -> QSize:
            return QSize(200, _HEIGHT_PX)

        def wheelEvent(self, event: Any) -> None:
            event.ignore()  # the wheel scrolls the panel

        def draw(self, curves: list[Curve], log: bool) -> None:
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
                line.setPen(_pen(pyqtgraph, curve, places))
                few = curve.role == "validation" or len(curve.x) < 2
                line.setSymbol("o" if few else None)
                line.setSymbolSize(5)
                line.setSymbolBrush(colour_of(curve, places))
                line.setData(curve.x, curve.y)
                places += curve.role != "earlier"

        def _hover(self, place: Any) -> None:
            if self.sceneBoundingRect().contains(place):
                view.say_values(self.getViewBox().mapSceneToView(place).x())

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

    return Chart()


def _pen(pyqtgraph: Any, curve: Curve, place: int) -> Any:
    style = Qt.PenStyle.SolidLine if curve.role != "part" else Qt.PenStyle.DashLine
    width = 2 if curve.role in ("train", "validation") else 1
    return pyqtgraph.mkPen(colour_of(curve, place), width=width, style=style)


# Charts without a charting library: a plain curve chart, and the table's sparkline.

_MOST = 400
SPARK_ROLE = int(Qt.ItemDataRole.UserRole) + 1


class PaintedChart(QWidget):
    """Curves drawn with QPainter: axis values at the corners, a legend, hover values.

    Args:
        say_values: Called with the step under the mouse.
        parent: Of the widget.
    """

    def __init__(self, say_values: Callable[[float], None], parent: QWidget) -> None:
        super().__init__(parent)
        self._say, self._curves, self._log = say_values, list[Curve](), False
        self._text = self.palette().color(QPalette.ColorRole.WindowText)
        self.setMouseTracking(True)
        self.setFixedHeight(_HEIGHT_PX)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)

    def sizeHint(self) -> QSize:  # noqa: D102 - Qt's name
        return QSize(200, _HEIGHT_PX)

    def dress(self, like: QLabel) -> None:
        """A label's text colour and font, so that themes and sizes fit."""
        self._text = like.palette().color(like.foregroundRole())
        self.setFont(like.font())

    def draw(self, curves: list[Curve], log: bool) -> None:
        """Show these; with ``log`` the values' logarithms."""
        self._log = log
        self._curves = []
        for curve in curves:
            x, y = decimated(curve.x, curve.y, _MOST)
            if log:
                y = np.array([math.log10(v) if v > 0 else math.nan for v in y])
            self._curves.append(Curve(curve.name, x, y, curve.role))
        self.update()

    def mouseMoveEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        limits, area = bounds(self._curves), self._area()
        if limits is None or area.width() <= 0:
            return
        share = (event.position().x() - area.left()) / area.width()
        self._say(limits[0] + share * (limits[1] - limits[0]))

    def paintEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        area, limits = self._area(), bounds(self._curves)
        painter.setPen(self._text)
        painter.drawRect(area)
        if limits is None:
            painter.drawText(area, int(Qt.AlignmentFlag.AlignCenter), "no values yet")
            painter.end()
            return
        self._write_axes(painter, area, limits)
        place = 0
        for curve in self._curves:
            colour = QColor(colour_of(curve, place))
            draw_line(painter, curve.x, curve.y, area, limits, colour)
            place += curve.role != "earlier"
        painter.end()

    def _area(self) -> QRectF:
        rows = self.fontMetrics().height()
        left = self.fontMetrics().horizontalAdvance("-0.0000") + 4
        return QRectF(left, 4, self.width() - left - 6, self.height() - rows - 10)

    def _write_axes(
        self, painter: QPainter, area: QRectF, limits: tuple[float, ...]
    ) -> None:
        low, high = (10**v if self._log else v for v in limits[2:])
        height = self.fontMetrics().height()
        painter.drawText(QPointF(0, area.top() + height), f"{high:.3g}")
        painter.drawText(QPointF(0, area.bottom()), f"{low:.3g}")
        below = area.bottom() + height
        painter.drawText(QPointF(area.left(), below), f"{limits[0]:.0f}")
        last = f"step {limits[1]:.0f}"
        width = self.fontMetrics().horizontalAdvance(last)
        painter.drawText(QPointF(area.right() - width, below), last)


class SparkDelegate(QStyledItemDelegate):
    """Draws a table cell's values (``SPARK_ROLE``, a tuple) as a small curve."""

    def paint(self, painter: Any, option: Any, index: Any) -> None:  # noqa: D102
        super().paint(painter, option, index)
        values = index.data(SPARK_ROLE)
        if not values or len(values) < 2:
            return
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        # The number stands on the left of the cell, the curve on its right.
        number = option.fontMetrics.horizontalAdvance("00.00 ") + 6
        line = option.fontMetrics.lineSpacing()
        has_more = bool(str(index.data() or "").partition("\n")[2])
        below = line + 2 if has_more else 3
        cell = QRect(option.rect).adjusted(number, 3, -3, -below)
        steps = list(range(len(values)))
        curve = Curve("", np.asarray(steps, float), np.asarray(values, float))
        limits = bounds([curve])
        if limits is not None and cell.width() > 8:
            colour = option.palette.color(QPalette.ColorRole.WindowText)
            draw_line(painter, curve.x, curve.y, QRectF(cell), limits, colour)
        painter.restore()


def draw_line(
    painter: QPainter,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    area: QRectF,
    limits: tuple[float, float, float, float],
    colour: QColor,
) -> None:
    """One curve into a rectangle; values that are not finite make gaps."""
    x_low, x_high, y_low, y_high = limits
    width, height = max(x_high - x_low, 1e-12), max(y_high - y_low, 1e-12)
    painter.setPen(QPen(colour, 1.6))
    line = QPolygonF()
    for step, value in zip(x, y, strict=True):
        if not math.isfinite(value):
            painter.drawPolyline(line)
            line = QPolygonF()
            continue
        across = area.left() + (step - x_low) / width * area.width()
        up = area.bottom() - (value - y_low) / height * area.height()
        line.append(QPointF(across, up))
    painter.drawPolyline(line)
    if len(line) == 1:
        painter.drawEllipse(line[0], 2.5, 2.5)
