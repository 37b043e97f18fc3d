"""A patch as a picture on screen, with a small cross around its middle."""

from __future__ import annotations

from qtpy.QtCore import QLineF, QPointF, Qt
from qtpy.QtGui import QColor, QImage, QPainter, QPen, QPixmap

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
