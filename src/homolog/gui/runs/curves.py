"""Live curves of a training, and the small ones in the table of runs.

A chart is drawn at most four times a second, only while visible, and with at most 2000
points per curve; new values between two drawings replace each other.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QEvent, QPointF, QRect, QRectF, Qt, QTimer
from qtpy.QtGui import QColor, QPainter, QPalette, QPen, QPolygonF
from qtpy.QtWidgets import (
    QCheckBox,
    QHBoxLayout,
    QLabel,
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
from homolog.gui.shared.threads import soon
from homolog.words import metric_title

DRAW_MS = 250


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
            soon(self, self._dress)

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
        from homolog.gui.runs.chart import Chart  # half a second

        self._chart = Chart(self.say_values, self)
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
        colour, name = colour_of(curve, place), html.escape(metric_title(curve.name))
        parts.append(f'<span style="color:{colour}">{sample}</span>&nbsp;{name}')
        place += curve.role != "earlier"
    return " &nbsp; ".join(parts)


SPARK_ROLE = int(Qt.ItemDataRole.UserRole) + 1


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
