"""Charts without a charting library: a plain curve chart, and the table's sparkline."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QPointF, QRect, QRectF, QSize, Qt
from qtpy.QtGui import QColor, QPainter, QPalette, QPen, QPolygonF
from qtpy.QtWidgets import QLabel, QSizePolicy, QStyledItemDelegate, QWidget

from homolog.gui.runs.curve_points import Curve, bounds, colour_of, decimated

_HEIGHT_PX = 190
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
