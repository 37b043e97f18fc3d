"""How tables draw: patches with a small cross in the middle, colours that stay."""

from __future__ import annotations

from qtpy.QtCore import QLineF, QModelIndex, QPointF, Qt
from qtpy.QtGui import QBrush, QColor, QImage, QPainter, QPalette, QPen, QPixmap
from qtpy.QtWidgets import QStyledItemDelegate, QStyleOptionViewItem

from homolog.gui.landmarks.patches import Picture

_CROSS = QColor(240, 228, 66)


def pixmap_of(picture: Picture, side: int, *, cross: bool = True) -> QPixmap:
    """A patch as large as wanted.

    Args:
        picture: Square, grey.
        side: Of the result in pixels.
        cross: Whether the middle is marked.
    """
    height, width = picture.shape
    data = picture.tobytes()
    image = QImage(data, width, height, width, QImage.Format.Format_Grayscale8)
    # The copy owns its bytes: ``data`` goes with this call.
    made = QPixmap.fromImage(image.copy()).scaled(
        side, side, Qt.AspectRatioMode.IgnoreAspectRatio,
        Qt.TransformationMode.SmoothTransformation,
    )  # fmt: skip
    if cross:
        painter = QPainter(made)
        painter.setPen(QPen(_CROSS, 1))
        middle = QPointF(side / 2, side / 2)
        for turn in (QPointF(1, 0), QPointF(-1, 0), QPointF(0, 1), QPointF(0, -1)):
            start = middle + turn * (0.05 * side)
            painter.drawLine(QLineF(start, middle + turn * (0.18 * side)))
        painter.end()
    return made


class OwnColour(QStyledItemDelegate):
    """Cells whose text keeps its own colour while their row is selected.

    The colour tells how far a match is to be trusted; a selection must not hide it.
    """

    def initStyleOption(
        self, option: QStyleOptionViewItem | None, index: QModelIndex
    ) -> None:
        """Qt asks how to draw a cell."""
        super().initStyleOption(option, index)
        brush = index.data(Qt.ItemDataRole.ForegroundRole)
        if option is not None and isinstance(brush, QBrush):
            palette = option.palette
            palette.setBrush(QPalette.ColorRole.HighlightedText, brush)
            option.palette = palette
